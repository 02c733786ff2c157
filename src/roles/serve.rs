//! `serve` with separate processes: the supervisor's own story, as a checklist.

use std::net::TcpListener;
use std::time::Duration;

use mio::net::UnixStream;
use mio::{Events, Interest, Poll, Token};

use crate::clock::monotonic_millis;
use crate::config::secret::Secret;
use crate::deployment::Setup;
use crate::exit::{Exit, say};
use crate::observe::{event, log_writer};
use crate::process::bundle::Role;
use crate::process::control_socket::ToChild;
use crate::process::hygiene::{self, Signals};
use crate::process::listener::listen;
use crate::process::private_dir::PrivateDir;
use crate::process::systemd::Notifier;
use crate::supervisor::fleet::{Fleet, FleetEvent};
use crate::supervisor::service_state::{Action, Event, Phase, Phases};

const STOP: Token = Token(0);
const CHILD: Token = Token(1);
const FIRST_CHILD: usize = 16;
const WEB: usize = 0;

/// Runs until it is told to stop, or a child cannot be kept running.
#[must_use]
pub fn serve(setup: &Setup) -> Exit {
    let exit = supervise(setup).unwrap_or_else(|message| {
        log_writer::say(format!("cofferdam: {message}\n"));
        Exit::Failed
    });
    log_writer::settle();
    exit
}

fn supervise(setup: &Setup) -> Result<Exit, String> {
    let io = |error: std::io::Error| error.to_string();
    event(log::Level::Info, "lifecycle.starting")
        .field("profile", &crate::config::profile(&setup.config))
        .emit();
    if setup.names_redis() && !setup.uses_redis() {
        log::info!("mixed backends: state changes are kept first, the terminal status after them");
    }
    if !setup.uses_redis() {
        log::info!("memory backends: jobs and state survive executors, and go with the web process");
    }
    // Before the secret exists, nobody may look into this process any more.
    hygiene::keep_secrets().map_err(io)?;
    hygiene::become_subreaper().map_err(io)?;
    hygiene::raise_descriptor_limit();
    let signals = Signals::take().map_err(io)?;
    // The listener before any child: a replaced web process refuses no connection.
    let listener = listen(&setup.config.web)?;
    let address = listener.local_addr().map_err(io)?;
    let sockets = PrivateDir::make()?;
    // One secret for this run; children get what their role needs.
    let root = setup.root_secret()?;
    let mut fleet = fleet(setup, &root, &listener, &sockets)?;
    drop(root);
    let poll = Poll::new().map_err(io)?;
    let mut stop = UnixStream::from_std(signals.stop);
    let mut child = UnixStream::from_std(signals.child);
    poll.registry().register(&mut stop, STOP, Interest::READABLE).map_err(io)?;
    poll.registry().register(&mut child, CHILD, Interest::READABLE).map_err(io)?;
    let lifecycle = &setup.config.runtime.platform.lifecycle;
    let exit = Supervisor {
        fleet: &mut fleet,
        phases: Phases::new(monotonic_millis() + lifecycle.ready_timeout_ms, lifecycle.patience_ms()),
        ready_line: format!("ready http://{address} pid={}\n", std::process::id()),
        notifier: Notifier::from_environment(),
        channel: None,
        is_redis: setup.uses_redis(),
        web_drained: None,
        gave_up: None,
    }
    .run(poll, stop, child);
    // Whatever happened: no child outlives this.
    fleet.kill_all();
    event(log::Level::Info, "lifecycle.stopped").emit();
    exit
}

/// Adds the executors of every group.
pub(super) fn add_executors(
    fleet: &mut Fleet,
    setup: &Setup,
    root: &Secret,
    inside: &str,
) -> Result<(), String> {
    for (index, group) in setup.config.runtime.platform.process_groups.iter().enumerate() {
        for _ in 0..group.processes {
            let bundle = setup.bundle(root, &[index], inside)?;
            fleet.add(Role::Executor(index), group.name.clone(), bundle.encode(), None);
        }
    }
    Ok(())
}

fn fleet(
    setup: &Setup,
    root: &Secret,
    listener: &TcpListener,
    sockets: &PrivateDir,
) -> Result<Fleet, String> {
    let platform = &setup.config.runtime.platform;
    let mut fleet = Fleet::new(platform.lifecycle.clone(), platform.execution_ipc.heartbeat_ms, FIRST_CHILD);
    let groups: Vec<usize> = (0..platform.process_groups.len()).collect();
    let web = setup.bundle(root, &groups, &sockets.path().display().to_string())?;
    let listener = listener.try_clone().map_err(|error| error.to_string())?;
    fleet.add(Role::Web, "web".into(), web.encode(), Some(listener));
    add_executors(&mut fleet, setup, root, "")?;
    Ok(fleet)
}

struct Supervisor<'a> {
    fleet: &'a mut Fleet,
    phases: Phases,
    ready_line: String,
    notifier: Notifier,
    /// Where web's channel listens.
    channel: Option<String>,
    /// Jobs are in Redis: they go with no process, and executors finish theirs by themselves.
    is_redis: bool,
    /// Web's drain is over, with so many jobs cut off.
    web_drained: Option<u64>,
    /// Why a child cannot be kept running.
    gave_up: Option<String>,
}

impl Supervisor<'_> {
    fn run(mut self, mut poll: Poll, mut stop: UnixStream, mut child: UnixStream) -> Result<Exit, String> {
        let mut events = Events::with_capacity(64);
        loop {
            let now_ms = monotonic_millis();
            for event in self.fleet.tick(poll.registry(), now_ms) {
                self.on_fleet(event, now_ms);
            }
            self.look(now_ms);
            if let Phase::Over(exit) = self.phases.phase() {
                return self.gave_up.map_or(Ok(exit), Err);
            }
            let mut wait = self.wait(now_ms);
            // A stop and its end interrupt the wait. What has come meanwhile is read before any deadline is judged.
            while let Err(error) = poll.poll(&mut events, Some(wait)) {
                if error.kind() != std::io::ErrorKind::Interrupted {
                    return Err(format!("the event loop: {error}"));
                }
                wait = Duration::ZERO;
            }
            let now_ms = monotonic_millis();
            for event in &events {
                let happened = match event.token() {
                    STOP => {
                        (0..drain_bytes(&mut stop)).for_each(|_| self.on(Event::Signal, now_ms));
                        Vec::new()
                    }
                    CHILD => {
                        drain_bytes(&mut child);
                        self.fleet.reap(now_ms)
                    }
                    Token(token) if self.fleet.owns(token) => self.fleet.on_event(token, now_ms),
                    Token(_) => Vec::new(),
                };
                for event in happened {
                    self.on_fleet(event, now_ms);
                }
            }
        }
    }

    fn wait(&mut self, now_ms: u64) -> Duration {
        const LONGEST_MS: u64 = 60_000;
        let phase = self.phases.due_ms().map_or(u64::MAX, |due| due.saturating_sub(now_ms));
        let due = phase.min(self.fleet.next_due_ms(now_ms)).min(self.notifier.tick(now_ms));
        Duration::from_millis(due.clamp(1, LONGEST_MS))
    }

    /// What follows from where everything stands.
    fn look(&mut self, now_ms: u64) {
        // A new executor is told where to connect with its first turn; telling it again changes nothing.
        if let Some(address) = self.channel.clone() {
            self.fleet.tell_new(&ToChild::Channel(address));
        }
        if self.fleet.not_ready().is_empty() {
            self.on(Event::AllReady, now_ms);
        }
        if self.fleet.executors_stopped() {
            if let Some(count) = self.web_drained.take() {
                self.on(Event::Drained(count), now_ms);
            }
            self.on(Event::ExecutorsGone, now_ms);
        }
        if self.fleet.all_stopped() {
            self.on(Event::WebGone, now_ms);
        }
        if self.phases.due_ms().is_some_and(|due_ms| due_ms <= now_ms) {
            self.on(Event::Due, now_ms);
        }
    }

    fn on_fleet(&mut self, happened: FleetEvent, now_ms: u64) {
        match happened {
            FleetEvent::Ready(slot, address) => match self.fleet.role(slot) {
                Role::Web if self.is_redis => self.drain_web(now_ms),
                Role::Web => {
                    self.fleet.send_executors(&ToChild::Channel(address.clone()));
                    self.channel = Some(address);
                    self.drain_web(now_ms);
                }
                Role::Executor(_) => {}
            },
            FleetEvent::Replaced(slot, reason) => {
                let group = self.fleet.name(slot).to_owned();
                if self.fleet.role(slot) == Role::Web && !self.is_redis {
                    self.channel = None;
                    log::warn!("the web process is replaced: jobs and state in memory are gone with it");
                    self.on(Event::WebLost, now_ms);
                }
                self.fleet.send(WEB, &ToChild::Restarted(group, reason.into()));
            }
            FleetEvent::Recycled(slot, why) => {
                let group = self.fleet.name(slot).to_owned();
                self.fleet.send(WEB, &ToChild::Restarted(group, why.as_str().into()));
            }
            FleetEvent::CutOff(jobs) => {
                log_writer::name_cut_off(&jobs);
                self.on(Event::CutOff, now_ms);
            }
            // In memory web hands its jobs on, and names those that it cannot.
            FleetEvent::Broke(_) if !self.is_redis => {}
            FleetEvent::Broke(name) => {
                self.fleet.send(WEB, &ToChild::Gone(name));
                self.on(Event::CutOff, now_ms);
            }
            // On Redis what runs is the executors' to finish: the drain is over when they have ended, too.
            FleetEvent::Drained(count) if self.is_redis => self.web_drained = Some(count),
            FleetEvent::Drained(count) => self.on(Event::Drained(count), now_ms),
            FleetEvent::GaveUp(why) => {
                self.gave_up = Some(why);
                self.on(Event::GaveUp, now_ms);
            }
        }
    }

    /// A web process that came in the middle of a drain is told of it.
    fn drain_web(&mut self, now_ms: u64) {
        if let Phase::Draining { until_ms } = self.phases.phase() {
            self.fleet.send(WEB, &ToChild::Drain(until_ms.saturating_sub(now_ms)));
        }
    }

    /// Asks the table, and does what it says.
    fn on(&mut self, happened: Event, now_ms: u64) {
        match self.phases.on(happened, now_ms) {
            Action::None => {}
            Action::SayReady => {
                say(std::io::stdout(), &self.ready_line);
                let line = self.ready_line.trim();
                event(log::Level::Info, "lifecycle.ready").field("line", line).emit();
                self.notifier.ready(line);
            }
            Action::SayLate => {
                let late = self.fleet.not_ready().join(", ");
                log_writer::say(format!("cofferdam: not ready in time: {late}\n"));
            }
            Action::Drain(patience_ms) => {
                event(log::Level::Info, "lifecycle.draining").number("deadline_ms", patience_ms).emit();
                self.notifier.stopping(patience_ms);
                self.fleet.send(WEB, &ToChild::Drain(patience_ms));
                if self.is_redis {
                    // What is queued stays queued; what runs is theirs to finish.
                    self.fleet.stop(false, patience_ms, now_ms);
                }
            }
            // Web knows which jobs are cut off: its deadline is now, and it names them at once.
            Action::Force => {
                event(log::Level::Warn, "lifecycle.forced").emit();
                self.fleet.send(WEB, &ToChild::Drain(0));
                if self.is_redis {
                    self.fleet.stop(false, 0, now_ms);
                }
            }
            Action::StopExecutors if self.is_redis => {}
            Action::StopExecutors => self.fleet.stop(false, 0, now_ms),
            Action::StopWeb => self.fleet.stop(true, 0, now_ms),
            Action::SayCutOff => event(log::Level::Warn, "lifecycle.forced")
                .field("cause", "what still ran was cut off")
                .emit(),
        }
    }
}

/// How many bytes, that is signals, were there.
fn drain_bytes(stream: &mut UnixStream) -> usize {
    let mut buffer = [0; 64];
    let mut total = 0;
    while let Ok(read) = std::io::Read::read(stream, &mut buffer) {
        if read == 0 {
            break;
        }
        total += read;
    }
    total
}
