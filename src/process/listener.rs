//! The public listener.

use std::net::TcpListener;

use super::systemd::activated_listener;
use crate::config::Web;
use crate::limits::LISTEN_BACKLOG;

/// The public listener: a service manager's, or one on the public address. Its backlog bridges the replacement
/// of web.
pub fn listen(web: &Web) -> Result<TcpListener, String> {
    let address = &web.bind;
    let failed = |error: std::io::Error| format!("web.bind {address}: {error}");
    let listener = match activated_listener()? {
        Some(listener) => {
            let given = listener.local_addr().map_err(failed)?;
            // The rule that the config's own address has passed.
            if web.auth.mode == "none" && !given.ip().is_loopback() {
                return Err(format!(
                    "standard input listens on {given}: beyond loopback web.auth.mode must be bearer"
                ));
            }
            log::info!("listening on standard input's socket, {given}, instead of web.bind");
            listener
        }
        None => TcpListener::bind(address).map_err(failed)?,
    };
    rustix::net::listen(&listener, LISTEN_BACKLOG).map_err(|error| failed(error.into()))?;
    listener.set_nonblocking(true).map_err(failed)?;
    Ok(listener)
}
