//! The children of one supervisor: started, watched, replaced, stopped.
//!
//! A slot's states, and what moves it (`on_event` and `tick` are this table):
//!
//! ```text
//!   state     | due          | Ready     | end                   | silent 3 x | told to stop
//!   ----------+--------------+-----------+-----------------------+------------+-------------
//!   Waiting   | -> Starting  |           |                       |            | -> Stopped
//!   Starting  | too late: ko | -> Ready  | -> Waiting or give up | kill       | kill
//!   Ready     |              |           | -> Waiting, at once   | TERM, KILL | Stop, KILL
//!   Stopped   |              |           |                       |            |
//! ```

use std::net::TcpListener;
use std::os::unix::process::ExitStatusExt;
use std::process::{Child, ExitStatus};

use mio::{Interest, Registry, Token};
use rustix::process::{Pid, Signal, kill_process};
use zeroize::Zeroizing;

use super::child::{Role, spawn};
use super::control::{Control, ToChild, ToParent};
use super::restart::{History, How, Verdict};
use crate::config::Lifecycle;
use crate::job::JobId;
use crate::observe::event;

/// After SIGTERM, or after it was told to stop, a child has this long.
const KILL_AFTER_MS: u64 = 1_000;

/// What the owner of a fleet should know.
#[derive(Debug, PartialEq, Eq)]
pub enum FleetEvent {
    /// A child serves; web says where the channel listens.
    Ready(usize, String),
    /// A child has ended and will be replaced, for this reason.
    Replaced(usize, &'static str),
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
    state: State,
    history: History,
}

enum State {
    Waiting { start_at_ms: u64 },
    Running(Box<Running>),
    Stopped,
}

struct Running {
    child: Child,
    control: Control,
    since_ms: u64,
    ready: bool,
    heard_ms: u64,
    pinged_ms: u64,
    /// When SIGKILL follows.
    kill_at_ms: Option<u64>,
    /// Why it is being ended, if by us or by its own wish.
    reason: Option<&'static str>,
    /// It was told to stop: its end is no failure.
    stopping: bool,
    /// It knows where the broker listens.
    told: bool,
}

/// See the module.
pub struct Fleet {
    slots: Vec<Slot>,
    lifecycle: Lifecycle,
    heartbeat_ms: u64,
    first_token: usize,
}

impl Fleet {
    /// Empty; its children's tokens begin at `first_token`.
    #[must_use]
    pub fn new(lifecycle: Lifecycle, heartbeat_ms: u64, first_token: usize) -> Fleet {
        Fleet { slots: Vec::new(), lifecycle, heartbeat_ms, first_token }
    }

    /// Adds a child, to be started with the next tick.
    pub fn add(
        &mut self,
        role: Role,
        name: String,
        bundle: Zeroizing<Vec<u8>>,
        listener: Option<TcpListener>,
    ) {
        let state = State::Waiting { start_at_ms: 0 };
        self.slots.push(Slot { role, name, bundle, listener, state, history: History::default() });
    }

    /// True if this token is a child's control socket.
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

    /// True once every child is ready.
    #[must_use]
    pub fn all_ready(&self) -> bool {
        self.slots.iter().all(|slot| matches!(&slot.state, State::Running(running) if running.ready))
    }

    /// Children that are not ready, for messages.
    #[must_use]
    pub fn not_ready(&self) -> Vec<&str> {
        let is_ready = |slot: &&Slot| !matches!(&slot.state, State::Running(running) if running.ready);
        self.slots.iter().filter(is_ready).map(|slot| slot.name.as_str()).collect()
    }

    /// True once no child runs.
    #[must_use]
    pub fn all_stopped(&self) -> bool {
        self.slots.iter().all(|slot| matches!(slot.state, State::Stopped))
    }

    /// True once no executor runs.
    #[must_use]
    pub fn executors_stopped(&self) -> bool {
        let mut executors = self.slots.iter().filter(|slot| slot.role != Role::Web);
        executors.all(|slot| matches!(slot.state, State::Stopped))
    }

    /// Tells executors that were started since the last call.
    pub fn tell_new(&mut self, message: &ToChild) {
        for slot in self.slots.iter_mut().filter(|slot| slot.role != Role::Web) {
            if let State::Running(running) = &mut slot.state
                && !std::mem::replace(&mut running.told, true)
            {
                running.control.send(message);
            }
        }
    }

    /// Tells something to one child.
    pub fn send(&mut self, slot: usize, message: &ToChild) {
        if let State::Running(running) = &mut self.slots[slot].state {
            running.control.send(message);
        }
    }

    /// Tells something to every child of a kind.
    pub fn send_all(&mut self, web: bool, message: &ToChild) {
        for slot in 0..self.slots.len() {
            if (self.slots[slot].role == Role::Web) == web {
                self.send(slot, message);
            }
        }
    }

    /// Starts who is due, pings, and ends who is silent.
    pub fn tick(&mut self, registry: &Registry, now_ms: u64) -> Vec<FleetEvent> {
        let mut events = Vec::new();
        for index in 0..self.slots.len() {
            let slot = &mut self.slots[index];
            match &mut slot.state {
                State::Waiting { start_at_ms } if *start_at_ms <= now_ms => {
                    if let Err(error) = self.start(index, registry, now_ms) {
                        log::error!("{} cannot be started: {error}", self.slots[index].name);
                        events.extend(self.after_end(index, false, "cannot be started".into(), None, now_ms));
                    }
                }
                State::Running(running) => {
                    running.control.flush();
                    watch(&slot.name, running, self.heartbeat_ms, self.lifecycle.ready_timeout_ms, now_ms);
                }
                State::Waiting { .. } | State::Stopped => {}
            }
        }
        events.extend(self.reap(now_ms));
        events
    }

    fn start(&mut self, index: usize, registry: &Registry, now_ms: u64) -> std::io::Result<()> {
        let slot = &mut self.slots[index];
        let (child, mut control) = spawn(slot.role, slot.listener.as_ref())?;
        let token = Token(self.first_token + index);
        registry.register(control.stream(), token, Interest::READABLE | Interest::WRITABLE)?;
        control.send_bytes(&slot.bundle);
        log::debug!("{} is started as process {}", slot.name, child.id());
        slot.state = State::Running(Box::new(Running {
            child,
            control,
            since_ms: now_ms,
            ready: false,
            heard_ms: now_ms,
            pinged_ms: now_ms,
            kill_at_ms: None,
            reason: None,
            stopping: false,
            told: false,
        }));
        Ok(())
    }

    /// A control socket is ready.
    pub fn on_event(&mut self, token: usize, now_ms: u64) -> Vec<FleetEvent> {
        let index = token - self.first_token;
        let slot = &mut self.slots[index];
        let State::Running(running) = &mut slot.state else { return Vec::new() };
        running.control.flush();
        let Ok(messages) = running.control.read::<ToParent>() else {
            // Its end of the socket is closed: it is ending, or has lost its way. Either way it goes.
            let _ = running.child.kill();
            return self.reap(now_ms);
        };
        let mut events = Vec::new();
        for message in messages {
            running.heard_ms = now_ms;
            match message {
                ToParent::Pong => {}
                ToParent::Ready(address) => {
                    running.ready = true;
                    slot.history.ready();
                    events.push(FleetEvent::Ready(index, address));
                }
                ToParent::Drained(jobs) => events.push(FleetEvent::Drained(jobs)),
                ToParent::Stuck => running.reason = Some("stuck"),
            }
        }
        if running.control.has_ended() {
            let _ = running.child.kill();
            events.extend(self.reap(now_ms));
        }
        events
    }

    /// Looks at each child by its own number: waiting for "any child" would steal others' statuses.
    pub fn reap(&mut self, now_ms: u64) -> Vec<FleetEvent> {
        let mut events = Vec::new();
        for index in 0..self.slots.len() {
            let State::Running(running) = &mut self.slots[index].state else { continue };
            let Ok(Some(status)) = running.child.try_wait() else { continue };
            let (ready, reason, stopping) = (running.ready, running.reason, running.stopping);
            if stopping {
                self.slots[index].state = State::Stopped;
                continue;
            }
            events.extend(self.after_end(index, ready, said(status), reason, now_ms));
        }
        events
    }

    fn after_end(
        &mut self,
        index: usize,
        was_ready: bool,
        how: String,
        reason: Option<&'static str>,
        now_ms: u64,
    ) -> Option<FleetEvent> {
        let slot = &mut self.slots[index];
        let reason = reason.unwrap_or(if how.contains("signal") { "killed" } else { "crashed" });
        event(log::Level::Warn, "lifecycle.crashed")
            .field("process_group", &slot.name)
            .field("how", &how)
            .emit();
        let state = match reason {
            "stuck" => How::Ready,
            _ if was_ready => How::Ready,
            "killed" if how.ends_with("signal 9") => How::Killed,
            _ => How::Unready,
        };
        match slot.history.ended(state, &self.lifecycle.restart, now_ms) {
            Verdict::Again(start_at_ms) => {
                slot.state = State::Waiting { start_at_ms };
                event(log::Level::Info, "lifecycle.restarted")
                    .field("process_group", &slot.name)
                    .field("reason", reason)
                    .emit();
                Some(FleetEvent::Replaced(index, reason))
            }
            Verdict::GiveUp => {
                slot.state = State::Stopped;
                Some(FleetEvent::GaveUp(format!("{} {how}, and is not restarted again", slot.name)))
            }
        }
    }

    /// Tells children of a kind to stop; they are killed if they do not.
    pub fn stop(&mut self, web: bool, now_ms: u64) {
        for slot in self.slots.iter_mut().filter(|slot| (slot.role == Role::Web) == web) {
            match &mut slot.state {
                State::Running(running) => {
                    running.stopping = true;
                    running.control.send(&ToChild::Stop);
                    running.kill_at_ms.get_or_insert(now_ms + KILL_AFTER_MS);
                }
                State::Waiting { .. } | State::Stopped => slot.state = State::Stopped,
            }
        }
    }

    /// Ends everything at once.
    pub fn kill_all(&mut self) {
        for slot in &mut self.slots {
            if let State::Running(running) = &mut slot.state {
                let _ = running.child.kill();
                let _ = running.child.wait();
            }
            slot.state = State::Stopped;
        }
    }

    /// When [`Fleet::tick`] has something to do, in ms from now.
    #[must_use]
    pub fn next_due_ms(&self, now_ms: u64) -> u64 {
        let due = |slot: &Slot| match &slot.state {
            State::Waiting { start_at_ms } => *start_at_ms,
            // Its socket closes a moment before it can be waited for, and no other event need follow.
            State::Running(running) if running.control.has_ended() => now_ms,
            State::Running(running) => {
                let ping = running.pinged_ms + self.heartbeat_ms;
                running.kill_at_ms.map_or(ping, |kill| kill.min(ping))
            }
            State::Stopped => u64::MAX,
        };
        self.slots.iter().map(due).min().unwrap_or(u64::MAX).saturating_sub(now_ms)
    }
}

impl Drop for Fleet {
    fn drop(&mut self) {
        self.kill_all();
    }
}

/// One running child: pings it, and ends it when it is silent or late.
fn watch(name: &str, running: &mut Running, heartbeat_ms: u64, ready_timeout_ms: u64, now_ms: u64) {
    if running.kill_at_ms.is_some_and(|at| at <= now_ms) {
        let _ = running.child.kill();
        return;
    }
    if now_ms.saturating_sub(running.pinged_ms) >= heartbeat_ms {
        running.pinged_ms = now_ms;
        running.control.send(&ToChild::Ping);
    }
    if running.kill_at_ms.is_some() || running.stopping {
        return;
    }
    let silent = now_ms.saturating_sub(running.heard_ms) > 3 * heartbeat_ms + heartbeat_ms / 2;
    let late = !running.ready && now_ms.saturating_sub(running.since_ms) > ready_timeout_ms;
    if silent || late {
        log::warn!("{name} {}: it is ended", if late { "was not ready in time" } else { "does not answer" });
        running.reason = Some("unresponsive");
        running.kill_at_ms = Some(now_ms + KILL_AFTER_MS);
        if let Some(pid) = i32::try_from(running.child.id()).ok().and_then(Pid::from_raw) {
            let _ = kill_process(pid, Signal::TERM);
        }
    }
}

fn said(status: ExitStatus) -> String {
    match (status.code(), status.signal()) {
        (Some(code), _) => format!("ended with exit code {code}"),
        (None, Some(signal)) => format!("was ended by signal {signal}"),
        (None, None) => "ended".into(),
    }
}
