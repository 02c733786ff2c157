//! Running jobs: the executor's books, the threads around the helm, the context that a handler sees.
//!
//! It does not know which profile it runs in. In scope: order within a run, deadlines, cancels, cached lane state,
//! stuck workers. Not in scope: what is durable (the broker's), how leases travel (the channel's).

mod books;
pub mod builtin;
mod context;
mod crew;
mod deck;
pub mod program;
mod run;
pub mod testing;

pub use books::Books;
pub use context::{Handler, Handlers, Job, JobContext, Registry, StagedMap, WorkerStart};
pub use crew::{Engine, Health, Helm, Outfit, running_job, start};
pub use run::{Done, Run, RunMaps, RunStop};
