//! The children of one supervisor: started, watched, replaced, stopped. What happens to each is decided by the
//! table in `child_state`; here are their processes.
//!
//! A place is what the configuration asks for: web, or one executor of a group. A child that leaves stays in the list
//! until it has ended; its successor is another child of the same place.

use std::net::TcpListener;
use std::os::unix::process::ExitStatusExt;
use std::process::ExitStatus;

use mio::{Registry, Token};
use zeroize::Zeroizing;

use super::child::ChildProcess;
use super::child_state::{Action, Event, Life, State, may_say};
use super::restart::{How, Work};
use crate::config::Lifecycle;
use crate::job::JobId;
use crate::observe::event;
use crate::process::bundle::Role;
use crate::process::control_socket::{Leaving, ToChild, ToParent};

/// Processes of one place that finish their jobs while their successor serves. At the bound the successor stays until
/// one of them has ended, so that short limits and long jobs cannot fill the host with processes.
const MOST_LEAVING: usize = 2;

/// What the owner of a fleet should know.
#[derive(Debug, PartialEq, Eq)]
pub enum FleetEvent {
    /// A child of this place serves; web says where the channel listens.
    Ready(usize, String),
    /// A child has ended and will be replaced, for this reason.
    Replaced(usize, &'static str),
    /// A child leaves and is replaced, for this reason.
    Recycled(usize, Leaving),
    /// A child cannot be kept running: stop everything, and say why.
    GaveUp(String),
    /// These jobs were cut off, and the next event may name more.
    CutOff(Vec<JobId>),
    /// Web's drain is over; so many jobs were cut off.
    Drained(u64),
}

struct Place {
    role: Role,
    name: String,
    bundle: Zeroizing<Vec<u8>>,
    listener: Option<TcpListener>,
}

struct Child {
    place: usize,
    /// Of its process.
    token: usize,
    life: Life,
    /// `Some` iff it runs.
    process: Option<ChildProcess>,
    /// It asks to be replaced, and may not leave yet.
    wants: Option<Leaving>,
}

/// See the module.
pub struct Fleet {
    places: Vec<Place>,
    children: Vec<Child>,
    lifecycle: Lifecycle,
    heartbeat_ms: u64,
    /// Each process has a token of its own, which is never used again.
    next_token: usize,
    /// When it last looked at its children.
    looked_ms: u64,
}

impl Fleet {
    /// Empty; its children's tokens count from `first_token`.
    pub fn new(lifecycle: Lifecycle, heartbeat_ms: u64, first_token: usize) -> Fleet {
        let (places, children) = Default::default();
        Fleet { places, children, lifecycle, heartbeat_ms, next_token: first_token, looked_ms: 0 }
    }

    /// Adds a place, whose child is started with the next tick.
    pub fn add(
        &mut self,
        role: Role,
        name: String,
        bundle: Zeroizing<Vec<u8>>,
        listener: Option<TcpListener>,
    ) {
        self.places.push(Place { role, name, bundle, listener });
        self.add_child(self.places.len() - 1, Life::new());
    }

    fn add_child(&mut self, place: usize, life: Life) {
        self.children.push(Child { place, token: 0, life, process: None, wants: None });
    }

    /// True if this token is a child's.
    pub fn owns(&self, token: usize) -> bool {
        self.children.iter().any(|child| child.process.is_some() && child.token == token)
    }

    /// Its group's name, or `web`.
    pub fn name(&self, place: usize) -> &str {
        &self.places[place].name
    }

    /// Places without a child that serves, for messages.
    pub fn not_ready(&self) -> Vec<&str> {
        let serves = |place| {
            let serving = |child: &Child| matches!(child.life.state(), State::Serving { .. });
            self.children.iter().any(|child| child.place == place && serving(child))
        };
        let not_ready = self.places.iter().enumerate().filter(|(place, _)| !serves(*place));
        not_ready.map(|(_, place)| place.name.as_str()).collect()
    }

    /// True once no child runs.
    pub fn all_stopped(&self) -> bool {
        self.children.iter().all(Child::is_gone)
    }

    /// True once no executor runs.
    pub fn executors_stopped(&self) -> bool {
        self.children.iter().filter(|child| self.is_executor(child)).all(Child::is_gone)
    }

    fn is_executor(&self, child: &Child) -> bool {
        self.places[child.place].role != Role::Web
    }

    /// Tells executors what they were not told last.
    pub fn tell_new(&mut self, message: &ToChild) {
        for child in self.children.iter_mut().filter(|child| self.places[child.place].role != Role::Web) {
            if let Some(process) = child.process.as_mut().filter(|it| it.told.as_ref() != Some(message)) {
                process.control.send(message);
                process.told = Some(message.clone());
            }
        }
    }

    /// Tells something to the child of a place that does not leave.
    pub fn send(&mut self, place: usize, message: &ToChild) {
        let of_place = self.children.iter_mut().filter(|child| child.place == place);
        let mut staying = of_place.filter(|child| child.life.state() != State::Aside);
        if let Some(process) = staying.next_back().and_then(|child| child.process.as_mut()) {
            process.control.send(message);
        }
    }

    /// Starts who is due, pings, and ends who is silent.
    pub fn tick(&mut self, registry: &Registry, now_ms: u64) -> Vec<FleetEvent> {
        let mut happened = self.reap(now_ms);
        // It looks at least at every heartbeat. One that was stopped itself has heard nobody meanwhile, and that
        // says nothing about them.
        let looked_ms = std::mem::replace(&mut self.looked_ms, now_ms);
        if now_ms.saturating_sub(looked_ms) > 2 * self.heartbeat_ms {
            self.children.iter_mut().filter_map(|child| child.process.as_mut()).for_each(|process| {
                (process.since_ms, process.heard_ms) = (now_ms, now_ms);
            });
        }
        // Successors are added behind; they are looked at in the same turn.
        let mut index = 0;
        while index < self.children.len() {
            let is_due = self.children[index].life.due_ms().is_some_and(|at| at <= now_ms);
            if is_due && self.children[index].process.is_none() {
                happened.extend(self.start(index, registry, now_ms));
            }
            happened.extend(self.let_leave(index, now_ms));
            if let Some(event) = self.watch(index, now_ms) {
                let _ = self.act(index, event, now_ms);
            }
            index += 1;
        }
        happened
    }

    fn start(&mut self, index: usize, registry: &Registry, now_ms: u64) -> Option<FleetEvent> {
        if self.act(index, Event::Due, now_ms) != Action::Spawn {
            return None;
        }
        let child = &mut self.children[index];
        let place = &self.places[child.place];
        child.token = self.next_token;
        self.next_token += 1;
        match ChildProcess::spawn(place.role, place.listener.as_ref(), registry, Token(child.token), now_ms) {
            Ok(mut process) => {
                process.control.send_bytes(&place.bundle);
                log::debug!("{} is started as process {}", place.name, process.id());
                child.process = Some(process);
                None
            }
            Err(error) => self.ended(index, Err(error), now_ms),
        }
    }

    /// A child's control socket or standard error is ready.
    pub fn on_event(&mut self, token: usize, now_ms: u64) -> Vec<FleetEvent> {
        let index = self.children.iter().position(|child| child.token == token);
        let mut happened = index.map(|index| self.heard(index, now_ms)).unwrap_or_default();
        happened.extend(self.reap(now_ms));
        happened
    }

    /// What a child has said and was not read yet.
    fn heard(&mut self, index: usize, now_ms: u64) -> Vec<FleetEvent> {
        let Some(process) = &mut self.children[index].process else { return Vec::new() };
        let mut happened = Vec::new();
        for message in process.hear(now_ms) {
            let Child { place, life, process, .. } = &mut self.children[index];
            let (place, state) = (*place, life.state());
            if !may_say(self.places[place].role, state, &message) {
                log::error!("{} says what it may not: it is ended", self.places[place].name);
                process.iter_mut().for_each(ChildProcess::kill);
                break;
            }
            match message {
                ToParent::Pong => {}
                ToParent::Worked => process.iter_mut().for_each(|process| process.work = Work::Begun),
                ToParent::Ready(address) => {
                    let _ = self.act(index, Event::Ready, now_ms);
                    if state == State::Starting {
                        happened.push(FleetEvent::Ready(place, address));
                    }
                }
                ToParent::CutOff(jobs) => {
                    happened.push(FleetEvent::CutOff(jobs.into_iter().map(JobId).collect()))
                }
                ToParent::Drained(count) => happened.push(FleetEvent::Drained(count)),
                ToParent::Leaving(why) => {
                    self.children[index].wants = Some(why);
                    happened.extend(self.let_leave(index, now_ms));
                }
            }
        }
        happened
    }

    /// Looks at each child by its own number: waiting for "any child" would steal others' statuses. What one said before
    /// it ended is still in its socket: its status is seen first, if the supervisor comes late.
    pub fn reap(&mut self, now_ms: u64) -> Vec<FleetEvent> {
        let mut happened = Vec::new();
        for index in 0..self.children.len() {
            let status = self.children[index].process.as_mut().and_then(ChildProcess::status);
            if let Some(status) = status {
                happened.extend(self.heard(index, now_ms));
                happened.extend(self.ended(index, Ok(status), now_ms));
            }
        }
        // A child that left has no successor of its own.
        let has_staying =
            |children: &[Child], place| children.iter().filter(|child| child.place == place).count() > 1;
        while let Some(index) = (0..self.children.len()).find(|index| {
            let child = &self.children[*index];
            child.is_gone() && has_staying(&self.children, child.place)
        }) {
            self.children.remove(index);
        }
        happened
    }

    /// Its process has ended, or could not be made.
    fn ended(&mut self, index: usize, end: std::io::Result<ExitStatus>, now_ms: u64) -> Option<FleetEvent> {
        let child = &mut self.children[index];
        child.wants = None;
        let process = child.process.take();
        let work = process.as_ref().map_or(Work::None, |process| process.work);
        let words = process.map(|process| process.stderr.last()).unwrap_or_default();
        let (how, reason, said) = match &end {
            Ok(status) if status.signal() == Some(9) => (How::Killed, "killed", said(*status)),
            Ok(status) if status.signal().is_some() => (How::Failed(work), "killed", said(*status)),
            Ok(status) => (How::Failed(work), "crashed", said(*status)),
            // The host has no process to give: that says nothing about the child, and is tried again.
            Err(error) => (How::Killed, "crashed", format!("cannot be started: {error}")),
        };
        let (place, state) = (child.place, child.life.state());
        let action = self.act(index, Event::Ended(how, reason), now_ms);
        let name = &self.places[place].name;
        // One that was told to stop ends by itself, or else something ended it.
        let as_told = match state {
            State::Stopping { .. } => reason != "killed",
            State::Aside => end.is_ok_and(|status| status.success()),
            State::Waiting { .. }
            | State::Starting
            | State::Serving { .. }
            | State::Ending { .. }
            | State::Gone => false,
        };
        if !as_told {
            let crashed = event(log::Level::Warn, "lifecycle.crashed").field("process_group", name);
            crashed.field("how", &said).field("last_words", &words).emit();
        }
        match action {
            Action::Replaced(reason) => {
                restarted(name, reason);
                Some(FleetEvent::Replaced(place, reason))
            }
            Action::GiveUp => {
                let words = if words.is_empty() { words } else { format!("; its last words: {words}") };
                Some(FleetEvent::GaveUp(format!("{name} {said}, and is not restarted again{words}")))
            }
            Action::None
            | Action::Spawn
            | Action::SayStop(_)
            | Action::Terminate
            | Action::Kill
            | Action::SetAside(_) => None,
        }
    }

    /// Tells children of a kind to stop within so many ms; they are killed if they do not.
    pub fn stop(&mut self, web: bool, patience_ms: u64, now_ms: u64) {
        for index in 0..self.children.len() {
            if self.is_executor(&self.children[index]) != web {
                let _ = self.act(index, Event::Stop(patience_ms), now_ms);
            }
        }
    }

    /// Ends everything at once.
    pub fn kill_all(&mut self) {
        for mut process in self.children.iter_mut().filter_map(|child| child.process.take()) {
            process.kill();
            process.reap();
        }
    }

    /// When [`Fleet::tick`] has something to do, in ms from now.
    pub fn next_due_ms(&self, now_ms: u64) -> u64 {
        let due = |child: &Child| match (&child.process, child.life.due_ms()) {
            (Some(process), due_ms) => {
                let ping_ms = process.pinged_ms + self.heartbeat_ms;
                let due_ms = due_ms.map_or(ping_ms, |due_ms| due_ms.min(ping_ms));
                Some(if process.is_due_at_once() { now_ms } else { due_ms })
            }
            (None, due_ms) => due_ms,
        };
        self.children.iter().filter_map(due).min().unwrap_or(u64::MAX).saturating_sub(now_ms)
    }

    /// Lets the child leave that has asked to, if there is a place for it. One whose workers are taken serves nobody:
    /// it may go in any case.
    fn let_leave(&mut self, index: usize, now_ms: u64) -> Option<FleetEvent> {
        let place = self.children[index].place;
        let leaving = |child: &&Child| child.place == place && child.life.state() == State::Aside;
        let has_room = self.children.iter().filter(leaving).count() < MOST_LEAVING;
        let child = &mut self.children[index];
        let why = child.wants.take_if(|why| has_room || *why == Leaving::Stuck)?;
        if self.act(index, Event::Leaves(why), now_ms) != Action::SetAside(why) {
            return None;
        }
        let child = &mut self.children[index];
        child.process.iter_mut().for_each(|process| process.control.send(&ToChild::Leave));
        let successor = child.life.part();
        self.add_child(place, successor);
        restarted(&self.places[place].name, why.as_str());
        Some(FleetEvent::Recycled(place, why))
    }

    /// Asks the table, and does to the process what it says.
    fn act(&mut self, index: usize, event: Event, now_ms: u64) -> Action {
        let child = &mut self.children[index];
        let action = child.life.on(event, &self.lifecycle.restart, now_ms);
        child.process.iter_mut().for_each(|process| process.obey(action));
        action
    }

    /// Pings, passes on what it writes, and says if it is silent, late or due to be killed.
    fn watch(&mut self, index: usize, now_ms: u64) -> Option<Event> {
        let Child { place, life, process, .. } = &mut self.children[index];
        let process = process.as_mut()?;
        process.ping(self.heartbeat_ms, now_ms);
        // Before it serves it answers nothing: an embedder's own start may take its time.
        let starting = life.state() == State::Starting;
        let late = starting && now_ms.saturating_sub(process.since_ms) > self.lifecycle.ready_timeout_ms;
        let quiet_ms = now_ms.saturating_sub(process.heard_ms);
        let silent = !starting && quiet_ms > 3 * self.heartbeat_ms + self.heartbeat_ms / 2;
        match life.due_ms() {
            Some(due_ms) => (due_ms <= now_ms).then_some(Event::Due),
            None if silent || late => {
                let what = if late { "was not ready in time" } else { "does not answer" };
                log::warn!("{} {what}: it is ended", self.places[*place].name);
                Some(Event::Silent)
            }
            None => None,
        }
    }
}

impl Drop for Fleet {
    fn drop(&mut self) {
        self.kill_all();
    }
}

impl Child {
    fn is_gone(&self) -> bool {
        self.process.is_none() && self.life.state() == State::Gone
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
