//! The children of one supervisor: started, watched, replaced, stopped. What happens to each is decided by the
//! table in [`super::child_state`]; here are their processes.

use std::net::TcpListener;
use std::os::unix::process::ExitStatusExt;
use std::process::ExitStatus;

use mio::{Interest, Registry, Token};
use zeroize::Zeroizing;

use super::child::{Process, spawn};
use super::child_state::{Action, Event, Life, State};
use super::child_stderr::ChildStderr;
use super::restart::How;
use crate::config::Lifecycle;
use crate::job::JobId;
use crate::observe::event;
use crate::process::bundle::Role;
use crate::process::control_socket::{Leaving, ToChild, ToParent};

/// Processes of one child that finish their jobs while their successor serves. At the bound the successor stays until
/// one of them has ended, so that short limits and long jobs cannot fill the host with processes.
const MOST_ASIDE: usize = 2;

/// Why a child is replaced that a signal has ended.
const KILLED: &str = "killed";

/// What the owner of a fleet should know.
#[derive(Debug, PartialEq, Eq)]
pub enum FleetEvent {
    /// A child serves; web says where the channel listens.
    Ready(usize, String),
    /// A child has ended and will be replaced, for this reason.
    Replaced(usize, &'static str),
    /// A child leaves and is replaced, for this reason.
    Recycled(usize, Leaving),
    /// A child cannot be kept running: stop everything, and say why.
    GaveUp(String),
    /// These jobs were cut off, and the next event may name more.
    CutOff(Vec<JobId>),
    /// An executor has ended otherwise than with 0: what it ran was cut off, named or not. Its name at its broker.
    Broke(String),
    /// Web's drain is over; so many jobs were cut off.
    Drained(u64),
}

struct Slot {
    role: Role,
    name: String,
    bundle: Zeroizing<Vec<u8>>,
    listener: Option<TcpListener>,
    life: Life,
    /// `Some` iff it runs.
    process: Option<Process>,
    /// Those that left and finish their jobs.
    aside: Vec<(Life, Process)>,
    /// It asks to be replaced, and may not leave yet.
    wants: Option<Leaving>,
}

/// See the module.
pub struct Fleet {
    slots: Vec<Slot>,
    lifecycle: Lifecycle,
    heartbeat_ms: u64,
    first_token: usize,
    /// When it last looked at its children.
    looked_ms: u64,
}

impl Fleet {
    /// Empty; its children's tokens begin at `first_token`.
    #[must_use]
    pub fn new(lifecycle: Lifecycle, heartbeat_ms: u64, first_token: usize) -> Fleet {
        Fleet { slots: Vec::new(), lifecycle, heartbeat_ms, first_token, looked_ms: 0 }
    }

    /// Adds a child, to be started with the next tick.
    pub fn add(
        &mut self,
        role: Role,
        name: String,
        bundle: Zeroizing<Vec<u8>>,
        listener: Option<TcpListener>,
    ) {
        let (life, process, aside, wants) = (Life::new(), None, Vec::new(), None);
        self.slots.push(Slot { role, name, bundle, listener, life, process, aside, wants });
    }

    /// True if this token is a child's.
    #[must_use]
    pub fn owns(&self, token: usize) -> bool {
        (self.first_token..self.first_token + self.slots.len()).contains(&token)
    }

    /// The child's role.
    #[must_use]
    pub fn role(&self, slot: usize) -> Role {
        self.slots[slot].role
    }

    /// Its group's name, or `web`.
    #[must_use]
    pub fn name(&self, slot: usize) -> &str {
        &self.slots[slot].name
    }

    /// Children that do not serve, for messages.
    #[must_use]
    pub fn not_ready(&self) -> Vec<&str> {
        let not_ready = self.slots.iter().filter(|slot| !matches!(slot.life.state(), State::Serving { .. }));
        not_ready.map(|slot| slot.name.as_str()).collect()
    }

    /// True once no child runs.
    #[must_use]
    pub fn all_stopped(&self) -> bool {
        self.slots.iter().all(Slot::is_gone)
    }

    /// True once no executor runs.
    #[must_use]
    pub fn executors_stopped(&self) -> bool {
        self.slots.iter().filter(|slot| slot.role != Role::Web).all(Slot::is_gone)
    }

    /// Tells executors that were started since the last call.
    pub fn tell_new(&mut self, message: &ToChild) {
        let executors = self.slots.iter_mut().filter(|slot| slot.role != Role::Web);
        for process in executors.filter_map(|slot| slot.process.as_mut()) {
            if !std::mem::replace(&mut process.told, true) {
                process.control.send(message);
            }
        }
    }

    /// Tells something to one child.
    pub fn send(&mut self, slot: usize, message: &ToChild) {
        if let Some(process) = &mut self.slots[slot].process {
            process.control.send(message);
        }
    }

    /// Tells something to every executor, those that finish their jobs as well.
    pub fn send_executors(&mut self, message: &ToChild) {
        for slot in self.slots.iter_mut().filter(|slot| slot.role != Role::Web) {
            slot.processes().for_each(|process| process.control.send(message));
        }
    }

    /// Starts who is due, pings, and ends who is silent.
    pub fn tick(&mut self, registry: &Registry, now_ms: u64) -> Vec<FleetEvent> {
        let mut happened = self.reap(now_ms);
        // It looks at least at every heartbeat. One that was stopped itself has heard nobody meanwhile, and that
        // says nothing about them.
        let looked_ms = std::mem::replace(&mut self.looked_ms, now_ms);
        let was_stopped = now_ms.saturating_sub(looked_ms) > 2 * self.heartbeat_ms;
        for index in 0..self.slots.len() {
            let slot = &mut self.slots[index];
            if was_stopped {
                slot.begin_again(now_ms);
            }
            if slot.start_at_ms().is_some_and(|at| at <= now_ms)
                && let Some(Action::Spawn) = slot.act(Event::Due, &self.lifecycle, now_ms)
                && let Err(error) = self.start(index, registry, now_ms)
            {
                // The host has no process to give: that says nothing about the child, and is tried again.
                let said = format!("cannot be started: {error}");
                happened.extend(self.ended(index, How::Killed, "crashed", &said, now_ms));
            }
            let slot = &mut self.slots[index];
            let left = slot.let_leave(&self.lifecycle, now_ms);
            happened.extend(left.map(|why| FleetEvent::Recycled(index, why)));
            for (event, of) in slot.watch(self.heartbeat_ms, self.lifecycle.ready_timeout_ms, now_ms) {
                match of {
                    None => drop(slot.act(event, &self.lifecycle, now_ms)),
                    Some(aside) => slot.act_aside(aside, event, &self.lifecycle, now_ms),
                }
            }
        }
        happened
    }

    fn start(&mut self, index: usize, registry: &Registry, now_ms: u64) -> std::io::Result<()> {
        let slot = &mut self.slots[index];
        let (mut child, mut control) = spawn(slot.role, slot.listener.as_ref())?;
        let token = Token(self.first_token + index);
        let watched = child.stderr.take().ok_or(std::io::ErrorKind::BrokenPipe.into()).and_then(|pipe| {
            let mut words = ChildStderr::new(pipe)?;
            words.register(registry, token)?;
            registry.register(control.stream(), token, Interest::READABLE | Interest::WRITABLE)?;
            Ok(words)
        });
        let words = match watched {
            Ok(words) => words,
            Err(error) => {
                let _ = child.kill().and_then(|()| child.wait());
                return Err(error);
            }
        };
        control.send_bytes(&slot.bundle);
        log::debug!("{} is started as process {}", slot.name, child.id());
        slot.process = Some(Process {
            child,
            control,
            words,
            since_ms: now_ms,
            heard_ms: now_ms,
            pinged_ms: now_ms,
            gone_ms: None,
            told: false,
            name: String::new(),
            ended: None,
        });
        Ok(())
    }

    /// A child's control socket or standard error is ready.
    pub fn on_event(&mut self, token: usize, now_ms: u64) -> Vec<FleetEvent> {
        let mut happened = self.heard(token - self.first_token, now_ms);
        happened.extend(self.reap(now_ms));
        happened
    }

    /// What its processes have said and was not read yet.
    fn heard(&mut self, index: usize, now_ms: u64) -> Vec<FleetEvent> {
        let slot = &mut self.slots[index];
        let mut said = slot.process.as_mut().map(|process| process.hear(now_ms)).unwrap_or_default();
        // One that has left can only name what it cuts off.
        let aside = slot.aside.iter_mut().flat_map(|(_, process)| process.hear(now_ms));
        said.extend(aside.filter(|said| matches!(said, ToParent::CutOff(_))));
        let mut happened = Vec::new();
        for message in said {
            match message {
                ToParent::Pong => {}
                ToParent::Ready(address) => {
                    let _ = slot.act(Event::Ready, &self.lifecycle, now_ms);
                    if let Some(process) = slot.process.as_mut().filter(|_| slot.role != Role::Web) {
                        process.name.clone_from(&address);
                    }
                    happened.push(FleetEvent::Ready(index, address));
                }
                ToParent::CutOff(jobs) => happened.push(FleetEvent::CutOff(jobs)),
                ToParent::Drained(count) => happened.push(FleetEvent::Drained(count)),
                ToParent::Leaving(why) => {
                    slot.wants = Some(why);
                    let left = slot.let_leave(&self.lifecycle, now_ms);
                    happened.extend(left.map(|why| FleetEvent::Recycled(index, why)));
                }
            }
        }
        happened
    }

    /// Looks at each child by its own number: waiting for "any child" would steal others' statuses. What one said before
    /// it ended is still in its socket: its status is seen first, if the supervisor comes late.
    pub fn reap(&mut self, now_ms: u64) -> Vec<FleetEvent> {
        let mut happened = Vec::new();
        for index in 0..self.slots.len() {
            // Each is asked: what one says after this is for the next time.
            let ended = self.slots[index].processes().map(Process::has_ended).filter(|has| *has).count();
            if ended == 0 {
                continue;
            }
            happened.extend(self.heard(index, now_ms));
            let slot = &mut self.slots[index];
            let is_executor = slot.role != Role::Web;
            let broke = |process: &Process, status: ExitStatus| {
                (is_executor && !status.success()).then(|| FleetEvent::Broke(process.name.clone()))
            };
            slot.aside.retain(|(_, process)| {
                let Some(status) = process.ended else { return true };
                if !status.success() {
                    crashed(&slot.name, &said(status), &process.words.last());
                }
                happened.extend(broke(process, status));
                false
            });
            let Some((process, status)) = slot.process.as_ref().and_then(|of| Some((of, of.ended?))) else {
                continue;
            };
            let (how, reason) = match status.signal() {
                Some(9) => (How::Killed, KILLED),
                Some(_) => (How::Unready, KILLED),
                None => (How::Unready, "crashed"),
            };
            happened.extend(broke(process, status));
            happened.extend(self.ended(index, how, reason, &said(status), now_ms));
        }
        happened
    }

    fn ended(
        &mut self,
        index: usize,
        how: How,
        reason: &'static str,
        said: &str,
        now_ms: u64,
    ) -> Option<FleetEvent> {
        let slot = &mut self.slots[index];
        slot.wants = None;
        let words = slot.process.take().map(|process| process.words.last()).unwrap_or_default();
        let stopping = matches!(slot.life.state(), State::Stopping { .. });
        let action = slot.act(Event::Ended(how, reason), &self.lifecycle, now_ms);
        // One that was told to stop ends by itself, or else something ended it.
        if !stopping || reason == KILLED {
            crashed(&slot.name, said, &words);
        }
        if stopping {
            return None;
        }
        match action {
            Some(Action::Replaced(reason)) => {
                restarted(&slot.name, reason);
                Some(FleetEvent::Replaced(index, reason))
            }
            Some(Action::GiveUp) => {
                let words = if words.is_empty() { words } else { format!("; its last words: {words}") };
                Some(FleetEvent::GaveUp(format!("{} {said}, and is not restarted again{words}", slot.name)))
            }
            Some(_) | None => None,
        }
    }

    /// Tells children of a kind to stop within so many ms; they are killed if they do not.
    pub fn stop(&mut self, web: bool, patience_ms: u64, now_ms: u64) {
        for slot in self.slots.iter_mut().filter(|slot| (slot.role == Role::Web) == web) {
            let _ = slot.act(Event::Stop(patience_ms), &self.lifecycle, now_ms);
            for aside in 0..slot.aside.len() {
                slot.act_aside(aside, Event::Stop(patience_ms), &self.lifecycle, now_ms);
            }
        }
    }

    /// Ends everything at once.
    pub fn kill_all(&mut self) {
        for slot in &mut self.slots {
            let aside = slot.aside.drain(..).map(|(_, process)| process);
            for mut process in slot.process.take().into_iter().chain(aside) {
                let _ = process.child.kill().and_then(|()| process.child.wait());
                process.words.pass_on();
            }
        }
    }

    /// When [`Fleet::tick`] has something to do, in ms from now.
    #[must_use]
    pub fn next_due_ms(&self, now_ms: u64) -> u64 {
        let due = |slot: &Slot| {
            let aside = slot.aside.iter().map(|(life, process)| (life, process));
            let running = slot.process.iter().map(|process| (&slot.life, process)).chain(aside);
            let of_running = running.map(|(life, process)| {
                // Its socket closes a moment before it can be waited for, and no other event need follow.
                let at_once = process.control.has_ended() || process.words.has_more();
                let ping = process.pinged_ms + self.heartbeat_ms;
                if at_once { now_ms } else { life.due_ms().map_or(ping, |due| due.min(ping)) }
            });
            of_running.chain(slot.start_at_ms()).min().unwrap_or(u64::MAX)
        };
        self.slots.iter().map(due).min().unwrap_or(u64::MAX).saturating_sub(now_ms)
    }
}

impl Drop for Fleet {
    fn drop(&mut self) {
        self.kill_all();
    }
}

impl Slot {
    fn is_gone(&self) -> bool {
        self.process.is_none() && self.aside.is_empty() && self.life.state() == State::Gone
    }

    /// When its process is to be made; `None` while it has one.
    fn start_at_ms(&self) -> Option<u64> {
        self.life.due_ms().filter(|_| self.process.is_none())
    }

    /// Lets the process leave that has asked to, if there is a place for it. One whose workers are held serves nobody:
    /// it may go in any case.
    fn let_leave(&mut self, lifecycle: &Lifecycle, now_ms: u64) -> Option<Leaving> {
        let has_place = self.aside.len() < MOST_ASIDE;
        let why = self.wants.take_if(|why| has_place || *why == Leaving::Stuck)?;
        if let Some(process) = &mut self.process {
            process.control.send(&ToChild::Leave);
        }
        matches!(self.act(Event::Leaves(why), lifecycle, now_ms), Some(Action::SetAside(_))).then_some(why)
    }

    /// Asks the table and does to the process what it says; what is left to the caller comes back.
    fn act(&mut self, event: Event, lifecycle: &Lifecycle, now_ms: u64) -> Option<Action> {
        let action = self.life.on(event, &lifecycle.restart, now_ms);
        match action {
            Action::SayStop(_) | Action::Terminate | Action::Kill => {
                self.process.iter_mut().for_each(|process| process.obey(action));
                None
            }
            Action::SetAside(why) => {
                self.aside.extend(self.process.take().map(|process| (Life::aside(), process)));
                restarted(&self.name, why.as_str());
                Some(action)
            }
            Action::None | Action::Spawn | Action::Replaced(_) | Action::GiveUp => Some(action),
        }
    }

    fn act_aside(&mut self, aside: usize, event: Event, lifecycle: &Lifecycle, now_ms: u64) {
        let (life, process) = &mut self.aside[aside];
        process.obey(life.on(event, &lifecycle.restart, now_ms));
    }

    /// The one that serves, and those that finish their jobs.
    fn processes(&mut self) -> impl Iterator<Item = &mut Process> {
        self.process.iter_mut().chain(self.aside.iter_mut().map(|(_, process)| process))
    }

    /// Silence counts from now on.
    fn begin_again(&mut self, now_ms: u64) {
        for process in self.processes() {
            (process.since_ms, process.heard_ms) = (now_ms, now_ms);
        }
    }

    /// Pings, passes words on, and says who is silent, late or due to be killed.
    fn watch(&mut self, heartbeat_ms: u64, ready_ms: u64, now_ms: u64) -> Vec<(Event, Option<usize>)> {
        let aside =
            self.aside.iter_mut().enumerate().map(|(at, (life, process))| (Some(at), &*life, process));
        let main = self.process.iter_mut().map(|process| (None, &self.life, process));
        let mut found = Vec::new();
        for (of, life, process) in main.chain(aside) {
            process.ping(heartbeat_ms, now_ms);
            // Before it serves it answers nothing: an embedder's own start may take its time.
            let starting = life.state() == State::Starting;
            let late = starting && now_ms.saturating_sub(process.since_ms) > ready_ms;
            let quiet_ms = now_ms.saturating_sub(process.heard_ms);
            let silent = !starting && quiet_ms > 3 * heartbeat_ms + heartbeat_ms / 2;
            if life.due_ms().is_some_and(|due_ms| due_ms <= now_ms) {
                found.push((Event::Due, of));
            } else if (silent || late) && life.due_ms().is_none() {
                let what = if late { "was not ready in time" } else { "does not answer" };
                log::warn!("{} {what}: it is ended", self.name);
                found.push((Event::Silent, of));
            }
        }
        found
    }
}

fn crashed(name: &str, how: &str, words: &str) {
    let crashed = event(log::Level::Warn, "lifecycle.crashed").field("process_group", name);
    crashed.field("how", how).field("last_words", words).emit();
}

fn restarted(name: &str, reason: &str) {
    event(log::Level::Info, "lifecycle.restarted")
        .field("process_group", name)
        .field("reason", reason)
        .emit();
}

fn said(status: ExitStatus) -> String {
    match (status.code(), status.signal()) {
        (Some(code), _) => format!("ended with exit code {code}"),
        (None, Some(signal)) => format!("was ended by signal {signal}"),
        (None, None) => "ended".into(),
    }
}
