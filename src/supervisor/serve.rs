//! `serve` with separate processes: the supervisor's own story, as a checklist.

use std::net::TcpListener;
use std::time::Duration;

use mio::net::UnixStream;
use mio::{Events, Interest, Poll, Token};

use super::child::{Bundle, Role};
use super::control::ToChild;
use super::fleet::{Fleet, FleetEvent};
use super::hygiene::{self, Signals};
use super::socket_dir::SocketDir;
use crate::app::Setup;
use crate::channel::keys::GroupSecret;
use crate::cli::{Exit, say};
use crate::clock::{Clock, monotonic_millis};
use crate::config::secret::Secret;
use crate::job::JobId;
use crate::limits::LISTEN_BACKLOG;
use crate::observe::{event, log_writer};

const STOP: Token = Token(0);
const CHILD: Token = Token(1);
const FIRST_CHILD: usize = 16;
const WEB: usize = 0;

/// Runs until it is told to stop, or a child cannot be kept running.
#[must_use]
pub fn serve(setup: &Setup) -> Exit {
    let exit = supervise(setup).unwrap_or_else(|message| {
        say(std::io::stderr(), &format!("cofferdam: {message}\n"));
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
    log::info!("memory backends: jobs and state survive executors, and go with the web process");
    // Before the secret exists, nobody may look into this process any more.
    hygiene::keep_secrets().map_err(io)?;
    hygiene::become_subreaper().map_err(io)?;
    hygiene::raise_descriptor_limit();
    let signals = Signals::take().map_err(io)?;
    // The listener before any child: a replaced web process refuses no connection.
    let listener = listen(&setup.config.web.bind)?;
    let address = listener.local_addr().map_err(io)?;
    let sockets = SocketDir::make()?;
    // One secret for this run; children get what their role needs.
    let root = root_secret(setup)?;
    let mut fleet = fleet(setup, &root, &listener, &sockets)?;
    drop(root);
    let poll = Poll::new().map_err(io)?;
    let mut stop = UnixStream::from_std(signals.stop);
    let mut child = UnixStream::from_std(signals.child);
    poll.registry().register(&mut stop, STOP, Interest::READABLE).map_err(io)?;
    poll.registry().register(&mut child, CHILD, Interest::READABLE).map_err(io)?;
    let exit = Supervisor {
        fleet: &mut fleet,
        setup,
        ready_line: Some(format!("ready http://{address} pid={}\n", std::process::id())),
        started_ms: monotonic_millis(),
        channel: None,
        stopping: Stopping::No,
        forced: false,
        exit: Exit::Done,
    }
    .run(poll, stop, child);
    // Whatever happened: no child outlives this.
    fleet.kill_all();
    event(log::Level::Info, "lifecycle.stopped").emit();
    exit
}

/// Binds the public address with a backlog that bridges the replacement of web.
pub(crate) fn listen(address: &str) -> Result<TcpListener, String> {
    let listener = TcpListener::bind(address).map_err(|error| format!("web.bind {address}: {error}"))?;
    rustix::net::listen(&listener, LISTEN_BACKLOG).map_err(|error| format!("web.bind {address}: {error}"))?;
    listener.set_nonblocking(true).map_err(|error| format!("web.bind {address}: {error}"))?;
    Ok(listener)
}

pub(super) fn root_secret(setup: &Setup) -> Result<Secret, String> {
    match &setup.config.runtime.platform.execution_ipc.auth.secret_file {
        Some(file) => Secret::read(std::path::Path::new(file)),
        None => Secret::generate(),
    }
}

/// The bundle of a child with these groups' secrets.
pub(super) fn bundle(setup: &Setup, root: &Secret, groups: &[usize], sockets: &str) -> Bundle {
    let names = setup.groups();
    Bundle {
        group: groups.first().and_then(|group| u16::try_from(*group).ok()).unwrap_or(0),
        clock_offset: match setup.clock {
            Clock::System { offset } => offset,
            Clock::Manual(_) => 0,
        },
        config: setup.config_text.to_string(),
        secrets: groups.iter().map(|group| GroupSecret::derive(root, &names[*group])).collect(),
        socket_dir: sockets.to_owned(),
    }
}

/// Adds the executors of every group.
pub(super) fn add_executors(fleet: &mut Fleet, setup: &Setup, root: &Secret) {
    for (index, group) in setup.config.runtime.platform.process_groups.iter().enumerate() {
        for _ in 0..group.processes {
            let bundle = bundle(setup, root, &[index], "");
            fleet.add(Role::Executor(index), group.name.clone(), bundle.encode(), None);
        }
    }
}

fn fleet(setup: &Setup, root: &Secret, listener: &TcpListener, sockets: &SocketDir) -> Result<Fleet, String> {
    let platform = &setup.config.runtime.platform;
    let mut fleet = Fleet::new(platform.lifecycle.clone(), platform.execution_ipc.heartbeat_ms, FIRST_CHILD);
    let groups: Vec<usize> = (0..platform.process_groups.len()).collect();
    let web = bundle(setup, root, &groups, &sockets.path().display().to_string());
    let listener = listener.try_clone().map_err(|error| error.to_string())?;
    fleet.add(Role::Web, "web".into(), web.encode(), Some(listener));
    add_executors(&mut fleet, setup, root);
    Ok(fleet)
}

/// Term, deadline and kill are states, not sleeps.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Stopping {
    No,
    /// Web finishes the jobs; past the deadline everything is cut off.
    Draining {
        until_ms: u64,
    },
    /// Executors end.
    Executors,
    /// Web ends, the last.
    Web,
}

struct Supervisor<'a> {
    fleet: &'a mut Fleet,
    setup: &'a Setup,
    /// `Some` until it was printed.
    ready_line: Option<String>,
    started_ms: u64,
    /// Where web's channel listens.
    channel: Option<String>,
    stopping: Stopping,
    /// A second signal has come.
    forced: bool,
    exit: Exit,
}

impl Supervisor<'_> {
    fn run(mut self, mut poll: Poll, mut stop: UnixStream, mut child: UnixStream) -> Result<Exit, String> {
        let mut events = Events::with_capacity(64);
        loop {
            let now_ms = monotonic_millis();
            for event in self.fleet.tick(poll.registry(), now_ms) {
                self.on_event(event, now_ms)?;
            }
            if let Some(exit) = self.step(now_ms) {
                return Ok(exit);
            }
            let wait =
                Duration::from_millis(self.fleet.next_due_ms(now_ms).clamp(1, self.longest_wait(now_ms)));
            match poll.poll(&mut events, Some(wait)) {
                Ok(()) => {}
                Err(error) if error.kind() == std::io::ErrorKind::Interrupted => {}
                Err(error) => return Err(format!("the event loop: {error}")),
            }
            let now_ms = monotonic_millis();
            for event in &events {
                let happened = match event.token() {
                    STOP => {
                        for _ in 0..drain_bytes(&mut stop) {
                            self.told_to_stop(now_ms);
                        }
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
                    self.on_event(event, now_ms)?;
                }
            }
        }
    }

    fn longest_wait(&self, now_ms: u64) -> u64 {
        let ready_timeout = self.setup.config.runtime.platform.lifecycle.ready_timeout_ms;
        match (self.stopping, &self.ready_line) {
            (Stopping::Draining { until_ms }, _) => until_ms.saturating_sub(now_ms).max(1),
            (Stopping::No, Some(_)) => (self.started_ms + ready_timeout).saturating_sub(now_ms).max(1),
            (Stopping::No | Stopping::Executors | Stopping::Web, _) => 60_000,
        }
    }

    /// A first signal drains, a second one forces.
    fn told_to_stop(&mut self, now_ms: u64) {
        /// Web answers within a turn of its loop, unless it hangs.
        const FORCED_MS: u64 = 500;
        let lifecycle = &self.setup.config.runtime.platform.lifecycle;
        if self.stopping != Stopping::No {
            event(log::Level::Warn, "lifecycle.forced").emit();
            self.exit = Exit::CutOff;
            if matches!(self.stopping, Stopping::Draining { .. })
                && !std::mem::replace(&mut self.forced, true)
            {
                // Web knows which jobs are cut off: its deadline is now, and it names them at once.
                self.fleet.send(WEB, &ToChild::Drain(0));
                self.stopping = Stopping::Draining { until_ms: now_ms + FORCED_MS };
            } else {
                self.fleet.kill_all();
            }
            return;
        }
        let patience = if lifecycle.drain_inflight { lifecycle.graceful_timeout_ms } else { 0 };
        event(log::Level::Info, "lifecycle.draining").number("deadline_ms", patience).emit();
        self.fleet.send(WEB, &ToChild::Drain(patience));
        /// Web keeps the deadline itself; this is for a web that does not.
        const SLACK_MS: u64 = 1_500;
        self.stopping = Stopping::Draining { until_ms: now_ms + patience + SLACK_MS };
        if self.ready_line.is_some() {
            self.drained(&[], now_ms);
        }
    }

    fn on_event(&mut self, event: FleetEvent, now_ms: u64) -> Result<(), String> {
        match event {
            FleetEvent::Ready(slot, address) => match self.fleet.role(slot) {
                Role::Web => {
                    self.fleet.send_all(false, &ToChild::Channel(address.clone()));
                    self.channel = Some(address);
                    if let Stopping::Draining { until_ms } = self.stopping {
                        self.fleet.send(WEB, &ToChild::Drain(until_ms.saturating_sub(now_ms)));
                    }
                }
                Role::Executor(_) => {}
            },
            FleetEvent::Replaced(slot, reason) => {
                let group = self.fleet.name(slot).to_owned();
                if self.fleet.role(slot) == Role::Web {
                    self.channel = None;
                    log::warn!("the web process is replaced: jobs and state in memory are gone with it");
                }
                self.fleet.send(WEB, &ToChild::Restarted(group, reason.into()));
            }
            FleetEvent::Drained(jobs) => self.drained(&jobs, now_ms),
            FleetEvent::GaveUp(why) => return Err(why),
        }
        Ok(())
    }

    fn drained(&mut self, cut_off: &[JobId], now_ms: u64) {
        for job in cut_off {
            event(log::Level::Warn, "lifecycle.forced").field("job_id", &job.to_string()).emit();
        }
        if !cut_off.is_empty() {
            self.exit = Exit::CutOff;
        }
        self.stopping = Stopping::Executors;
        self.fleet.stop(false, now_ms);
    }

    /// What follows from where everything stands.
    fn step(&mut self, now_ms: u64) -> Option<Exit> {
        // A new executor is told where to connect with its first turn; telling it again changes nothing.
        if let Some(address) = self.channel.clone() {
            self.fleet.tell_new(&ToChild::Channel(address));
        }
        if self.stopping == Stopping::No && self.ready_line.is_some() {
            if self.fleet.all_ready() {
                if let Some(line) = self.ready_line.take() {
                    say(std::io::stdout(), &line);
                    event(log::Level::Info, "lifecycle.ready").field("line", line.trim()).emit();
                }
            } else if now_ms.saturating_sub(self.started_ms)
                > self.setup.config.runtime.platform.lifecycle.ready_timeout_ms
            {
                let late = self.fleet.not_ready().join(", ");
                say(std::io::stderr(), &format!("cofferdam: not ready in time: {late}\n"));
                return Some(Exit::NotReady);
            }
        }
        match self.stopping {
            Stopping::No => None,
            Stopping::Draining { until_ms } if now_ms >= until_ms => {
                event(log::Level::Warn, "lifecycle.forced")
                    .field("cause", "web did not finish its drain")
                    .emit();
                Some(Exit::CutOff)
            }
            Stopping::Draining { .. } if self.fleet.all_stopped() => Some(self.exit),
            Stopping::Draining { .. } => None,
            Stopping::Executors if self.fleet.executors_stopped() => {
                self.stopping = Stopping::Web;
                self.fleet.stop(true, now_ms);
                self.fleet.all_stopped().then_some(self.exit)
            }
            Stopping::Executors => None,
            Stopping::Web => self.fleet.all_stopped().then_some(self.exit),
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
