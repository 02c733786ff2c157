//! A web process: the gate, the broker's seat and the channel's listener; under a supervisor, or by itself.

use std::net::TcpListener;

use super::ended;
use crate::channel::{ChannelServer, ServerConfig};
use crate::deployment::{Backend, Setup};
use crate::execution::Registry;
use crate::exit::Exit;
use crate::observe::{event, log_writer};
use crate::ports::{Consumer, Rules, Upkeep};
use crate::process::bundle::Bundle;
use crate::process::hygiene::{self, Signals, keep_secrets, raise_descriptor_limit};
use crate::process::listener::listen;
use crate::process::private_dir::PrivateDir;
use crate::web::{Front, Master};

/// The whole life of a web process that a supervisor has started.
#[must_use]
pub fn run_web_child(registry: &Registry) -> Exit {
    ended("web", serve_web(registry))
}

fn serve_web(registry: &Registry) -> Result<Exit, String> {
    let io = |error: std::io::Error| error.to_string();
    // Nobody may look into this process before it holds a secret.
    hygiene::begin_child().map_err(io)?;
    // The public listener came as standard output: nothing may write to it from now on.
    let listener = TcpListener::from(hygiene::take_stdout().map_err(io)?);
    let (mut bundle, control) = Bundle::receive(hygiene::take_stdin().map_err(io)?)?;
    let setup = Setup::from_bundle(&bundle, registry)?;
    log_writer::start(setup.config.observability.log, "web");
    if setup.uses_redis() {
        let backend = Backend::Redis(setup.redis_of_bundle(&mut bundle, "")?);
        return serve(Front::new(&setup, listener, &backend, Master::Supervisor(control))?, &bundle.place);
    }
    let broker = setup.broker(Rules::from_config(&setup.config));
    let backend = Backend::Memory(broker.clone());
    let front = Front::new(&setup, listener, &backend, Master::Supervisor(control))?;
    let platform = &setup.config.runtime.platform;
    let bell = front.bell();
    let config = ServerConfig {
        secrets: bundle.secrets,
        ipc: platform.execution_ipc.clone(),
        lane_state_max: platform.kv.lane_state_max_bytes,
    };
    let connect = move |group| Box::new(broker.consumer(group, bell.clone())) as Box<dyn Consumer>;
    let channel = ChannelServer::bind(config, front.counters(), Box::new(connect))?;
    serve(front.with_channel(channel)?, &bundle.place)
}

fn serve(front: Front, sockets: &str) -> Result<Exit, String> {
    let exit = front.run(std::path::Path::new(sockets));
    log_writer::settle();
    exit
}

/// `serve` in one process: the same web and workers, no channel.
#[must_use]
pub fn serve_inline(setup: &Setup) -> Exit {
    serve_here(setup, |setup, backend| Ok(Some(Box::new(setup.inline_executors(backend, "")?))))
}

/// `web` by itself: executors are where they are.
#[must_use]
pub fn serve_web_alone(setup: &Setup) -> Exit {
    serve_here(setup, |_, _| Ok(None))
}

type Beside = Result<Option<Box<dyn Upkeep>>, String>;

/// A front that signals stop, and what lives beside it.
fn serve_here(setup: &Setup, beside: impl FnOnce(&Setup, &Backend) -> Beside) -> Exit {
    let exit = try_serve_here(setup, beside).unwrap_or_else(|message| {
        log_writer::say(format!("cofferdam: {message}\n"));
        Exit::Failed
    });
    event(log::Level::Info, "lifecycle.stopped").emit();
    log_writer::settle();
    exit
}

fn try_serve_here(setup: &Setup, beside: impl FnOnce(&Setup, &Backend) -> Beside) -> Result<Exit, String> {
    event(log::Level::Info, "lifecycle.starting")
        .field("profile", &crate::config::profile(&setup.config))
        .emit();
    if setup.uses_redis() {
        // The secret that jobs are signed with is here.
        keep_secrets().map_err(|error| error.to_string())?;
    } else {
        log::info!("memory backends in one process: jobs and state go with it");
    }
    raise_descriptor_limit();
    let signals = Signals::take().map_err(|error| error.to_string())?;
    let listener = listen(&setup.config.web)?;
    let sockets = PrivateDir::make()?;
    let backend = setup.backend("")?;
    let front = Front::new(setup, listener, &backend, Master::Signals(signals.stop))?;
    front.with_beside(beside(setup, &backend)?).run(sockets.path())
}
