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

/// The code in this document compiles, and what can run does.
#[cfg(doctest)]
#[doc = include_str!("../docs/embedding.md")]
mod document {}

pub mod app;
pub(crate) mod codec;
pub mod handler;

// Public for the tests and tools of this repository: no interface that stays.
#[doc(hidden)]
pub mod batch;
#[doc(hidden)]
pub mod bell;
#[doc(hidden)]
pub mod channel;
#[doc(hidden)]
pub mod cli;
#[doc(hidden)]
pub mod clock;
#[doc(hidden)]
pub mod config;
#[doc(hidden)]
pub mod console;
#[doc(hidden)]
pub mod deployment;
#[doc(hidden)]
pub mod entropy;
#[doc(hidden)]
pub mod execution;
#[doc(hidden)]
pub mod exit;
#[doc(hidden)]
pub mod facts;
#[doc(hidden)]
pub mod job;
pub(crate) mod job_codec;
#[doc(hidden)]
pub mod job_status;
#[doc(hidden)]
pub mod journal;
#[doc(hidden)]
pub mod limits;
#[doc(hidden)]
pub mod mac;
#[doc(hidden)]
pub mod memory;
#[doc(hidden)]
pub mod named;
#[doc(hidden)]
pub mod ndjson;
#[doc(hidden)]
pub mod negative_controls;
#[doc(hidden)]
pub mod observe;
#[doc(hidden)]
pub mod options;
#[doc(hidden)]
pub mod ports;
#[doc(hidden)]
pub mod problem;
#[doc(hidden)]
pub mod process;
#[doc(hidden)]
pub mod process_table;
#[cfg(feature = "redis")]
#[doc(hidden)]
pub mod redis_backend;
#[doc(hidden)]
pub mod roles;
#[doc(hidden)]
pub mod supervisor;
pub(crate) mod trace;
#[doc(hidden)]
pub mod usage;
#[doc(hidden)]
pub mod web;

pub use app::App;
pub use clock::Timestamp;
pub use execution::{Handler, Job, JobContext, StagedMap, testing};
pub use handler::{HandlerError, HandlerOptions, OnDead, Ordering, Retry};
pub use job::{JobId, MediaType, Payload, Trace};
