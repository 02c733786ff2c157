//! Writes fund-load challenge input to standard output: `generate [--seed N] [--lines N] [--plain]`.
//!
//! It guards nothing; it is the generator's command line. With `--plain` the input is that of the benchmarks,
//! without it that of the parity tests.
#![forbid(unsafe_code)]

mod generator;

use std::io::{self, BufWriter, ErrorKind, Write};
use std::process::ExitCode;

const USAGE: &str = "usage: generate [--seed N] [--lines N] [--plain]";
const EXIT_USAGE: u8 = 2;

fn main() -> ExitCode {
    let Some(request) = Request::from_arguments(std::env::args().skip(1)) else {
        complain(USAGE);
        return ExitCode::from(EXIT_USAGE);
    };
    match write_out(&(request.generate)(request.seed, request.lines)) {
        Ok(()) => ExitCode::SUCCESS,
        // The reader has seen enough, as `head` does.
        Err(error) if error.kind() == ErrorKind::BrokenPipe => ExitCode::SUCCESS,
        Err(error) => {
            complain(&format!("generate: cannot write: {error}"));
            ExitCode::FAILURE
        }
    }
}

struct Request {
    seed: u64,
    lines: usize,
    generate: fn(u64, usize) -> Vec<u8>,
}

impl Request {
    /// `None` iff an argument is unknown, or a number is missing or not one.
    fn from_arguments(mut arguments: impl Iterator<Item = String>) -> Option<Request> {
        let mut request = Request { seed: 1, lines: 1_000, generate: generator::generate };
        while let Some(argument) = arguments.next() {
            match argument.as_str() {
                "--seed" => request.seed = arguments.next()?.parse().ok()?,
                "--lines" => request.lines = arguments.next()?.parse().ok()?,
                "--plain" => request.generate = generator::generate_plain,
                _ => return None,
            }
        }
        Some(request)
    }
}

fn write_out(bytes: &[u8]) -> io::Result<()> {
    let mut output = BufWriter::new(io::stdout().lock());
    output.write_all(bytes)?;
    output.flush()
}

/// Writes one line to standard error. Where that cannot be done, nobody is left to be told.
fn complain(line: &str) {
    let _ = writeln!(io::stderr().lock(), "{line}");
}
