//! The signed local channel: executors reach the broker through it, strangers get nothing.
//!
//! The pure half: [`keys`], [`frame`], [`handshake`], [`messages`], and the two ends, [`BrokerEnd`] and
//! [`ExecutorEnd`], which take bytes and time and give bytes. The half with sockets: [`ChannelServer`] and
//! [`ChannelClient`], each driven by its process's one event loop. docs/protocol.md says all of it in enough
//! detail for a second implementation.

mod broker_end;
mod client;
mod executor_end;
pub mod frame;
pub mod handshake;
pub mod keys;
pub mod messages;
mod outbox;
mod server;

pub use broker_end::{BrokerEnd, Doorman};
pub use client::ChannelClient;
pub use executor_end::ExecutorEnd;
pub use server::{ChannelServer, ServerConfig};

use crate::observe::event;

/// Why a connection on the channel ends. The names are the metric's labels and the event's codes.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Reject {
    /// A mac does not hold.
    BadSignature,
    /// A time is too old or lies ahead.
    ExpiredTimestamp,
    /// A nonce came before, or a sequence number is not the next one.
    ReplayedNonce,
    /// A length exceeds the maximum.
    Oversized,
    /// This direction or phase has no such kind.
    UnknownKind,
    /// Another protocol version.
    BadVersion,
    /// The bytes do not have the shape.
    Malformed,
    /// The handshake took too long.
    HandshakeTimeout,
    /// The handshake broke off, or its limits make no sense.
    HandshakeFailed,
    /// Too many connections are in the handshake.
    TooManyConnections,
}

impl Reject {
    /// All of them, in the order of their discriminants.
    pub const ALL: [Reject; 10] = [
        Reject::BadSignature,
        Reject::ExpiredTimestamp,
        Reject::ReplayedNonce,
        Reject::Oversized,
        Reject::UnknownKind,
        Reject::BadVersion,
        Reject::Malformed,
        Reject::HandshakeTimeout,
        Reject::HandshakeFailed,
        Reject::TooManyConnections,
    ];

    /// The label.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Reject::BadSignature => "bad_signature",
            Reject::ExpiredTimestamp => "expired_timestamp",
            Reject::ReplayedNonce => "replayed_nonce",
            Reject::Oversized => "oversized",
            Reject::UnknownKind => "unknown_kind",
            Reject::BadVersion => "bad_version",
            Reject::Malformed => "malformed",
            Reject::HandshakeTimeout => "handshake_timeout",
            Reject::HandshakeFailed => "handshake_failed",
            Reject::TooManyConnections => "too_many_connections",
        }
    }
}

impl From<crate::codec::Malformed> for Reject {
    fn from(_: crate::codec::Malformed) -> Reject {
        Reject::Malformed
    }
}

/// Says refusals to the log: at most one line a second for each reason, whatever a peer does.
#[derive(Default)]
struct RefusalLog {
    /// When each was said last, in ms; 0 is never.
    said_ms: [u64; Reject::ALL.len()],
}

impl RefusalLog {
    fn say(&mut self, reason: Reject, now_ms: u64) {
        let said_ms = &mut self.said_ms[reason as usize];
        if *said_ms == 0 || now_ms.saturating_sub(*said_ms) >= 1_000 {
            *said_ms = now_ms.max(1);
            event(log::Level::Warn, "ipc.rejected").field("code", reason.as_str()).emit();
        }
    }
}
