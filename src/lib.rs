//! Cofferdam: functions and programs as a job service that can be trusted.
//!
//! An HTTP front process takes jobs and keeps the books, separate executor processes run them in blocking
//! worker threads, and they speak over a signed local channel. No async runtime, no `unsafe`.
//!
//! An embedder registers handlers and hands over the command line:
//!
//! ```no_run
//! use cofferdam::{App, HandlerError, Job, JobContext, Payload};
//!
//! fn shout(job: &Job, _: &mut JobContext) -> Result<Payload, HandlerError> {
//!     let text = std::str::from_utf8(&job.payload().bytes)
//!         .map_err(|error| HandlerError::Fail(error.to_string()))?;
//!     Ok(Payload::json(text.to_uppercase().into_bytes()))
//! }
//!
//! fn main() -> std::process::ExitCode {
//!     App::new().handler("shout", shout).main()
//! }
//! ```
//!
//! ARCHITECTURE.md is the map of the rooms; docs/protocol.md describes the channel.
#![forbid(unsafe_code)]

pub mod app;
pub mod batch;
pub mod bell;
pub mod channel;
pub mod cli;
pub mod clock;
pub(crate) mod codec;
pub mod config;
pub mod controls;
pub mod entropy;
pub mod execution;
pub mod handler;
pub mod job;
pub mod life;
pub mod limits;
pub mod mac;
pub mod memory;
pub mod observe;
pub mod ports;
pub mod problem;
pub mod redis_backend;
pub mod supervisor;
pub mod web;

pub use app::App;
pub use execution::{Job, JobContext, LaneState};
pub use handler::{Handler, HandlerError, HandlerOptions, OnDead, Ordering};
pub use job::{MediaType, Payload};
