//! The web process: the gate that meets strangers, and the routes behind it.
//!
//! Pure: [`http1`], [`chunked`], [`routes`], `submission`, [`respond`], and [`gate::Gate`] with its clients, requests,
//! waiters, batches and listeners. With I/O: [`WebProcess`] (the one event loop), its sockets, its calls of the broker and of the
//! inner server. What web knows of jobs are the ports.

mod bulk;
mod by_name;
pub mod calls;
pub mod chunked;
pub mod gate;
pub mod http1;
pub mod questions;
pub mod respond;
mod room;
pub mod routes;

mod clients;
mod commander;
mod figures;
mod guard;
mod inner;
mod listening;
mod output;
mod pages;
mod process;
mod requests;
mod sockets;
mod streaming;
mod submission;
mod waiters;
mod waiting;
mod watch;

pub use commander::Commander;
pub use process::WebProcess;
