//! The binary: the library with its built-in handlers.
#![forbid(unsafe_code)]

use std::process::ExitCode;

fn main() -> ExitCode {
    cofferdam::App::new().main()
}
