//! Running jobs: the pure core that keeps the executor's books, the worker threads, the context that a
//! handler sees, and the engine that ties them to a [`crate::ports::Consumer`].
//!
//! The engine does not know which profile it runs in. In scope: order within a run, deadlines, cancels, cached
//! lane state, stuck workers. Not in scope: what is durable (the broker's), how leases travel (the channel's).

pub mod builtin;
mod context;
mod core;
mod engine;
mod mirror;
mod registry;
mod run;
mod thread;
mod worker;

pub use self::core::{Core, Done, Requests, Run};
pub use context::{Contexts, Job, JobContext, LaneState};
pub use engine::{Engine, Health};
pub use mirror::Mirror;
pub use registry::{Handler, Handlers, Registry};
pub use run::{Limits, RunControl};
pub use thread::{Crew, EngineState, EngineThread, Engines, GIVE_BACK};
pub use worker::WorkerPool;
