//! Processes: who starts whom, with what, and what happens when one ends.
//!
//! The supervisor owns the public listener and the session secret; it spawns, watches, restarts and drains. In
//! scope: children, their control sockets, the bootstrap bundle, restarts, signals. Not in scope: jobs.

mod apart;
pub mod child;
pub mod control;
mod executor;
mod fleet;
mod host;
mod hygiene;
mod life;
mod phase;
mod process;
pub mod restart;
mod serve;
mod socket_dir;
pub mod systemd;
mod web_child;
mod words;
mod worn;

pub use apart::run_executor;
pub use executor::run_executor_child;
pub use host::ExecutionHost;
pub use hygiene::{Signals, keep_secrets, raise_descriptor_limit};
pub(crate) use serve::listen;
pub use serve::serve;
pub use socket_dir::SocketDir;
pub use web_child::run_web_child;
