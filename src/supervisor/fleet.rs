//! The children of one supervisor: started, watched, replaced, stopped. What happens to each is decided by the
//! table in [`super::life`]; here are their processes.

use std::net::TcpListener;
use std::os::unix::process::ExitStatusExt;
use std::process::{Child, ExitStatus};

use mio::{Interest, Registry, Token};
use rustix::process::{Pid, Signal, kill_process};
use zeroize::Zeroizing;

use super::child::{Role, spawn};
use super::control::{Control, Leaving, ToChild, ToParent};
use super::life::{Action, Event, Life, State};
use super::restart::How;
use super::words::Words;
use crate::config::Lifecycle;
use crate::job::JobId;
use crate::observe::event;

/// Processes of one child that finish their jobs while their successors serve. One more waits for the first of
/// them to end, so that short limits and long jobs cannot fill the host with processes.
const MOST_ASIDE: usize = 2;

/// A child that has closed its control socket has this long to end by itself.
const GONE_MS: u64 = 200;

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
    /// Web's drain is over; these jobs were cut off.
    Drained(Vec<JobId>),
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
}

struct Process {
    child: Child,
    control: Control,
    words: Words,
    since_ms: u64,
    heard_ms: u64,
    pinged_ms: u64,
    /// `Some` once it has closed its control socket.
    gone_ms: Option<u64>,
    /// It knows where the broker listens.
    told: bool,
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
        let (life, process, aside) = (Life::new(), None, Vec::new());
        self.slots.push(Slot { role, name, bundle, listener, life, process, aside });
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
        let not_ready = self.slots.iter().filter(|slot| slot.life.state() != State::Serving);
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
            let aside = slot.aside.iter_mut().map(|(_, process)| process);
            slot.process.iter_mut().chain(aside).for_each(|process| process.control.send(message));
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
            let mut words = Words::new(pipe)?;
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
        });
        Ok(())
    }

    /// A child's control socket or standard error is ready.
    pub fn on_event(&mut self, token: usize, now_ms: u64) -> Vec<FleetEvent> {
        let index = token - self.first_token;
        let slot = &mut self.slots[index];
        let mut happened = Vec::new();
        for message in slot.process.as_mut().map(|process| process.hear(now_ms)).unwrap_or_default() {
            match message {
                ToParent::Pong => {}
                ToParent::Ready(address) => {
                    let _ = slot.act(Event::Ready, &self.lifecycle, now_ms);
                    happened.push(FleetEvent::Ready(index, address));
                }
                ToParent::Drained(jobs) => happened.push(FleetEvent::Drained(jobs)),
                ToParent::Leaving(why) => {
                    if let Some(Action::SetAside(why)) = slot.act(Event::Leaves(why), &self.lifecycle, now_ms)
                    {
                        happened.push(FleetEvent::Recycled(index, why));
                    }
                }
            }
        }
        for (_, process) in &mut slot.aside {
            process.hear(now_ms);
        }
        happened.extend(self.reap(now_ms));
        happened
    }

    /// Looks at each child by its own number: waiting for "any child" would steal others' statuses.
    pub fn reap(&mut self, now_ms: u64) -> Vec<FleetEvent> {
        let mut happened = Vec::new();
        for index in 0..self.slots.len() {
            let slot = &mut self.slots[index];
            slot.aside.retain_mut(|(_, process)| process.status().is_none());
            let Some(status) = slot.process.as_mut().and_then(Process::status) else { continue };
            let (how, reason) = match status.signal() {
                Some(9) => (How::Killed, "killed"),
                Some(_) => (How::Unready, "killed"),
                None => (How::Unready, "crashed"),
            };
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
        let words = slot.process.take().map(|process| process.words.last()).unwrap_or_default();
        let stopping = matches!(slot.life.state(), State::Stopping { .. });
        let action = slot.act(Event::Ended(how, reason), &self.lifecycle, now_ms);
        if stopping {
            return None;
        }
        let crashed = event(log::Level::Warn, "lifecycle.crashed").field("process_group", &slot.name);
        crashed.field("how", said).field("last_words", &words).emit();
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

    /// Tells children of a kind to stop; they are killed if they do not.
    pub fn stop(&mut self, web: bool, now_ms: u64) {
        for slot in self.slots.iter_mut().filter(|slot| (slot.role == Role::Web) == web) {
            let _ = slot.act(Event::Stop, &self.lifecycle, now_ms);
            for aside in 0..slot.aside.len() {
                slot.act_aside(aside, Event::Stop, &self.lifecycle, now_ms);
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

    /// When its process is to be made; `None` while it has one, or too many that finish their jobs.
    fn start_at_ms(&self) -> Option<u64> {
        self.life.due_ms().filter(|_| self.process.is_none() && self.aside.len() < MOST_ASIDE)
    }

    /// Asks the table and does to the process what it says; what is left to the caller comes back.
    fn act(&mut self, event: Event, lifecycle: &Lifecycle, now_ms: u64) -> Option<Action> {
        let action = self.life.on(event, &lifecycle.restart, now_ms);
        match action {
            Action::SayStop | Action::Terminate | Action::Kill => {
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

    /// Silence counts from now on.
    fn begin_again(&mut self, now_ms: u64) {
        let aside = self.aside.iter_mut().map(|(_, process)| process);
        for process in self.process.iter_mut().chain(aside) {
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
            let silent = now_ms.saturating_sub(process.heard_ms) > 3 * heartbeat_ms + heartbeat_ms / 2;
            let late = life.state() == State::Starting && now_ms.saturating_sub(process.since_ms) > ready_ms;
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

impl Process {
    fn ping(&mut self, heartbeat_ms: u64, now_ms: u64) {
        self.control.flush();
        self.words.pass_on();
        if self.gone_ms.is_some_and(|gone_ms| now_ms.saturating_sub(gone_ms) >= GONE_MS) {
            let _ = self.child.kill();
        }
        if now_ms.saturating_sub(self.pinged_ms) >= heartbeat_ms {
            self.pinged_ms = now_ms;
            self.control.send(&ToChild::Ping);
        }
    }

    /// What it says. One that has closed its end of the socket is ending, and may still say why; one that says what
    /// makes no sense goes at once.
    fn hear(&mut self, now_ms: u64) -> Vec<ToParent> {
        self.control.flush();
        self.words.pass_on();
        let said = self.control.read();
        if self.control.has_ended() {
            self.gone_ms.get_or_insert(now_ms);
        } else if said.is_err() {
            let _ = self.child.kill();
        }
        let messages = said.unwrap_or_default();
        if !messages.is_empty() {
            self.heard_ms = now_ms;
        }
        messages
    }

    fn obey(&mut self, action: Action) {
        match action {
            Action::SayStop => self.control.send(&ToChild::Stop),
            Action::Terminate => {
                if let Some(pid) = i32::try_from(self.child.id()).ok().and_then(Pid::from_raw) {
                    let _ = kill_process(pid, Signal::TERM);
                }
            }
            Action::Kill => drop(self.child.kill()),
            Action::None | Action::Spawn | Action::Replaced(_) | Action::SetAside(_) | Action::GiveUp => {}
        }
    }

    /// How it ended, once it has; all that it said before is passed on by then.
    fn status(&mut self) -> Option<ExitStatus> {
        let status = self.child.try_wait().ok().flatten()?;
        self.words.pass_on();
        Some(status)
    }
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
