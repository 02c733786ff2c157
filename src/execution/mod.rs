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
mod thread;
mod worker;

pub use self::core::{Core, Limits, Requests};
pub use context::{Contexts, Job, JobContext, LaneState};
pub use engine::{Engine, Health};
pub use mirror::Mirror;
pub use thread::{Crew, EngineState, EngineThread, Engines, GIVE_BACK};
pub use worker::{Done, Run, RunControl, WorkerPool};
