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

pub use event_loop::{Front, Master};
#[doc(hidden)]
pub use inner::fuzz_answer;
