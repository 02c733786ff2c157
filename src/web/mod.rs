//! The web process: the gate that meets strangers, the waiters, and the routes behind it.
//!
//! Pure: [`http1`], [`chunked`], [`routes`], [`respond`], and [`core::Core`] with its connections, waiters and
//! streams. With I/O: [`Front`] (the one event loop), the inner server's pages, and the pool of connections to it.
//! Web never imports the worker code; what it knows of jobs are the ports.

pub mod chunked;
mod conn;
pub mod core;
pub mod desk;
mod event_loop;
mod handle;
pub mod http1;
mod inner;
mod master;
mod pages;
pub mod respond;
pub mod routes;
mod stream;
mod submission;
mod waiters;

use std::io::{Read, Write};
use std::net::TcpStream;
use std::time::Duration;

pub use event_loop::{Front, Master};
#[doc(hidden)]
pub use inner::fuzz_answer;

use crate::app::{Backend, Setup};
use crate::cli::Exit;
use crate::observe::event;
use crate::ports::Upkeep;
use crate::supervisor::{Signals, SocketDir, keep_secrets, raise_descriptor_limit};

/// `serve` in one process: the same web and workers, no channel.
#[must_use]
pub fn serve_inline(setup: &Setup) -> Exit {
    serve_here(setup, |setup, backend| Ok(Some(Box::new(setup.inline_executors(backend, "")?))))
}

/// `web` by itself: executors are where they are.
#[must_use]
pub fn serve_web_alone(setup: &Setup) -> Exit {
    serve_here(setup, |_, _| Ok(None))
}

type Beside = Result<Option<Box<dyn Upkeep>>, String>;

/// A front that signals stop, and what lives beside it.
fn serve_here(setup: &Setup, beside: impl FnOnce(&Setup, &Backend) -> Beside) -> Exit {
    let exit = try_serve_here(setup, beside).unwrap_or_else(|message| {
        crate::observe::log_writer::say(format!("cofferdam: {message}\n"));
        Exit::Failed
    });
    event(log::Level::Info, "lifecycle.stopped").emit();
    crate::observe::log_writer::settle();
    exit
}

fn try_serve_here(setup: &Setup, beside: impl FnOnce(&Setup, &Backend) -> Beside) -> Result<Exit, String> {
    event(log::Level::Info, "lifecycle.starting")
        .field("profile", &crate::config::profile(&setup.config))
        .emit();
    if setup.uses_redis() {
        // The secret that jobs are signed with is here.
        keep_secrets().map_err(|error| error.to_string())?;
    } else {
        log::info!("memory backends in one process: jobs and state go with it");
    }
    raise_descriptor_limit();
    let signals = Signals::take().map_err(|error| error.to_string())?;
    let listener = crate::supervisor::listen(setup)?;
    let sockets = SocketDir::make()?;
    let backend = setup.backend("")?;
    let front = Front::new(setup, listener, &backend, Master::Signals(signals.stop))?;
    front.with_beside(beside(setup, &backend)?).run(sockets.path())
}

/// Asks a running service whether it is ready.
///
/// # Errors
/// It cannot be reached, or says why it is not.
pub fn ask_ready(address: &str) -> Result<(), String> {
    const PATIENCE: Duration = Duration::from_secs(5);
    let failed = |error: std::io::Error| format!("{address}: {error}");
    let mut stream = TcpStream::connect(address).map_err(failed)?;
    stream.set_read_timeout(Some(PATIENCE)).map_err(failed)?;
    stream.set_write_timeout(Some(PATIENCE)).map_err(failed)?;
    write!(stream, "GET /readyz HTTP/1.1\r\nHost: {address}\r\nConnection: close\r\n\r\n").map_err(failed)?;
    let mut answer = Vec::new();
    stream.take(65_536).read_to_end(&mut answer).map_err(failed)?;
    let answer = String::from_utf8_lossy(&answer);
    if answer.starts_with("HTTP/1.1 200 ") {
        return Ok(());
    }
    let body = answer.split_once("\r\n\r\n").map_or(&*answer, |(_, body)| body);
    Err(format!("{address} is not ready: {body}"))
}
