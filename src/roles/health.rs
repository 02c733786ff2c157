//! `health`: asks a running service whether it is ready.

use std::io::{Read, Write};
use std::net::TcpStream;
use std::time::Duration;

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
