//! `serve`, `web` and `executor`: the supervisor's own story, as a checklist.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use mio::Token;

use super::reread::Reread;
use super::web::serve_inline;
use crate::channel::keys::GroupSecret;
use crate::clock::monotonic_millis;
use crate::config::secret::Secret;
use crate::deployment::Deployment;
use crate::exit::Exit;
use crate::mac::wipe_stack;
use crate::observe::{event, log_writer};
use crate::process::control_socket::ToChild;
use crate::process::handover::{self, Handover};
use crate::process::hygiene::{self, Signals, drain_bytes, hear_hangup};
use crate::process::listener::listen;
use crate::process::private_dir::PrivateDir;
use crate::process::reactor::Reactor;
use crate::process::systemd::Notifier;
use crate::supervisor::fleet::{Fleet, FleetEvent};
use crate::supervisor::service_state::{Action, Event, Phase, Phases};

const STOP: Token = Token(0);
const CHILD: Token = Token(1);
const HANGUP: Token = Token(2);
const HANDOVER: Token = Token(3);
const FIRST_CHILD: usize = 16;
const WEB: usize = 0;

/// Runs a web process and the executors of these groups, or all, until it is told to stop, or a child cannot be kept
/// running; inline it is one process. With `takes_over` it takes the place of one that runs, and gives it to the next.
pub fn serve(deployment: &Deployment, groups: Option<&[String]>, takes_over: bool) -> Result<Exit, String> {
    if deployment.is_inline() {
        return serve_inline(deployment);
    }
    let io = |error: std::io::Error| error.to_string();
    super::say_starting(deployment);
    hygiene::become_subreaper().map_err(io)?;
    if deployment.has_programs() {
        hygiene::expect_programs();
    }
    hygiene::raise_descriptor_limit();
    let platform = deployment.platform();
    // The listener before any child: a replaced web process refuses no connection.
    let (web, ready_timeout) =
        (&deployment.config.web, Duration::from_millis(platform.lifecycle.ready_timeout_ms));
    let (mut old, mut is_lent) = Default::default();
    let listener;
    if takes_over {
        (listener, old) = handover::take(web, ready_timeout)?;
    } else {
        (listener, is_lent) = listen(web)?;
    }
    // What two services cannot have at once, however short: a journal, or a port for the channel.
    let must_be_alone = deployment.journal().is_some() || platform.execution_ipc.bind_port != 0;
    if must_be_alone && let Some(old) = old.take() {
        log::info!("waiting for the end of the old process, which has what only one can have");
        old.wait();
    }
    let mut signals = Signals::take().map_err(io)?;
    let address = listener.local_addr().map_err(io)?;
    let private_dir = PrivateDir::make()?;
    let shared = Arc::new(deployment.clone());
    // One secret for this run; children get what their role needs.
    let roots = deployment.root_secrets()?;
    wipe_stack();
    let reactor = Reactor::new(64)?;
    let registry = || reactor.registry().try_clone().map_err(io);
    let mut handover = None;
    if takes_over {
        handover = Some(Handover::new(listener.try_clone().map_err(io)?, old, registry()?, HANDOVER));
    }
    let mut fleet = Fleet::new(platform, registry()?, FIRST_CHILD);
    fleet.add_web(&deployment.web_bundle(&roots, private_dir.path()), listener);
    add_executors(&mut fleet, deployment, groups, &roots[0])?;
    let reread = Reread::new(shared, &roots);
    drop(roots);
    wipe_stack();
    reactor.watch(&mut signals.stop, STOP)?;
    reactor.watch(&mut signals.child, CHILD)?;
    reactor.watch(&mut signals.hangup, HANGUP)?;
    let lifecycle = &platform.lifecycle;
    let phases = Phases::new(monotonic_millis() + lifecycle.ready_timeout_ms, lifecycle.patience_ms());
    let (address, notifier) = (address.to_string(), Notifier::from_environment());
    let (web_name, replaced, gave_up) = Default::default();
    let supervisor = Supervisor {
        deployment,
        reread,
        fleet,
        phases,
        address,
        notifier,
        handover,
        is_lent,
        web_name,
        replaced,
        gave_up,
        signals,
    };
    let exit = supervisor.run(reactor);
    hygiene::end_orphans();
    event(log::Level::Info, "lifecycle.stopped").emit();
    exit
}

/// Adds the executors of these groups, or all.
pub(super) fn add_executors(
    fleet: &mut Fleet,
    deployment: &Deployment,
    groups: Option<&[String]>,
    root: &Secret,
) -> Result<(), String> {
    for (index, group) in deployment.platform().process_groups.iter().enumerate() {
        let is_wanted = groups.is_none_or(|names| names.contains(&group.name));
        for _ in 0..if is_wanted { group.processes } else { 0 } {
            let account = deployment.account(group)?;
            let bundle = deployment.executor_bundle(root, index);
            fleet.add_executor(&group.name, &bundle, account, deployment.stops_within_ms(index));
        }
    }
    Ok(())
}

struct Supervisor<'a> {
    deployment: &'a Deployment,
    reread: Reread,
    /// Whatever happens: no child outlives it.
    fleet: Fleet,
    phases: Phases,
    /// The public one.
    address: String,
    notifier: Notifier,
    /// If it can be taken over.
    handover: Option<Handover>,
    /// The listener is a service manager's: who comes during a drain waits there for the next process.
    is_lent: bool,
    /// The broker's name for the web process, if it has one: its leases end when it is replaced.
    web_name: String,
    /// Processes that were replaced, by group and reason: they outlive each web process, which shows them.
    replaced: BTreeMap<(String, &'static str), u64>,
    /// Why a child cannot be kept running.
    gave_up: Option<String>,
    signals: Signals,
}

impl Supervisor<'_> {
    fn run(mut self, mut reactor: Reactor) -> Result<Exit, String> {
        loop {
            let now_ms = monotonic_millis();
            self.fleet.tick(now_ms);
            self.on_fleet(now_ms);
            self.look(now_ms);
            if let Phase::Over(exit) = self.phases.phase {
                return self.gave_up.map_or(Ok(exit), Err);
            }
            // A stop and its end interrupt the wait. What has come meanwhile is read before any deadline is judged.
            let wait = self.wait(now_ms);
            reactor.wait(wait)?;
            let now_ms = monotonic_millis();
            for event in reactor.events() {
                match event.token() {
                    STOP => {
                        (0..drain_bytes(&mut self.signals.stop)).for_each(|_| self.on(Event::Signal, now_ms));
                    }
                    HANGUP if hear_hangup(&mut self.signals.hangup) => self.read_again(now_ms),
                    HANGUP => {}
                    HANDOVER => {
                        if self.handover.as_mut().is_some_and(Handover::hear) {
                            self.on(Event::Signal, now_ms);
                        }
                    }
                    CHILD => {
                        drain_bytes(&mut self.signals.child);
                        self.fleet.reap(now_ms);
                    }
                    Token(token) => _ = self.fleet.on_event(token, now_ms),
                }
                self.on_fleet(now_ms);
            }
        }
    }

    /// Files may hold something else by now.
    fn read_again(&mut self, now_ms: u64) {
        self.reread.tokens().iter().for_each(|tokens| self.fleet.set_tokens(WEB, tokens));
        let Some(roots) = self.reread.secrets() else { return wipe_stack() };
        // Web first: it is to know the secret that an executor comes with.
        self.fleet.set_secrets(WEB, self.deployment.web_secrets(&roots), now_ms);
        for place in WEB + 1..self.fleet.places() {
            let secret = GroupSecret::derive(&roots[0], self.fleet.name(place));
            self.fleet.set_secrets(place, vec![secret], now_ms);
        }
        drop(roots);
        wipe_stack();
    }

    fn wait(&mut self, now_ms: u64) -> Duration {
        const LONGEST_MS: u64 = 60_000;
        let phase = self.phases.due_ms().map_or(u64::MAX, |due| due.saturating_sub(now_ms));
        let due = phase.min(self.fleet.next_due_ms(now_ms)).min(self.notifier.tick(now_ms));
        Duration::from_millis(due.clamp(1, LONGEST_MS))
    }

    /// What follows from where everything stands.
    fn look(&mut self, now_ms: u64) {
        let facts = [
            (self.fleet.not_ready().is_empty(), Event::AllReady),
            (self.fleet.executors_stopped(), Event::ExecutorsGone),
            (self.fleet.all_stopped(), Event::WebGone),
            (self.phases.due_ms().is_some_and(|due_ms| due_ms <= now_ms), Event::Due),
        ];
        facts.iter().filter(|(is_so, _)| *is_so).for_each(|(_, event)| self.on(*event, now_ms));
    }

    fn on_fleet(&mut self, now_ms: u64) {
        for happened in std::mem::take(&mut self.fleet.happened) {
            match happened {
                FleetEvent::WebReady(said) => self.on_web(&said, now_ms),
                FleetEvent::Replaced(place, reason) => {
                    if place == WEB {
                        log::warn!(
                            "the web process is replaced: callers that waited have lost their connections"
                        );
                        self.on(Event::WebLost, now_ms);
                    }
                    *self.replaced.entry((self.fleet.name(place).to_owned(), reason)).or_default() += 1;
                    self.tell_replaced();
                }
                FleetEvent::CutOff(jobs) => {
                    log_writer::name_cut_off(&jobs);
                    self.on(Event::CutOff, now_ms);
                }
                FleetEvent::Drained(count) => self.on(Event::Drained(count), now_ms),
                FleetEvent::GaveUp(why) => {
                    self.gave_up = Some(why);
                    self.on(Event::GaveUp, now_ms);
                }
            }
        }
    }

    /// Web serves: where its channel listens, and its name at the broker.
    fn on_web(&mut self, said: &str, now_ms: u64) {
        let (address, name) = said.split_once(' ').unwrap_or((said, ""));
        self.fleet.set_channel(address.to_owned());
        let predecessor = std::mem::replace(&mut self.web_name, name.to_owned());
        if !predecessor.is_empty() {
            self.fleet.send(WEB, &ToChild::Succeeds(predecessor));
        }
        self.tell_replaced();
        // One that came in the middle of a drain is told of it.
        if let Phase::Draining { until_ms } = self.phases.phase {
            self.drain_web(until_ms.saturating_sub(now_ms));
        }
    }

    /// Who leaves the listener to others has nobody to refuse.
    fn drain_web(&mut self, patience_ms: u64) {
        let leaves_it = self.is_lent || self.handover.as_ref().is_some_and(Handover::is_over);
        self.fleet.send(WEB, &ToChild::drain(leaves_it, patience_ms));
    }

    fn tell_replaced(&mut self) {
        for ((group, reason), count) in &self.replaced {
            self.fleet.send(WEB, &ToChild::Replaced(group.clone(), (*reason).into(), *count));
        }
    }

    /// Asks the table, and does what it says.
    fn on(&mut self, happened: Event, now_ms: u64) {
        match self.phases.on(happened, now_ms) {
            Action::None => {}
            Action::SayReady => {
                self.handover.iter_mut().for_each(Handover::open);
                self.notifier.ready(&self.address);
            }
            Action::SayLate => {
                let late = self.fleet.not_ready().join(", ");
                log_writer::say(format!("cofferdam: not ready in time: {late}\n"));
            }
            Action::Drain(patience_ms) => {
                event(log::Level::Info, "lifecycle.draining").number("deadline_ms", patience_ms).emit();
                self.handover.iter_mut().for_each(Handover::close);
                self.notifier.stopping(patience_ms);
                self.drain_web(patience_ms);
            }
            // Web knows which jobs are cut off: its deadline is now, and it names them at once.
            Action::Force => {
                event(log::Level::Warn, "lifecycle.forced").emit();
                self.fleet.send(WEB, &ToChild::Drain(0));
            }
            Action::StopExecutors => self.fleet.stop(false, now_ms),
            Action::StopWeb => self.fleet.stop(true, now_ms),
            Action::SayCutOff => event(log::Level::Warn, "lifecycle.forced")
                .field("cause", "what still ran was cut off")
                .emit(),
        }
    }
}
