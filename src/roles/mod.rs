//! One checklist a process: what a supervisor, a web process, an executor do from their start to their end.

mod batch;
mod executor;
mod health;
mod inline;
mod recycle;
mod serve;
mod web;

pub use batch::run as run_batch;
pub use executor::run_executor_child;
pub use health::ask_ready;
pub use serve::serve;
pub use web::{run_web_child, serve_inline};

use crate::exit::Exit;
use crate::observe::log_writer;

/// A child's end as its exit code; what went wrong is said on standard error.
fn ended(role: &str, end: Result<Exit, String>) -> Exit {
    end.unwrap_or_else(|message| {
        log_writer::say(format!("cofferdam {role}: {message}\n"));
        log_writer::settle();
        Exit::Failed
    })
}
