//! The public listener: a service manager's, or one on the public address.

use std::io::IsTerminal;
use std::net::TcpListener;

use rustix::net::sockopt::socket_acceptconn;

use super::hygiene::take_stdin;
use crate::config::Web;
use crate::limits::LISTEN_BACKLOG;

/// Listens; the backlog bridges the replacement of web. True: the listener is a service manager's, and outlives this process.
pub fn listen(web: &Web) -> Result<(TcpListener, bool), String> {
    let address = &web.bind;
    let failed = |error: std::io::Error| format!("web.bind {address}: {error}");
    let activated = activated_listener()?;
    let is_lent = activated.is_some();
    let listener = match activated {
        Some(listener) => {
            let given = listener.local_addr().map_err(failed)?;
            // The rules that the config's own address has passed.
            let is_kept = web.auth.mode == "bearer" && web.behind_tls && !web.auth.open_metrics;
            if !is_kept && !given.ip().is_loopback() {
                return Err(format!(
                    "standard input listens on {given}: beyond loopback web.auth.mode must be bearer, web.behind_tls \
                     true, and web.auth.open_metrics false"
                ));
            }
            log::info!("listening on standard input's socket, {given}, instead of web.bind");
            listener
        }
        None => TcpListener::bind(address).map_err(failed)?,
    };
    Ok((prepare(listener).map_err(failed)?, is_lent))
}

/// The listener as web wants it.
pub(super) fn prepare(listener: TcpListener) -> std::io::Result<TcpListener> {
    rustix::net::listen(&listener, LISTEN_BACKLOG)?;
    listener.set_nonblocking(true)?;
    Ok(listener)
}

/// The listening socket that a service manager gave as standard input (`StandardInput=socket`), if it did; one that is
/// none of TCP is refused.
fn activated_listener() -> Result<Option<TcpListener>, String> {
    let stdin = std::io::stdin();
    if stdin.is_terminal() || !socket_acceptconn(&stdin).unwrap_or(false) {
        return Ok(None);
    }
    let failed = |error: std::io::Error| format!("the listening socket on standard input: {error}");
    let listener = TcpListener::from(take_stdin().map_err(failed)?);
    listener.local_addr().map_err(failed)?;
    Ok(Some(listener))
}
