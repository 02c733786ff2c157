//! The peer of the HTTP benchmark: a bare tiny_http server that answers each request with its own body.
//!
//! It is what a Rust programmer writes who wants a blocking server in one process: some threads, each calling
//! `recv`. It has no queue, no other process, no record and no limits, so it is the most that tiny_http can
//! do.
//!
//!     bench-tiny-http-echo [--port 0] [--threads 4]
#![forbid(unsafe_code)]

use std::io;
use std::process::ExitCode;
use std::sync::Arc;
use std::thread;
use tiny_http::{Request, Response, Server};

const USAGE: &str = "usage: bench-tiny-http-echo [--port N] [--threads N]";

fn main() -> ExitCode {
    let Some((port, threads)) = parse_arguments(std::env::args().skip(1)) else {
        eprintln!("{USAGE}");
        return ExitCode::from(2);
    };
    let server = match Server::http(("127.0.0.1", port)) {
        Ok(server) => Arc::new(server),
        Err(error) => {
            eprintln!("cannot listen on port {port}: {error}");
            return ExitCode::FAILURE;
        }
    };
    println!("ready http://{} pid={}", server.server_addr(), std::process::id());

    let workers: Vec<_> = (0..threads)
        .map(|_| {
            let server = Arc::clone(&server);
            thread::spawn(move || serve(&server))
        })
        .collect();
    for worker in workers {
        if worker.join().is_err() {
            return ExitCode::FAILURE;
        }
    }
    ExitCode::SUCCESS
}

fn parse_arguments(mut arguments: impl Iterator<Item = String>) -> Option<(u16, usize)> {
    let (mut port, mut threads) = (0, 4);
    while let Some(name) = arguments.next() {
        let value = arguments.next()?;
        match name.as_str() {
            "--port" => port = value.parse().ok()?,
            "--threads" => threads = value.parse().ok().filter(|threads| (1..=256).contains(threads))?,
            _ => return None,
        }
    }
    Some((port, threads))
}

fn serve(server: &Server) {
    loop {
        match server.recv() {
            // A client that hangs up ends its own request only.
            Ok(request) => drop(echo(request)),
            Err(error) => return eprintln!("recv: {error}"),
        }
    }
}

fn echo(mut request: Request) -> io::Result<()> {
    let mut body = Vec::with_capacity(request.body_length().unwrap_or(0).min(1 << 20));
    request.as_reader().read_to_end(&mut body)?;
    let mut response = Response::from_data(body);
    if let Some(content_type) = request.headers().iter().find(|header| header.field.equiv("Content-Type")) {
        response.add_header(content_type.clone());
    }
    request.respond(response)
}
