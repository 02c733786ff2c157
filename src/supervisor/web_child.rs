//! A web process: the gate, the broker and the channel's listener, under a supervisor.

use std::net::TcpListener;

use super::child::Bundle;
use super::hygiene;
use crate::app::Backend;
use crate::channel::{ChannelServer, ServerConfig};
use crate::cli::Exit;
use crate::handler::Registry;
use crate::observe::log_writer;
use crate::ports::{Consumer, Rules};
use crate::web::{Front, Master};

/// The whole life of a web process that a supervisor has started.
#[must_use]
pub fn run_web_child(registry: &Registry) -> Exit {
    super::child::ended("web", serve_web(registry))
}

fn serve_web(registry: &Registry) -> Result<Exit, String> {
    let io = |error: std::io::Error| error.to_string();
    // Nobody may look into this process before it holds a secret.
    hygiene::begin_child().map_err(io)?;
    // The public listener came as standard output: nothing may write to it from now on.
    let listener = TcpListener::from(hygiene::take_stdout().map_err(io)?);
    let (mut bundle, control) = Bundle::receive(hygiene::take_stdin().map_err(io)?)?;
    let setup = bundle.setup(registry)?;
    log_writer::start(setup.config.observability.log, "web");
    if setup.uses_redis() {
        let backend = Backend::Redis(bundle.redis(&setup, "")?);
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
