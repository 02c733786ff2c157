# A static binary in an empty image, as nobody. Build: docker build -t cofferdam .
FROM rust:1-slim AS build
WORKDIR /src
COPY Cargo.toml Cargo.lock ./
COPY src src
COPY tools tools
# The manifest names the tests, so they must be there.
COPY tests tests
RUN target="$(uname -m)-unknown-linux-gnu" \
 && RUSTFLAGS="-C target-feature=+crt-static" cargo build --release --locked --bin cofferdam --target "$target" \
 && cp "target/$target/release/cofferdam" /cofferdam \
 && mkdir -m 1777 /empty-tmp

FROM scratch
COPY --from=build /cofferdam /cofferdam
# The private socket of the inner server lives here.
COPY --from=build /empty-tmp /tmp
USER 65534:65534
EXPOSE 8080
HEALTHCHECK --interval=10s --timeout=6s CMD ["/cofferdam", "health"]
ENTRYPOINT ["/cofferdam"]
CMD ["serve"]
