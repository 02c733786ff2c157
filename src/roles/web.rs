//! A web process: the gate, the broker's seat and the channel's listener, under a supervisor; and `inline`, where the
//! executors are threads beside it.

use std::net::TcpListener;
use std::path::Path;
use std::time::Duration;

use super::inline;
use crate::channel::{ChannelServer, ServerConfig};
use crate::config::secret::Secret;
use crate::deployment::{Deployment, Opening};
use crate::execution::Registry;
use crate::exit::{Exit, ended};
use crate::observe::{event, log_writer};
use crate::process::bundle::Bundle;
use crate::process::hygiene::{self, Signals, keep_secrets, raise_descriptor_limit};
use crate::process::listener::listen;
use crate::process::private_dir::PrivateDir;
use crate::web::{Commander, WebProcess};

/// The whole life of a web process that a supervisor has started.
#[must_use]
pub fn run_web_child(registry: &Registry) -> Exit {
    super::ended("web", serve_web(registry))
}

fn serve_web(registry: &Registry) -> Result<Exit, String> {
    let io = |error: std::io::Error| error.to_string();
    // Nobody may look into this process before it holds a secret.
    hygiene::begin_child().map_err(io)?;
    // The public listener came as standard output: nothing may write to it from now on.
    let listener = TcpListener::from(hygiene::take_stdout().map_err(io)?);
    let (mut bundle, control) = Bundle::receive(hygiene::take_stdin().map_err(io)?)?;
    let deployment = Deployment::from_bundle(&bundle, registry)?;
    log_writer::start(deployment.config.observability.log, "web");
    // Behind the channel secrets of the groups: what is signed with at rest.
    let envelopes = bundle.secrets.split_off(deployment.groups().len());
    let envelopes =
        envelopes.iter().map(|envelope| Secret::new(*envelope.expose())).collect::<Result<_, _>>()?;
    let backend = deployment.open(Opening { envelopes, ..Opening::default() })?;
    let commander = Commander::Supervisor(control);
    let mut web =
        WebProcess::new(&deployment, listener, &backend, commander, Path::new(&bundle.private_dir))?;
    let platform = &deployment.config.runtime.platform;
    let config = ServerConfig {
        secrets: bundle.secrets,
        ipc: platform.execution_ipc.clone(),
        lane_state_max: platform.kv.lane_state_max_bytes,
        processes: platform.process_groups.iter().map(|group| group.processes).collect(),
    };
    let (consumers, bell) = (backend.consumers.clone(), web.reactor.bell());
    let connect = move |group| consumers(group, bell.clone());
    web.channel = Some(ChannelServer::bind(config, web.counters.clone(), Box::new(connect))?);
    web.run()
}

/// `serve` in one process: the same web and workers, no channel.
#[must_use]
pub fn serve_inline(deployment: &Deployment) -> Exit {
    let exit = try_serve_inline(deployment).unwrap_or_else(|message| ended(Err(message)));
    event(log::Level::Info, "lifecycle.stopped").emit();
    exit
}

fn try_serve_inline(deployment: &Deployment) -> Result<Exit, String> {
    let io = |error: std::io::Error| error.to_string();
    super::say_starting(deployment);
    // A secret may be here, and handlers are.
    keep_secrets().map_err(io)?;
    raise_descriptor_limit();
    let signals = Signals::take().map_err(io)?;
    let listener = listen(&deployment.config.web)?;
    let private_dir = PrivateDir::make()?;
    let graceful = Duration::from_millis(deployment.config.runtime.platform.lifecycle.patience_ms());
    let backend = deployment.open(Opening::default())?;
    let commander = Commander::signals(signals, graceful);
    let mut web = WebProcess::new(deployment, listener, &backend, commander, private_dir.path())?;
    let executors = inline::start(deployment, &backend, &web.reactor.bell())?;
    web.is_sound = Box::new(move || executors.are_sound());
    web.run()
}
