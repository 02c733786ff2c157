//! The children of one supervisor: started, watched, replaced, stopped. What happens to each is decided by the
//! table in `child_state`; here are their processes.
//!
//! A place is what the configuration asks for: web, or one executor of a group. A child that leaves stays in the list
//! until it has ended; its successor is another child of the same place.

use std::net::TcpListener;
use std::os::unix::process::ExitStatusExt;
use std::process::ExitStatus;

use mio::{Registry, Token};

use super::child::{ChildProcess, Place};
use super::child_state::{Action, Event, How, Life, State, may_say};
use crate::channel::keys::GroupSecret;
use crate::config::Platform;
use crate::exit::Exit;
use crate::job::JobId;
use crate::observe::event;
use crate::process::account::Account;
use crate::process::control_socket::{Bundle, Leaving, Role, ToChild, ToParent};
use crate::process::hygiene::reap_orphans;

/// Processes of one place that finish their jobs while their successor serves. At the bound the successor stays until
/// one of them has ended, so that short limits, frequent rotations and long jobs cannot fill the host with processes. Of a group as
/// many as it has places, and so many more: the broker has connections for them.
const MOST_LEAVING: usize = 2;

/// Orphans of executors that have ended stay in the process table for so long.
const ORPHANS_WAIT_MS: u64 = 1_000;

/// What the owner of a fleet should know.
pub enum FleetEvent {
    /// Web serves, and says where the channel listens.
    WebReady(String),
    /// A child has ended, or leaves, and is replaced for this reason.
    Replaced(usize, &'static str),
    /// A child cannot be kept running: stop everything, and say why.
    GaveUp(String),
    /// These jobs were cut off, and the next event may name more.
    CutOff(Vec<JobId>),
    /// Web's drain is over; so many jobs were cut off.
    Drained(u64),
}

struct Child {
    place: usize,
    /// Of its process.
    token: usize,
    life: Life,
    /// `Some` iff it runs.
    process: Option<ChildProcess>,
    /// It is to be replaced, and may not leave yet.
    wants: Option<Leaving>,
    /// It leaves, and serves on until its successor does.
    stays: bool,
    /// How its last process ended, for a message.
    last: String,
}

/// See the module.
pub struct Fleet {
    places: Vec<Place>,
    children: Vec<Child>,
    platform: Platform,
    registry: Registry,
    /// Each process has a token of its own, which is never used again.
    next_token: usize,
    /// When it last looked at its children.
    looked_ms: u64,
    /// When it last looked for orphans.
    reaped_ms: u64,
    /// Where the broker listens, while it does.
    channel: Option<ToChild>,
    /// What its owner has not been told yet.
    pub happened: Vec<FleetEvent>,
}

impl Fleet {
    /// Empty; its children's sockets are registered there, with tokens from `next_token` on.
    pub fn new(platform: &Platform, registry: Registry, next_token: usize) -> Fleet {
        let (places, children, looked_ms, reaped_ms, channel, happened) = Default::default();
        let platform = platform.clone();
        Fleet { places, children, platform, registry, next_token, looked_ms, reaped_ms, channel, happened }
    }

    /// Adds a place, whose child is started with the next tick.
    fn add(
        &mut self,
        role: Role,
        name: &str,
        bundle: &Bundle,
        account: Option<Account>,
        listener: Option<TcpListener>,
        stops_within_ms: u64,
    ) {
        let (name, log_mark, bundle) = (name.to_owned(), bundle.log_mark(), bundle.encode());
        self.places.push(Place { role, name, bundle, log_mark, account, listener });
        self.add_child(self.places.len() - 1, Life::new(stops_within_ms));
    }

    /// Web's place.
    pub fn add_web(&mut self, bundle: &Bundle, listener: TcpListener) {
        self.add(Role::Web, "web", bundle, None, Some(listener), 0);
    }

    /// One executor of a group, which runs as this user, or as we do; what it runs may take so long to stop.
    pub fn add_executor(
        &mut self,
        group: &str,
        bundle: &Bundle,
        account: Option<Account>,
        stops_within_ms: u64,
    ) {
        self.add(Role::Executor, group, bundle, account, None, stops_within_ms);
    }

    fn add_child(&mut self, place: usize, life: Life) {
        let (process, wants, stays, last) = Default::default();
        self.children.push(Child { place, token: 0, life, process, wants, stays, last });
    }

    /// Its group's name, or `web`.
    pub fn name(&self, place: usize) -> &str {
        &self.places[place].name
    }

    /// Places without a child that serves, for messages.
    pub fn not_ready(&self) -> Vec<&str> {
        let serves = |child: &Child| matches!(child.life.state, State::Serving { .. });
        let is_ready = |place| self.children.iter().any(|child| child.place == place && serves(child));
        let places = self.places.iter().enumerate();
        places.filter(|(place, _)| !is_ready(*place)).map(|(_, place)| place.name.as_str()).collect()
    }

    /// True once no child runs.
    pub fn all_stopped(&self) -> bool {
        self.children.iter().all(Child::is_gone)
    }

    /// True once no executor runs.
    pub fn executors_stopped(&self) -> bool {
        self.children.iter().all(|child| child.is_gone() || self.places[child.place].role == Role::Web)
    }

    /// The broker listens there: executors are told, and those to come.
    pub fn set_channel(&mut self, address: String) {
        let told = ToChild::Channel(address);
        for child in self.children.iter_mut().filter(|child| self.places[child.place].role != Role::Web) {
            child.process.iter_mut().for_each(|process| process.control.send(&told));
        }
        self.channel = Some(told);
    }

    /// The token file's text is another one: web, whose place this is, is told, and those to come.
    pub fn set_tokens(&mut self, place: usize, tokens: &str) {
        self.change(place, |bundle| Bundle { tokens: tokens.to_owned(), ..bundle });
        self.send(place, &ToChild::Tokens(tokens.to_owned()));
    }

    /// A place has these secrets from now on. Web, which stays, is given its bundle again; an executor finishes its jobs beside a
    /// successor, which has them.
    pub fn set_secrets(&mut self, place: usize, secrets: Vec<GroupSecret>, now_ms: u64) {
        if !self.change(place, |bundle| Bundle { secrets, ..bundle }) {
            return;
        }
        let role = self.places[place].role;
        for index in 0..self.children.len() {
            let child = &mut self.children[index];
            if child.place != place {
                continue;
            }
            match (&mut child.process, role, child.life.state) {
                (Some(process), Role::Web, _) => process.control.send_bytes(&self.places[place].bundle),
                // Web may know its secret no more: it would never serve.
                (Some(_), Role::Executor, State::Starting) => {
                    self.on(index, Event::Leaves(Leaving::Secret), now_ms);
                }
                (Some(_), Role::Executor, _) => {
                    child.wants = Some(Leaving::Secret);
                    self.let_leave(index, now_ms);
                }
                (None, ..) => {}
            }
        }
    }

    /// False: it is the same as before.
    fn change(&mut self, place: usize, change: impl FnOnce(Bundle) -> Bundle) -> bool {
        let bundle = &mut self.places[place].bundle;
        let changed = Bundle::changed(bundle, change).filter(|changed| changed != bundle);
        changed.map(|changed| *bundle = changed).is_some()
    }

    /// How many places there are.
    pub fn places(&self) -> usize {
        self.places.len()
    }

    /// Tells something to the child of a place that does not leave.
    pub fn send(&mut self, place: usize, message: &ToChild) {
        let is_staying = |child: &&mut Child| child.place == place && child.life.state != State::Aside;
        let staying = self.children.iter_mut().rfind(is_staying);
        staying.and_then(|child| child.process.as_mut()).iter_mut().for_each(|it| it.control.send(message));
    }

    /// Starts who is due, pings, and ends who is silent.
    pub fn tick(&mut self, now_ms: u64) {
        self.reap(now_ms);
        if now_ms >= self.reaped_ms + ORPHANS_WAIT_MS {
            self.reaped_ms = now_ms;
            reap_orphans(&self.processes());
        }
        // It looks at least at every heartbeat. One that was stopped itself has heard nobody meanwhile, and that
        // says nothing about them.
        let looked_ms = std::mem::replace(&mut self.looked_ms, now_ms);
        if now_ms.saturating_sub(looked_ms) > 2 * self.platform.execution_ipc.heartbeat_ms {
            self.children.iter_mut().filter_map(|child| child.process.as_mut()).for_each(|process| {
                (process.since_ms, process.heard_ms) = (now_ms, now_ms);
            });
        }
        // Successors are added behind; they are looked at in the same turn.
        let mut index = 0;
        while index < self.children.len() {
            self.let_leave(index, now_ms);
            if let Some(event) = self.watch(index, now_ms) {
                self.on(index, event, now_ms);
            }
            index += 1;
        }
    }

    /// A child's control socket or standard error is ready. False: this token is no child's.
    pub fn on_event(&mut self, token: usize, now_ms: u64) -> bool {
        let is_its = |child: &Child| child.process.is_some() && child.token == token;
        let Some(index) = self.children.iter().position(is_its) else { return false };
        self.hear(index, now_ms);
        self.reap(now_ms);
        true
    }

    /// What a child has said and was not read yet.
    fn hear(&mut self, index: usize, now_ms: u64) {
        let Some(process) = &mut self.children[index].process else { return };
        for message in process.hear(now_ms) {
            let Child { place, life, process, wants, .. } = &mut self.children[index];
            let Place { role, name, .. } = &self.places[*place];
            if !may_say(*role, life.state, &message) {
                log::error!("{name} says what it may not: it is ended");
                process.iter_mut().for_each(ChildProcess::kill);
                return;
            }
            match message {
                ToParent::Pong => {}
                ToParent::Worked => process.iter_mut().for_each(|process| process.has_worked = true),
                ToParent::Ready(said) => {
                    let is_new = life.state == State::Starting && *role == Role::Web;
                    self.happened.extend(is_new.then_some(FleetEvent::WebReady(said)));
                    let place = *place;
                    self.on(index, Event::Ready, now_ms);
                    self.succeeded(place);
                }
                ToParent::CutOff(jobs) => {
                    self.happened.push(FleetEvent::CutOff(jobs.into_iter().map(JobId).collect()))
                }
                ToParent::Drained(count) => self.happened.push(FleetEvent::Drained(count)),
                ToParent::Leaving(why) => {
                    *wants = Some(why);
                    self.let_leave(index, now_ms);
                }
            }
        }
    }

    /// Who serves on in this place until a successor does need not any more.
    fn succeeded(&mut self, place: usize) {
        for child in self.children.iter_mut().filter(|child| child.place == place) {
            if std::mem::take(&mut child.stays) {
                child.process.iter_mut().for_each(|process| process.control.send(&ToChild::Leave));
            }
        }
    }

    fn processes(&self) -> Vec<u32> {
        self.children.iter().filter_map(|child| Some(child.process.as_ref()?.child.id())).collect()
    }

    /// Looks at each child by its own number: waiting for "any child" would steal others' statuses. What one said before
    /// it ended is still in its socket: its status is seen first, if the supervisor comes late.
    pub fn reap(&mut self, now_ms: u64) {
        for index in 0..self.children.len() {
            let status = self.children[index].process.as_mut().and_then(ChildProcess::status);
            if let Some(status) = status {
                self.hear(index, now_ms);
                self.ended(index, Ok(status), now_ms);
            }
        }
        self.children.retain(|child| !child.is_gone());
    }

    /// Its process has ended, or could not be made.
    fn ended(&mut self, index: usize, end: std::io::Result<ExitStatus>, now_ms: u64) {
        let Child { place, life, process, wants, last, .. } = &mut self.children[index];
        *wants = None;
        let process = process.take();
        let has_worked = process.as_ref().is_some_and(|process| process.has_worked);
        let failed = if has_worked { How::FailedAtWork } else { How::Failed };
        let words = process.map(|process| process.stderr.last()).unwrap_or_default();
        let role = self.places[*place].role;
        let (how, reason, said) = match &end {
            // It was ended since it did not answer: that is its own.
            Ok(status) if matches!(life.state, State::Ending { .. }) => {
                (failed, "unresponsive", said(*status))
            }
            // A handler may end an executor with any code; web runs none.
            Ok(status) if role == Role::Web && status.code() == Some(Exit::Usage as i32) => {
                (How::Final, "crashed", said(*status))
            }
            Ok(status) if status.signal() == Some(9) => (How::Killed, "killed", said(*status)),
            Ok(status) if status.signal().is_some() => (failed, "killed", said(*status)),
            Ok(status) => (failed, "crashed", said(*status)),
            // The host has no process to give: that says nothing about the child, and is tried again.
            Err(error) => (How::Killed, "crashed", format!("cannot be started: {error}")),
        };
        // One that was told to stop ends by itself, or else something ended it.
        let was_told = matches!(life.state, State::Stopping { .. }) && reason != "killed";
        let as_told = was_told || life.state == State::Aside && end.is_ok_and(|status| status.success());
        let Place { name, role, .. } = &self.places[*place];
        if !as_told {
            let crashed = event(log::Level::Warn, "lifecycle.crashed").field("process_group", name);
            crashed.field("how", &said).field("last_words", &words).emit();
        }
        if *role == Role::Web {
            self.channel = None;
        }
        let words = if words.is_empty() { words } else { format!("; its last words: {words}") };
        *last = format!("{name} {said}, and is not restarted again{words}");
        self.on(index, Event::Ended(how, reason), now_ms);
    }

    /// Tells web, or the executors, to stop; they are killed if they do not.
    pub fn stop(&mut self, web: bool, now_ms: u64) {
        for index in 0..self.children.len() {
            if (self.places[self.children[index].place].role == Role::Web) == web {
                self.on(index, Event::Stop, now_ms);
            }
        }
    }

    /// When [`Fleet::tick`] has something to do, in ms from now.
    pub fn next_due_ms(&self, now_ms: u64) -> u64 {
        let due = |child: &Child| {
            let process = child.process.as_ref();
            let at_once = process.filter(|process| process.is_due_at_once()).map(|_| now_ms);
            let ping_ms = process.map(|process| process.pinged_ms + self.platform.execution_ipc.heartbeat_ms);
            [at_once, ping_ms, child.life.due_ms()].into_iter().flatten().min()
        };
        let orphans_ms = self.reaped_ms + ORPHANS_WAIT_MS;
        self.children.iter().filter_map(due).min().unwrap_or(u64::MAX).min(orphans_ms).saturating_sub(now_ms)
    }

    /// Lets the child leave that has asked to, if there is a place for it. One whose workers are taken serves nobody:
    /// it may go in any case.
    fn let_leave(&mut self, index: usize, now_ms: u64) {
        let Child { place, wants: Some(_), .. } = self.children[index] else { return };
        let is_of_group = |of: usize| self.places[of].name == self.places[place].name;
        let of_group = (0..self.places.len()).filter(|of| is_of_group(*of)).count();
        let leaving = || self.children.iter().filter(|child| child.life.state == State::Aside);
        let has_room = leaving().filter(|child| child.place == place).count() < MOST_LEAVING
            && leaving().filter(|child| is_of_group(child.place)).count() < of_group + MOST_LEAVING;
        let wants = &mut self.children[index].wants;
        if let Some(why) = wants.take_if(|why| has_room || *why == Leaving::Stuck) {
            self.on(index, Event::Leaves(why), now_ms);
        }
    }

    /// Asks the table, and does what it says.
    fn on(&mut self, index: usize, event: Event, now_ms: u64) {
        let child = &mut self.children[index];
        let has_served = matches!(child.life.state, State::Serving { .. });
        let (place, action) = (child.place, child.life.on(event, &self.platform.lifecycle.restart, now_ms));
        match (action, &mut child.process) {
            (Action::Spawn, _) => self.spawn(index, now_ms),
            (Action::SayStop, Some(process)) => process.control.send(&ToChild::Stop),
            (Action::Terminate, Some(process)) => process.terminate(),
            (Action::Kill, Some(process)) => process.kill(),
            (Action::Replaced(reason), _) => self.replaced(place, reason),
            (Action::SetAside(why), process) => {
                // Here nothing is wrong with the process itself, and all of them go at once.
                child.stays = has_served && why == Leaving::Secret;
                let leaves = process.iter_mut().filter(|_| !child.stays);
                leaves.for_each(|process| process.control.send(&ToChild::Leave));
                let successor = child.life.part();
                self.add_child(place, successor);
                self.replaced(place, why.as_str());
            }
            (Action::GiveUp, _) => self.happened.push(FleetEvent::GaveUp(std::mem::take(&mut child.last))),
            (Action::None, _) | (Action::SayStop | Action::Terminate | Action::Kill, None) => {}
        }
    }

    fn spawn(&mut self, index: usize, now_ms: u64) {
        let child = &mut self.children[index];
        let place = &self.places[child.place];
        child.token = self.next_token;
        self.next_token += 1;
        match ChildProcess::spawn(place, &self.registry, Token(child.token), now_ms) {
            Ok(mut process) => {
                let told = self.channel.iter().filter(|_| place.role != Role::Web);
                told.for_each(|channel| process.control.send(channel));
                log::debug!("{} is started as process {}", place.name, process.child.id());
                child.process = Some(process);
            }
            Err(error) => self.ended(index, Err(error), now_ms),
        }
    }

    fn replaced(&mut self, place: usize, reason: &'static str) {
        let restarted = event(log::Level::Info, "lifecycle.restarted");
        restarted.field("process_group", self.name(place)).field("reason", reason).emit();
        self.happened.push(FleetEvent::Replaced(place, reason));
    }

    /// Pings, passes on what it writes, and says what its time brings: it is due, late or silent.
    fn watch(&mut self, index: usize, now_ms: u64) -> Option<Event> {
        let Child { place, life, process, .. } = &mut self.children[index];
        let (heartbeat_ms, lifecycle) = (self.platform.execution_ipc.heartbeat_ms, &self.platform.lifecycle);
        process.iter_mut().for_each(|process| process.ping(heartbeat_ms, now_ms));
        if let Some(due_ms) = life.due_ms() {
            return (due_ms <= now_ms).then_some(Event::Due);
        }
        let process = process.as_ref()?;
        // Before it serves it answers nothing: an embedder's own start may take its time.
        let is_silent = process.heard_ms == process.since_ms;
        let (since_ms, most_ms, what) =
            if life.state == State::Starting || life.state == State::Aside && is_silent {
                (process.since_ms, lifecycle.ready_timeout_ms, "was not ready in time")
            } else {
                (process.heard_ms, 3 * heartbeat_ms + heartbeat_ms / 2, "does not answer")
            };
        (now_ms.saturating_sub(since_ms) > most_ms).then(|| {
            log::warn!("{} {what}: it is ended", self.places[*place].name);
            Event::Silent
        })
    }
}

impl Drop for Fleet {
    fn drop(&mut self) {
        self.children.iter_mut().filter_map(|child| child.process.as_mut()).for_each(ChildProcess::end);
    }
}

impl Child {
    fn is_gone(&self) -> bool {
        self.process.is_none() && self.life.state == State::Gone
    }
}

fn said(status: ExitStatus) -> String {
    match (status.code(), status.signal()) {
        (Some(code), _) => format!("ended with exit code {code}"),
        (None, Some(signal)) => format!("was ended by signal {signal}"),
        (None, None) => "ended".into(),
    }
}
