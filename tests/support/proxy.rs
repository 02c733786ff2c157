//! A man in the middle of the channel: he sees every handshake message and frame, and does with it what a plan says.
//!
//! He knows no secret. Lengths are all he reads, because the two ends that speak through him are honest; what he
//! sends on may be anything.

#![allow(dead_code, reason = "each test that includes this file uses its own part of it")]

use std::collections::BTreeMap;
use std::io::{Read, Write};
use std::net::{Shutdown, SocketAddr, TcpListener, TcpStream};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

/// To whom something goes.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum To {
    Broker,
    Executor,
}

impl To {
    pub fn other(self) -> To {
        match self {
            To::Broker => To::Executor,
            To::Executor => To::Broker,
        }
    }

    /// The fixed sizes of the handshake's messages in this direction.
    fn messages(self) -> &'static [usize] {
        match self {
            To::Broker => &[80, 40],
            To::Executor => &[104],
        }
    }
}

/// What a unit is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Kind {
    M1,
    M2,
    M3,
    Frame(u8),
}

/// One message or frame that wants to pass.
#[derive(Clone, Debug)]
pub struct Unit {
    /// From 0, in the order of their connects.
    pub connection: usize,
    pub to: To,
    /// From 0, in its direction of its connection.
    pub index: usize,
    pub kind: Kind,
    pub bytes: Vec<u8>,
}

/// What becomes of a unit.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Act {
    Pass,
    /// These bytes in its place: nothing, another's, its own with a flipped bit or twice.
    Send(Vec<u8>),
    /// These bytes in its place, then an end of file.
    Cut(Vec<u8>),
    /// It goes after the next one.
    Swap,
    /// It passes, and it goes back to its sender as well.
    Reflect,
    /// It goes to the same party on another connection, and nowhere else; nobody there: it is lost.
    Stray(usize),
    /// It and all behind it go later.
    Delay(Duration),
    /// It and all behind it wait for [`Proxy::release`].
    Hold,
}

pub type Plan = Box<dyn FnMut(&Unit) -> Act + Send>;

/// What became of a connection.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum End {
    /// Both ends are there.
    Open,
    /// This end has closed it first.
    By(To),
    /// The man in the middle has.
    Cut,
}

/// Where one direction ends.
struct Sink {
    stream: TcpStream,
    /// Held while a unit is written, because units of others may come here too. Closing does not wait for it.
    turn: Mutex<()>,
}

struct Link {
    /// By receiver; none once both directions are over.
    sinks: BTreeMap<To, Arc<Sink>>,
    end: End,
    /// Directions that are still served.
    open: usize,
}

struct State {
    plan: Plan,
    links: Vec<Link>,
    seen: BTreeMap<Kind, u64>,
    stalled: Option<To>,
    released: u64,
    held: usize,
    closing: bool,
}

struct Shared {
    state: Mutex<State>,
    changed: Condvar,
    onward: SocketAddr,
}

/// See the module. Dropping it closes all its connections.
pub struct Proxy {
    pub address: SocketAddr,
    shared: Arc<Shared>,
}

impl Proxy {
    /// Between whoever connects and `onward`; everything passes until there is another plan.
    pub fn start(onward: SocketAddr) -> Proxy {
        let listener = TcpListener::bind("127.0.0.1:0").expect("a free port");
        let address = listener.local_addr().expect("an address");
        let state = State {
            plan: Box::new(|_| Act::Pass),
            links: Vec::new(),
            seen: BTreeMap::new(),
            stalled: None,
            released: 0,
            held: 0,
            closing: false,
        };
        let shared = Arc::new(Shared { state: Mutex::new(state), changed: Condvar::new(), onward });
        let for_thread = shared.clone();
        std::thread::spawn(move || {
            for stream in listener.incoming().map_while(Result::ok) {
                if for_thread.state().closing {
                    return;
                }
                for_thread.clone().serve(stream);
            }
        });
        Proxy { address, shared }
    }

    /// From the next unit on.
    pub fn plan(&self, plan: impl FnMut(&Unit) -> Act + Send + 'static) {
        self.shared.state().plan = Box::new(plan);
    }

    /// Nothing is read any more that goes there, or everything again.
    pub fn stall(&self, to: Option<To>) {
        self.shared.state().stalled = to;
        self.shared.changed.notify_all();
    }

    /// Lets go of all that is held now.
    pub fn release(&self) {
        self.shared.state().released += 1;
        self.shared.changed.notify_all();
    }

    /// How many units are held.
    pub fn held(&self) -> usize {
        self.shared.state().held
    }

    /// Connections so far.
    pub fn connections(&self) -> usize {
        self.shared.state().links.len()
    }

    /// What became of a connection, once neither of its directions is served any more.
    pub fn ended(&self, connection: usize) -> Option<End> {
        let state = self.shared.state();
        state.links.get(connection).filter(|link| link.open == 0).map(|link| link.end)
    }

    /// How many units of this kind came, whatever became of them.
    pub fn seen(&self, kind: Kind) -> u64 {
        self.shared.state().seen.get(&kind).copied().unwrap_or(0)
    }

    /// Ends a connection at once, in both directions.
    pub fn cut(&self, connection: usize) {
        self.shared.cut(connection);
    }
}

impl Drop for Proxy {
    fn drop(&mut self) {
        let connections = {
            let mut state = self.shared.state();
            state.closing = true;
            state.links.len()
        };
        self.shared.changed.notify_all();
        (0..connections).for_each(|connection| self.shared.cut(connection));
        // So that the listener's thread looks.
        let _ = TcpStream::connect(self.address);
    }
}

impl Shared {
    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn serve(self: Arc<Shared>, executor: TcpStream) {
        // Nobody listens: the executor sees an end, as without us.
        let Ok(broker) = TcpStream::connect(self.onward) else { return };
        for stream in [&executor, &broker] {
            stream.set_nodelay(true).expect("a TCP socket");
        }
        let sink = |stream: &TcpStream| {
            let stream = stream.try_clone().expect("a socket can be copied");
            Arc::new(Sink { stream, turn: Mutex::new(()) })
        };
        let sinks = BTreeMap::from([(To::Broker, sink(&broker)), (To::Executor, sink(&executor))]);
        let connection = {
            let mut state = self.state();
            state.links.push(Link { sinks, end: End::Open, open: 2 });
            state.links.len() - 1
        };
        for (to, source) in [(To::Broker, executor), (To::Executor, broker)] {
            let shared = self.clone();
            std::thread::spawn(move || {
                let mut direction = Direction { shared, connection, to, input: Vec::new(), source };
                direction.run();
                direction.shared.close(connection, to, Shutdown::Write);
                let mut state = direction.shared.state();
                let link = &mut state.links[connection];
                link.open -= 1;
                if link.open == 0 {
                    link.sinks.clear();
                }
            });
        }
    }

    fn sink(&self, connection: usize, to: To) -> Option<Arc<Sink>> {
        self.state().links.get(connection)?.sinks.get(&to).cloned()
    }

    /// False if the receiver has closed.
    fn send(&self, connection: usize, to: To, bytes: &[u8]) -> bool {
        let Some(sink) = self.sink(connection, to) else { return false };
        let _turn = sink.turn.lock().unwrap_or_else(PoisonError::into_inner);
        (&sink.stream).write_all(bytes).is_ok()
    }

    /// The first cause counts.
    fn ends(&self, connection: usize, end: End) {
        let link = &mut self.state().links[connection];
        if link.end == End::Open {
            link.end = end;
        }
    }

    fn close(&self, connection: usize, to: To, how: Shutdown) {
        if let Some(sink) = self.sink(connection, to) {
            let _ = sink.stream.shutdown(how);
        }
    }

    fn cut(&self, connection: usize) {
        self.ends(connection, End::Cut);
        for to in [To::Broker, To::Executor] {
            self.close(connection, to, Shutdown::Both);
        }
    }

    /// Waits while nothing goes there.
    fn gate(&self, to: To) {
        let mut state = self.state();
        while state.stalled == Some(to) && !state.closing {
            state = self.changed.wait(state).unwrap_or_else(PoisonError::into_inner);
        }
    }
}

/// What one thread serves.
struct Direction {
    shared: Arc<Shared>,
    connection: usize,
    to: To,
    source: TcpStream,
    input: Vec<u8>,
}

impl Direction {
    fn run(&mut self) {
        let (connection, to) = (self.connection, self.to);
        let mut swapped = Vec::new();
        for index in 0.. {
            let Some(bytes) = self.next(index) else {
                self.shared.ends(connection, End::By(to.other()));
                // The part of a frame that had come, as without us.
                self.shared.send(connection, to, &std::mem::take(&mut self.input));
                return;
            };
            let kind = match (to, index) {
                (To::Broker, 0) => Kind::M1,
                (To::Broker, 1) => Kind::M3,
                (To::Executor, 0) => Kind::M2,
                (To::Broker | To::Executor, _) => Kind::Frame(bytes[4]),
            };
            let unit = Unit { connection, to, index, kind, bytes };
            self.shared.gate(to);
            let act = {
                let mut state = self.shared.state();
                *state.seen.entry(kind).or_default() += 1;
                (state.plan)(&unit)
            };
            let mut bytes = match act {
                Act::Pass => unit.bytes,
                Act::Send(bytes) => bytes,
                Act::Cut(bytes) => {
                    self.shared.ends(connection, End::Cut);
                    self.shared.send(connection, to, &bytes);
                    return;
                }
                Act::Swap => {
                    swapped = unit.bytes;
                    continue;
                }
                Act::Reflect => {
                    self.shared.send(connection, to.other(), &unit.bytes);
                    unit.bytes
                }
                Act::Stray(other) => {
                    self.shared.send(other, to, &unit.bytes);
                    continue;
                }
                Act::Delay(pause) => {
                    std::thread::sleep(pause);
                    unit.bytes
                }
                Act::Hold => {
                    self.hold();
                    unit.bytes
                }
            };
            bytes.append(&mut swapped);
            if !self.shared.send(connection, to, &bytes) {
                self.shared.ends(connection, End::By(to));
                return;
            }
        }
    }

    fn hold(&self) {
        let mut state = self.shared.state();
        let before = state.released;
        state.held += 1;
        while state.released == before && !state.closing {
            state = self.shared.changed.wait(state).unwrap_or_else(PoisonError::into_inner);
        }
        state.held -= 1;
    }

    /// The next message or frame, whole; `None` at the end.
    fn next(&mut self, index: usize) -> Option<Vec<u8>> {
        loop {
            let length = match self.to.messages().get(index) {
                Some(length) => Some(*length),
                None => self.input.first_chunk().map(|length| 4 + u32::from_be_bytes(*length) as usize),
            };
            match length {
                Some(length) if self.input.len() >= length => {
                    return Some(self.input.drain(..length).collect());
                }
                Some(_) | None => {}
            }
            self.shared.gate(self.to);
            let mut part = vec![0; 65_536];
            match self.source.read(&mut part) {
                Ok(read @ 1..) => self.input.extend_from_slice(&part[..read]),
                Ok(0) | Err(_) => return None,
            }
        }
    }
}
