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

use crate::deployment::Deployment;
use crate::exit::Exit;
use crate::observe::{event, log_writer};

/// A child's end as its exit code; what went wrong is said on standard error.
fn ended(role: &str, end: Result<Exit, String>) -> Exit {
    end.unwrap_or_else(|message| {
        log_writer::say(format!("cofferdam {role}: {message}\n"));
        Exit::Failed
    })
}

/// The first words of a service to its log.
fn say_starting(deployment: &Deployment) {
    let profile = crate::config::profile(&deployment.config);
    event(log::Level::Info, "lifecycle.starting").field("profile", &profile).emit();
    deployment.promise().iter().for_each(|promise| log::info!("{promise}"));
}
