//! An executor process whose broker is Redis: the engine on a thread of its own, since its calls may wait; here is only
//! who tells it to stop, a supervisor or a signal.

use std::io::Read;
use std::sync::{Arc, OnceLock};
use std::time::Duration;

use mio::net::UnixStream;
use mio::{Events, Interest, Poll, Token};

use super::recycle::RecyclePolicy;
use crate::bell::Bell;
use crate::clock::{millis, monotonic_millis};
use crate::deployment::Setup;
use crate::execution::{EngineThread, GIVE_BACK, Health};
use crate::exit::{Exit, say};
use crate::job::JobId;
use crate::observe::{event, log_writer};
use crate::process::control_socket::{ControlSocket, ToChild, ToParent};
use crate::process::hygiene;
use crate::redis_backend::RedisBroker;

const MASTER: Token = Token(0);
const WAKER: Token = Token(1);

/// Who tells it to stop.
pub(super) enum Master {
    Supervisor(ControlSocket),
    /// A byte a signal, and how long a drain may take.
    Signals(UnixStream, u64),
}

/// `cofferdam executor` by itself.
///
/// # Errors
/// It cannot start.
pub fn run_executor(setup: &Setup, group: usize) -> Result<Exit, String> {
    let io = |error: std::io::Error| error.to_string();
    hygiene::keep_secrets().map_err(io)?;
    hygiene::become_subreaper().map_err(io)?;
    let signals = hygiene::Signals::take().map_err(io)?;
    let broker = setup.redis(&setup.envelope()?, "")?;
    let patience = setup.config.runtime.platform.lifecycle.patience_ms();
    event(log::Level::Info, "lifecycle.starting")
        .field("profile", &crate::config::profile(&setup.config))
        .emit();
    let exit =
        serve_apart(setup, group, broker, Master::Signals(UnixStream::from_std(signals.stop), patience));
    event(log::Level::Info, "lifecycle.stopped").emit();
    log_writer::settle();
    exit
}

/// Serves until it is told to stop.
pub(super) fn serve_apart(
    setup: &Setup,
    group: usize,
    broker: RedisBroker,
    mut master: Master,
) -> Result<Exit, String> {
    let io = |error: std::io::Error| error.to_string();
    let mut poll = Poll::new().map_err(io)?;
    let bell = Bell::for_poll(&poll, WAKER).map_err(io)?;
    let both = Interest::READABLE | Interest::WRITABLE;
    match &mut master {
        Master::Supervisor(control) => {
            poll.registry().register(control.stream(), MASTER, both).map_err(io)?
        }
        Master::Signals(stream, _) => poll.registry().register(stream, MASTER, both).map_err(io)?,
    }
    let crew = setup.crew(group);
    let workers = crew.workers;
    let name = Arc::new(OnceLock::new());
    let named = name.clone();
    let connect = move |bell| {
        let consumer = broker.consumer(group, workers, bell).map_err(|error| error.to_string())?;
        let _ = named.set(consumer.id().to_owned());
        Ok(consumer)
    };
    let engine = EngineThread::start(crew, connect, None, bell.clone())?;
    let recycle = RecyclePolicy::new(setup.config.runtime.platform.process_groups[group].clone());
    let name = name.get().cloned().unwrap_or_default();
    let mut apart = Apart {
        engine,
        recycle,
        master,
        unsaid: Some(format!("{name} {workers}")),
        drain_until_ms: None,
        leaving: false,
        cut_at_ms: None,
    };
    let mut events = Events::with_capacity(16);
    loop {
        let now_ms = monotonic_millis();
        if let Some(exit) = apart.look(now_ms) {
            return Ok(exit);
        }
        bell.wait(&mut poll, &mut events, apart.wait(now_ms))?;
        apart.hear(monotonic_millis())?;
    }
}

struct Apart {
    engine: EngineThread,
    recycle: RecyclePolicy,
    master: Master,
    /// `Some` until it has said that it is ready: its name at the broker, and its workers.
    unsaid: Option<String>,
    /// `Some` iff it was told to stop: until then what runs may finish.
    drain_until_ms: Option<u64>,
    /// It may go, as it asked: what runs may take its time.
    leaving: bool,
    /// `Some` once what still ran was cut off.
    cut_at_ms: Option<u64>,
}

impl Apart {
    fn say_ready(&mut self, name: String) {
        match &mut self.master {
            // Should this process be lost, its leases need not run out: the supervisor tells its name.
            Master::Supervisor(control) => control.send(&ToParent::Ready(name)),
            Master::Signals(..) => {
                say(std::io::stdout(), &format!("ready executor pid={}\n", std::process::id()));
                event(log::Level::Info, "lifecycle.ready").field("consumer", &name).emit();
            }
        }
    }

    fn hear(&mut self, now_ms: u64) -> Result<(), String> {
        const GONE: &str = "the supervisor is gone";
        let mut until_ms = self.drain_until_ms;
        match &mut self.master {
            Master::Supervisor(control) => {
                control.flush();
                for message in control.read::<ToChild>().map_err(|_| GONE)? {
                    match message {
                        ToChild::Ping => control.send(&ToParent::Pong),
                        ToChild::Drain(millis) => until_ms = Some(now_ms + millis),
                        ToChild::Stop => until_ms = Some(now_ms),
                        ToChild::Leave => {
                            self.leaving = true;
                            self.engine.drain();
                        }
                        ToChild::Channel(_) | ToChild::Restarted(..) | ToChild::Gone(_) => {}
                    }
                }
                if control.has_ended() {
                    return Err(GONE.into());
                }
            }
            Master::Signals(stream, patience_ms) => {
                let mut bytes = [0; 16];
                while let Ok(read @ 1..) = stream.read(&mut bytes) {
                    // The second signal's deadline is now.
                    let again = read > 1 || until_ms.is_some();
                    until_ms = Some(if again { now_ms } else { now_ms + *patience_ms });
                }
            }
        }
        if until_ms != self.drain_until_ms {
            if self.drain_until_ms.is_none() {
                event(log::Level::Info, "lifecycle.draining").emit();
            }
            self.drain_until_ms = until_ms;
            self.engine.drain();
        }
        Ok(())
    }

    /// `Some` once it may end.
    fn look(&mut self, now_ms: u64) -> Option<Exit> {
        if self.engine.has_ended() {
            log::error!("the engine's thread has ended: this process is replaced");
            return Some(Exit::Failed);
        }
        let state = self.engine.state();
        if state.has_turned
            && let Some(name) = self.unsaid.take()
        {
            self.say_ready(name);
        }
        let stops = self.drain_until_ms.is_some() || self.leaving;
        if stops && state.health == Health::Drained {
            return Some(self.end(&state.cut_off));
        }
        if self.drain_until_ms.is_some_and(|until_ms| until_ms <= now_ms) {
            let cut_at_ms = *self.cut_at_ms.get_or_insert_with(|| {
                self.engine.cut_off();
                now_ms
            });
            if now_ms >= cut_at_ms + millis(GIVE_BACK) {
                let cut_off = self.engine.leave();
                return Some(self.end(&cut_off));
            }
        }
        if let Master::Supervisor(control) = &mut self.master
            && !stops
            && let Some(why) = self.recycle.asks(state.health, state.finished, now_ms)
        {
            control.send(&ToParent::Leaving(why));
        }
        None
    }

    fn end(&mut self, cut_off: &[JobId]) -> Exit {
        match &mut self.master {
            Master::Supervisor(control) => control.name_cut_off(cut_off),
            Master::Signals(..) => log_writer::name_cut_off(cut_off),
        }
        if cut_off.is_empty() { Exit::Done } else { Exit::CutOff }
    }

    fn wait(&self, now_ms: u64) -> Duration {
        const LOOK_EVERY_MS: u64 = 500;
        let due = self.drain_until_ms.map_or(LOOK_EVERY_MS, |until_ms| until_ms.saturating_sub(now_ms));
        Duration::from_millis(due.clamp(5, LOOK_EVERY_MS))
    }
}
