//! One checklist a process: what a supervisor, a web process, an executor do from their start to their end.

mod batch;
mod executor;
mod inline;
mod serve;
mod web;

pub use batch::run as run_batch;
pub use serve::serve;

use crate::deployment::Deployment;
use crate::execution::Registry;
use crate::exit::Exit;
use crate::observe::{event, log_writer};
use crate::process::bundle::Bundle;
use crate::process::control_socket::ControlSocket;
use crate::process::hygiene;

/// The whole life of a process that a supervisor has started; what went wrong is said on standard error.
pub fn run_child(role: &'static str, registry: &Registry) -> Exit {
    let end = begin_child(role, registry).and_then(|(bundle, control, deployment)| match role {
        "web" => web::serve_web(bundle, control, &deployment),
        _ => executor::serve_executor(bundle, control, &deployment),
    });
    end.unwrap_or_else(|message| {
        log_writer::say(format!("cofferdam {role}: {message}\n"));
        Exit::Failed
    })
}

fn begin_child(
    role: &'static str,
    registry: &Registry,
) -> Result<(Bundle, ControlSocket, Deployment), String> {
    let io = |error: std::io::Error| error.to_string();
    // Nobody may look into this process before it holds a secret.
    hygiene::begin_child().map_err(io)?;
    let (bundle, control) = Bundle::receive(hygiene::take_stdin().map_err(io)?)?;
    let deployment = Deployment::from_bundle(&bundle, registry)?;
    log_writer::start(deployment.config.observability.log, role);
    Ok((bundle, control, deployment))
}

/// The first words of a service to its log.
fn say_starting(deployment: &Deployment) {
    let profile = crate::config::profile(&deployment.config);
    event(log::Level::Info, "lifecycle.starting").field("profile", &profile).emit();
    deployment.promise().iter().for_each(|promise| log::info!("{promise}"));
}
