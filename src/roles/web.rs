//! A web process: the gate, the broker's seat and the channel's listener, under a supervisor; and `inline`, where the
//! executors are threads beside it.

use std::net::TcpListener;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use super::reread::Reread;
use super::{Child, inline};
use crate::deployment::Deployment;
use crate::exit::Exit;
use crate::mac::wipe_stack;
use crate::observe::{event, log_writer};
use crate::process::hygiene::{
    Signals, hear_of_limits, raise_descriptor_limit, set_data_apart, settle_prints, take_stdout,
};
use crate::process::listener::listen;
use crate::process::private_dir::PrivateDir;
use crate::web::{Commander, WebProcess};

pub(super) fn serve_web(child: Child) -> Result<Exit, String> {
    let Child { mut bundle, control, deployment } = child;
    // The public listener came as standard output, which is standard error from now on.
    let listener = TcpListener::from(take_stdout().map_err(|error| error.to_string())?);
    let at_rest = bundle.take_at_rest(deployment.groups().len())?;
    let journal_says = |why: String| {
        log_writer::say(format!("cofferdam web: {why}\n"));
        Exit::Usage
    };
    let has_journal = deployment.journal().is_some();
    let backend = match deployment.open(at_rest, "") {
        // Another process would fare no better.
        Err(why) if has_journal => return Ok(journal_says(why)),
        backend => backend?,
    };
    let seat = backend.seat.clone();
    let commander = Commander::Supervisor(control);
    let mut web =
        WebProcess::new(&deployment, listener, &backend, commander, Path::new(&bundle.private_dir))?;
    let (counters, bell) = (web.counters.clone(), web.reactor.bell());
    let _exporter = super::exporter(&deployment, &backend, counters.clone())?;
    web.channel = Some(deployment.channel(bundle.secrets, &backend, counters, bell)?);
    drop(backend);
    wipe_stack();
    match web.run() {
        Err(why) if has_journal && !seat.is_sound() => Ok(journal_says(why)),
        exit => exit,
    }
}

/// `serve` in one process: the same web and workers, no channel.
pub(super) fn serve_inline(deployment: &Deployment) -> Result<Exit, String> {
    let exit = try_serve_inline(deployment);
    event(log::Level::Info, "lifecycle.stopped").emit();
    exit
}

fn try_serve_inline(deployment: &Deployment) -> Result<Exit, String> {
    let io = |error: std::io::Error| error.to_string();
    super::say_starting(deployment);
    set_data_apart("inline").map_err(io)?;
    hear_of_limits().map_err(io)?;
    raise_descriptor_limit();
    let signals = Signals::take().map_err(io)?;
    let (listener, is_lent) = listen(&deployment.config.web)?;
    let private_dir = PrivateDir::make()?;
    let graceful = Duration::from_millis(deployment.platform().lifecycle.patience_ms());
    let shared = Arc::new(deployment.clone());
    let roots = deployment.root_secrets()?;
    wipe_stack();
    let mut reread = Reread::new(shared, &roots);
    let backend = deployment.open(deployment.at_rest(&roots), "")?;
    drop(roots);
    wipe_stack();
    let rekey = backend.rekey.clone();
    let read_again = move || {
        reread.secrets().iter().for_each(|roots| rekey(&reread.deployment.at_rest(roots)));
        wipe_stack();
        reread.tokens()
    };
    let commander = Commander::signals(signals, graceful, is_lent, Box::new(read_again));
    let mut web = WebProcess::new(deployment, listener, &backend, commander, private_dir.path())?;
    let _exporter = super::exporter(deployment, &backend, web.counters.clone())?;
    let executors = inline::start(deployment, &backend, &web.reactor.bell())?;
    web.is_sound = Box::new(move || executors.are_sound());
    let exit = web.run();
    deployment.end_workers();
    settle_prints();
    exit
}
