//! One checklist a process: what a supervisor, a web process, an executor do from their start to their end.

mod batch;
mod executor;
mod inline;
mod journal;
mod reread;
mod run;
mod serve;
mod web;

pub use batch::run as run_batch;
pub use journal::{Question, journal};
pub use run::{RunOptions, run as run_job};
pub use serve::serve;

use std::sync::Arc;

use crate::deployment::{Backend, Deployment};
use crate::execution::{Registry, WorkerStart};
use crate::exit::Exit;
use crate::observe::exporter::Exporter;
use crate::observe::metrics::Counters;
use crate::observe::{event, log_writer};
use crate::process::control_socket::{Bundle, ControlSocket, Role};
use crate::process::hygiene;

/// A process that a supervisor has started.
struct Child {
    bundle: Bundle,
    control: ControlSocket,
    deployment: Deployment,
}

/// The whole life of such a process; what went wrong is said on standard error.
pub fn run_child(role: Role, registry: &Registry, worker_start: Option<&WorkerStart>) -> Exit {
    let serve = match role {
        Role::Web => web::serve_web,
        Role::Executor => executor::serve_executor,
    };
    let role = role.as_str();
    let begun = begin_child(role, registry).map(|mut child| {
        child.deployment.worker_start = worker_start.cloned();
        child
    });
    begun.and_then(serve).unwrap_or_else(|message| {
        log_writer::say(format!("cofferdam {role}: {message}\n"));
        Exit::Failed
    })
}

fn begin_child(role: &'static str, registry: &Registry) -> Result<Child, String> {
    let io = |error: std::io::Error| error.to_string();
    // Nobody may look into this process before it holds a secret.
    hygiene::begin_child().map_err(io)?;
    let (bundle, control) = Bundle::receive(hygiene::take_stdin().map_err(io)?)?;
    let deployment = Deployment::from_bundle(&bundle, registry)?;
    log_writer::start(deployment.config.observability.log, role, &bundle.log_mark());
    Ok(Child { bundle, control, deployment })
}

/// Exports spans of the jobs that end at this backend, until it is dropped.
fn exporter(
    deployment: &Deployment,
    backend: &Backend,
    counters: Arc<Counters>,
) -> Result<Option<Exporter>, String> {
    let producer = backend.producer.clone();
    let start = |file| Exporter::start(file, counters, Box::new(move || producer.take_traced()));
    let started = deployment.config.observability.traces.file.as_ref().map(start);
    started.transpose().map_err(|error| format!("the thread of traces: {error}"))
}

/// The first words of a service to its log.
fn say_starting(deployment: &Deployment) {
    let profile = crate::config::profile(&deployment.config);
    event(log::Level::Info, "lifecycle.starting").field("profile", &profile).emit();
    deployment.promise().iter().for_each(|promise| log::info!("{promise}"));
}
