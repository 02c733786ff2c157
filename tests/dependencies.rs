//! What reaches the binary: an explicit list of crates, and no async runtime under any name.
//!
//! A new line in the tree is a decision, so it is a line here too, beside its reason.
//! Dependencies of tests and benchmarks are free and not looked at.

use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;
use std::process::Command;

/// Every crate of the binary, below the direct dependency that brings it.
const ALLOWED: &[(&str, &[&str])] = &[
    ("this package", &["cofferdam"]),
    ("mio, for the two event loops", &["mio"]),
    ("tiny_http, for the routes that render", &["tiny_http", "ascii", "chunked_transfer", "httpdate"]),
    ("serde, for the config and handlers", &["serde", "serde_core"]),
    ("serde, at compile time only", &["serde_derive", "syn", "quote", "proc-macro2", "unicode-ident"]),
    ("serde_json, for the config and handlers", &["serde_json", "itoa", "memchr", "zmij"]),
    (
        "hmac and sha2, for the channel",
        &[
            "hmac",
            "sha2",
            "digest",
            "block-buffer",
            "crypto-common",
            "hybrid-array",
            "typenum",
            "const-oid",
            "cpufeatures",
            "ctutils",
            "cmov",
        ],
    ),
    ("getrandom, for secrets and ids", &["getrandom", "cfg-if"]),
    ("log and env_logger, for logs", &["log", "env_logger", "env_filter"]),
    ("signal-hook, for signals", &["signal-hook", "signal-hook-registry", "errno"]),
    ("rustix, for processes and clocks", &["rustix", "linux-raw-sys", "bitflags"]),
    ("zeroize, for wiping secrets", &["zeroize"]),
    #[cfg(feature = "redis")]
    (
        "redis, for the Redis backend",
        &["redis", "arcstr", "bytes", "combine", "ryu", "socket2", "utf_types", "xxhash-rust"],
    ),
    // Held at an idna_adapter without Unicode tables: our addresses are ASCII.
    #[cfg(feature = "redis")]
    (
        "url, for Redis addresses",
        &["url", "form_urlencoded", "idna", "idna_adapter", "percent-encoding", "smallvec", "utf8_iter"],
    ),
    ("libc, below mio, getrandom and signal-hook", &["libc"]),
];

/// Async runtimes and what only makes sense within one. `futures` alone brings an executor.
const RUNTIMES: &[&str] = &[
    "actix-rt",
    "async-executor",
    "async-global-executor",
    "async-io",
    "async-std",
    "bastion",
    "compio",
    "embassy-executor",
    "futures",
    "futures-executor",
    "glommio",
    "monoio",
    "ntex-rt",
    "nuclei",
    "pollster",
    "smol",
    "smolscale",
    "tokio",
    "tokio-uring",
    "tokio-util",
    "wasm-bindgen-futures",
];

/// The crates that are linked into the binary or run at its build, as `name version`.
fn tree() -> BTreeMap<String, String> {
    let cargo = std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into());
    let mut command = Command::new(cargo);
    command.args([
        "tree",
        "-e",
        "normal,build",
        "--prefix",
        "none",
        "--locked",
        "--offline",
        "--manifest-path",
    ]);
    command.arg(Path::new(env!("CARGO_MANIFEST_DIR")).join("Cargo.toml"));
    if !cfg!(feature = "redis") {
        command.arg("--no-default-features");
    }
    let output = command.output().expect("cargo can be run");
    let said = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{command:?} failed; is Cargo.lock up to date? {said}");
    let text = String::from_utf8(output.stdout).expect("crate names are text");
    let crates: BTreeMap<String, String> = text
        .lines()
        .filter_map(|line| {
            let mut words = line.split_whitespace();
            Some((words.next()?.to_owned(), words.next()?.to_owned()))
        })
        .collect();
    assert!(crates.contains_key("cofferdam") && crates.len() > 10, "this is no tree: {text}");
    crates
}

fn allowed() -> BTreeSet<&'static str> {
    ALLOWED.iter().flat_map(|(_, names)| names.iter().copied()).collect()
}

#[test]
fn only_crates_of_the_allow_list_reach_the_binary() {
    let (tree, allowed) = (tree(), allowed());
    let extra: Vec<String> = tree
        .iter()
        .filter(|(name, _)| !allowed.contains(name.as_str()))
        .map(|(name, version)| format!("{name} {version}"))
        .collect();
    assert!(
        extra.is_empty(),
        "not on the allow-list: {}.\n`cargo tree -e normal -i NAME` shows who brings each. Do without it, or add it to \
         ALLOWED in {} with its reason, and to ARCHITECTURE.md if it is a direct one.",
        extra.join(", "),
        file!()
    );
}

#[test]
fn as_few_crates_as_promised_reach_the_binary() {
    let most = if cfg!(feature = "redis") { 55 } else { 40 };
    let crates = tree().len() - 1;
    assert!(crates <= most, "{crates} crates besides ours, more than {most}");
}

#[test]
fn the_allow_list_names_no_crate_that_is_gone() {
    let tree = tree();
    let gone: Vec<&str> = allowed().into_iter().filter(|name| !tree.contains_key(*name)).collect();
    assert!(gone.is_empty(), "no longer in the tree, so remove from ALLOWED in {}: {gone:?}", file!());
}

#[test]
fn no_async_runtime_is_in_the_tree_under_any_name() {
    let tree = tree();
    let is_runtime =
        |name: &str| RUNTIMES.contains(&name) || name.starts_with("tokio-") || name.starts_with("smol-");
    let found: Vec<&String> = tree.keys().filter(|name| is_runtime(name)).collect();
    assert!(found.is_empty(), "house rule 1: no async runtime, but the tree has {found:?}");
    let both: Vec<&str> = allowed().into_iter().filter(|name| is_runtime(name)).collect();
    assert!(both.is_empty(), "ALLOWED has what RUNTIMES refuses: {both:?}");
}

/// What the Dockerfile copies, and `.dockerignore` lets in, is a package that Cargo reads.
#[test]
fn the_build_context_of_the_image_is_whole() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let read = |name: &str| std::fs::read_to_string(root.join(name)).expect("it is there");
    let (dockerfile, ignored) = (read("Dockerfile"), read(".dockerignore"));
    let context = Path::new(env!("CARGO_TARGET_TMPDIR")).join(format!("context-{}", std::process::id()));
    std::fs::create_dir_all(&context).expect("a temporary folder");
    let build = dockerfile.split("FROM scratch").next().expect("the first stage");
    let copied = build.lines().filter_map(|line| line.strip_prefix("COPY "));
    for name in copied.flat_map(|line| line.split(' ').filter(|word| !word.starts_with("./"))) {
        assert!(ignored.lines().any(|line| line == format!("!{name}")), ".dockerignore keeps {name} out");
        let copy = Command::new("cp").arg("-r").arg(root.join(name)).arg(&context).status();
        assert!(copy.expect("cp").success(), "{name}");
    }
    let cargo = std::env::var_os("CARGO").unwrap_or("cargo".into());
    let mut metadata = Command::new(cargo);
    metadata.args(["metadata", "--no-deps", "--offline", "--format-version", "1", "--manifest-path"]);
    let output = metadata.arg(context.join("Cargo.toml")).output().expect("cargo");
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    std::fs::remove_dir_all(&context).expect("a temporary folder");
}
