//! A broker's side of the channel without a socket: two groups, a memory broker, a time that stands still, and ends
//! that tests feed by hand.

#![allow(dead_code, reason = "each test that includes this file uses its own part of it")]

use std::sync::Arc;
use std::time::Duration;

use cofferdam::HandlerOptions;
use cofferdam::bell::Bell;
use cofferdam::channel::handshake::{Initiator, Nonces, Session, Terms};
use cofferdam::channel::keys::GroupSecret;
use cofferdam::channel::messages::{ToBroker, ToExecutor, to_executor};
use cofferdam::channel::{Admission, BrokerEnd, Reject};
use cofferdam::clock::{Clock, Timestamp};
use cofferdam::entropy::Entropy;
use cofferdam::handler::HandlerSpec;
use cofferdam::job::{JobId, JobStatus, Outcome, Version};
use cofferdam::memory::MemoryBroker;
use cofferdam::memory::broker::Broker;
use cofferdam::ports::{Consumer, Lease, Producer, Rules, Submitted, Viewer};

use super::wire::{Forged, data_keys};
use jobs::plain;

#[path = "jobs.rs"]
mod jobs;

pub const TTL_MS: u64 = 30_000;
pub const MAX_PAYLOAD: usize = 8_192;
pub const MAX_FRAME: usize = MAX_PAYLOAD + 65_536;
pub const MAX_LEASES: u32 = 64;
/// What effects in parts may come to.
pub const PARTS_MAX: usize = 64 * 1_024 + MAX_FRAME;
pub const NONCES: usize = 16;
pub const NOW: u64 = 1_000_000;

pub const PING: u8 = 0x01;
pub const ROOM: u8 = 0x10;
pub const PONG: u8 = 0x81;

pub fn secret(group: usize) -> GroupSecret {
    GroupSecret::from_bytes([0x40 + u8::try_from(group).expect("few groups"); 32])
}

/// A broker's side with two groups, and its time.
pub struct Side {
    pub secrets: Vec<GroupSecret>,
    pub nonces: Vec<Nonces>,
    pub entropy: Entropy,
    pub broker: MemoryBroker,
    /// `Some` makes the consumers in the broker's place.
    pub connect: Option<Box<dyn Fn() -> Box<dyn Consumer>>>,
    pub now: u64,
}

impl Side {
    pub fn new() -> Side {
        let rules = Rules {
            capacity: 1_000,
            visibility: Duration::from_secs(30),
            max_deliveries: 3,
            retry: cofferdam::handler::Retry { base_ms: 200, max_ms: 2000 },
            result_ttl: Duration::from_secs(600),
            awaited_ttl: Duration::from_secs(30),
            context_ttl: Duration::from_secs(60),
            lane_state_max: 64 * 1_024,
            max_payload: MAX_PAYLOAD,
            grace: Duration::from_secs(1),
            ..Rules::default()
        };
        let spec = |name, options| HandlerSpec::new(name, 0, options);
        let handlers =
            vec![spec("free", HandlerOptions::default()), spec("serial", HandlerOptions::serial())];
        let clock = Clock::manual(Timestamp(1_700_000_000_000_000));
        let broker = Broker::new(rules, handlers, vec![64; 2], Entropy::Seeded(1));
        let broker = MemoryBroker::new(broker, clock, vec![Arc::from("a"), Arc::from("b")]);
        Side {
            secrets: vec![secret(0), secret(1)],
            nonces: empty_nonces(),
            entropy: Entropy::Seeded(2),
            broker,
            connect: None,
            now: NOW,
        }
    }

    /// The same side with empty tables of nonces, so that many connections fit a test.
    pub fn anew(&mut self) -> &mut Side {
        self.nonces = empty_nonces();
        self
    }

    pub fn end(&self) -> BrokerEnd {
        BrokerEnd::new(self.now, PARTS_MAX)
    }

    pub fn receive(&mut self, end: &mut BrokerEnd, bytes: &[u8]) -> Result<(), Reject> {
        let mut connect = |group| match &self.connect {
            Some(connect) => connect(),
            None => Box::new(self.broker.consumer(group, Bell::silent())) as Box<dyn Consumer>,
        };
        let max_frame = u32::try_from(MAX_FRAME).expect("it is small");
        let mut admission = Admission {
            secrets: &self.secrets,
            nonces: &mut self.nonces,
            terms: Terms { boot_id: [9; 16], max_frame, max_leases: MAX_LEASES, ttl_ms: TTL_MS },
            entropy: &mut self.entropy,
            connect: &mut connect,
        };
        end.received(bytes, &mut admission, self.now)
    }

    pub fn m1(&mut self, group: usize) -> Initiator {
        let (nonce, index) = (self.entropy.bytes(), u16::try_from(group).expect("few groups"));
        Initiator::start(&secret(group), index, nonce, TTL_MS, self.now)
    }

    /// A connection that has its M2: what E would say next, and what both have said.
    pub fn proven(&mut self) -> Half {
        let mut end = self.end();
        let initiator = self.m1(0);
        let m1 = *initiator.m1();
        self.receive(&mut end, &m1).expect("M1 is valid");
        let m2: [u8; 104] = sent(&mut end, self.now).try_into().expect("M2 and nothing else");
        let keys = data_keys(&secret(0), &m1, &m2);
        let (session, m3) = initiator.finish(&m2, &secret(0), self.now).expect("M2 is valid");
        Half { end, session, m3, to_broker: keys.to_broker, to_executor: keys.to_executor }
    }

    /// A connection that is up.
    pub fn up(&mut self) -> Half {
        let mut half = self.proven();
        let m3 = half.m3;
        self.receive(&mut half.end, &m3).expect("M3 is valid");
        assert_eq!(half.end.group(), Some(0));
        half
    }

    /// What becomes of these bytes as the first that a connection brings after its handshake.
    pub fn first_of_up(&mut self, bytes: impl FnOnce(&Half) -> Vec<u8>) -> Result<(), Reject> {
        let mut half = self.up();
        let bytes = bytes(&half);
        let received = self.receive(&mut half.end, &bytes);
        if received.is_err() {
            half.is_over(self);
        }
        received
    }

    /// Accepts a job.
    pub fn submit(&mut self, handler: &str) -> JobId {
        let id = JobId(self.entropy.bytes());
        let job = plain(id, handler);
        assert_eq!(self.broker.submit(vec![job]).expect("the broker is there"), [Submitted::New]);
        id
    }

    pub fn submit_some(&mut self, handler: &str, count: u32) {
        for _ in 0..count {
            self.submit(handler);
        }
    }

    pub fn status(&self, job: JobId) -> JobStatus {
        let record = self.broker.record(&Viewer::anonymous(), job).expect("the broker is there");
        record.expect("it was accepted").status
    }

    pub fn cancel(&self, job: JobId) {
        self.broker.cancel(&Viewer::anonymous(), job).expect("the broker is there");
    }
}

fn empty_nonces() -> Vec<Nonces> {
    (0..2).map(|_| Nonces::new(NONCES)).collect()
}

/// A broker's end, and all that its honest executor knows.
pub struct Half {
    pub end: BrokerEnd,
    pub session: Session,
    pub m3: [u8; 40],
    pub to_broker: [u8; 32],
    pub to_executor: [u8; 32],
}

impl Half {
    pub fn sealed(&mut self, message: &ToBroker, lease: u64, now: u64) -> Vec<u8> {
        let (kind, body) = message.encode();
        let mut out = Vec::new();
        self.session.sealer.seal(kind, lease, &body, now, &mut out);
        out
    }

    /// Says this about a lease (0: none).
    pub fn say(&mut self, side: &mut Side, lease: u64, message: &ToBroker) -> Result<(), Reject> {
        let bytes = self.sealed(message, lease, side.now);
        side.receive(&mut self.end, &bytes)
    }

    /// The outcome of a leased job that saw the lane's first state.
    pub fn answer(
        &mut self,
        side: &mut Side,
        lease: &Lease,
        index: usize,
        outcome: Outcome,
    ) -> Result<(), Reject> {
        let (job, delivery) = (lease.jobs[index].spec.id, lease.jobs[index].delivery);
        let builds_on = Version::default();
        self.say(side, lease.id.0, &ToBroker::Outcome { job, delivery, builds_on, outcome })
    }

    /// A turn of the broker; what it says then, in order, each with the lease of its frame.
    #[track_caller]
    pub fn turn(&mut self, side: &Side) -> Vec<(u64, ToExecutor)> {
        self.end.turn().expect("the broker is there");
        self.heard(side)
    }

    /// All that the end says now.
    #[track_caller]
    pub fn heard(&mut self, side: &Side) -> Vec<(u64, ToExecutor)> {
        let mut heard = Vec::new();
        loop {
            let bytes = sent(&mut self.end, side.now);
            if bytes.is_empty() {
                return heard;
            }
            let mut at = 0;
            while let Some((frame, length)) =
                self.session.opener.open(&bytes[at..], side.now, to_executor).expect("valid")
            {
                at += length;
                let message = ToExecutor::decode(frame.kind, frame.lease, frame.body).expect("valid");
                heard.push((frame.lease, message));
            }
            assert_eq!(at, bytes.len(), "whole frames");
        }
    }

    /// Gives this much room, and takes the leases that come at once.
    #[track_caller]
    pub fn claim(&mut self, side: &mut Side, level: u32) -> Vec<Lease> {
        self.say(side, 0, &ToBroker::Room(level)).expect("room may be given");
        leases(self.turn(side))
    }

    /// A refusal is final, and nothing was said to it.
    #[track_caller]
    pub fn is_over(&mut self, side: &mut Side) {
        let said = sent(&mut self.end, side.now).len();
        let answers = super::wire::OVERHEAD * usize::try_from(self.end.frames_in).expect("a few frames");
        assert!(said <= answers, "pongs for the pings before it, and nothing to what was refused");
        assert!(side.receive(&mut self.end, &[0; 40]).is_err(), "and nothing more is taken from it");
    }
}

/// The leases among what was heard.
pub fn leases(heard: Vec<(u64, ToExecutor)>) -> Vec<Lease> {
    let lease = |(_, message)| match message {
        ToExecutor::Lease(lease) => Some(lease),
        ToExecutor::Pong
        | ToExecutor::State { .. }
        | ToExecutor::Fenced(_)
        | ToExecutor::Cancel(_)
        | ToExecutor::Drain => None,
    };
    heard.into_iter().filter_map(lease).collect()
}

/// All that the end says now, as bytes.
pub fn sent(end: &mut BrokerEnd, now: u64) -> Vec<u8> {
    let bytes = end.output(now).to_vec();
    end.wrote(bytes.len());
    bytes
}

pub fn ping(now: u64) -> Forged {
    Forged { kind: PING, time_ms: now, ..Forged::default() }
}
