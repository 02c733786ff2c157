//! Why a connection on the channel ends, and how often the log hears of it.

use crate::named::named;
use crate::observe::event;

named! {
    /// Why a connection on the channel ends. The names are the metric's labels and the event's codes.
    Reject {
        /// A mac does not hold.
        BadSignature = "bad_signature",
        /// A time is too old or lies ahead.
        ExpiredTimestamp = "expired_timestamp",
        /// A nonce came before, or a sequence number is not the next one.
        ReplayedNonce = "replayed_nonce",
        /// A length exceeds the maximum.
        Oversized = "oversized",
        /// This direction or phase has no such kind.
        UnknownKind = "unknown_kind",
        /// Another protocol version.
        BadVersion = "bad_version",
        /// The bytes do not have the shape.
        Malformed = "malformed",
        /// The handshake took too long.
        HandshakeTimeout = "handshake_timeout",
        /// The handshake broke off, or its limits make no sense.
        HandshakeFailed = "handshake_failed",
        /// Too many connections are in the handshake, or of one group.
        TooManyConnections = "too_many_connections",
        /// Frames wait for a peer that does not read them.
        PeerNotReading = "peer_not_reading",
    }
}

impl From<crate::codec::Malformed> for Reject {
    fn from(_: crate::codec::Malformed) -> Reject {
        Reject::Malformed
    }
}

/// Says refusals to the log: at most one line a second for each reason, whatever a peer does.
#[derive(Default)]
pub(super) struct RefusalLog {
    /// When each was said last, in ms; 0 is never.
    said_ms: [u64; Reject::ALL.len()],
}

impl RefusalLog {
    pub(super) fn say(&mut self, reason: Reject, now_ms: u64) {
        let said_ms = &mut self.said_ms[reason as usize];
        if *said_ms == 0 || now_ms.saturating_sub(*said_ms) >= 1_000 {
            *said_ms = now_ms.max(1);
            event(log::Level::Warn, "ipc.rejected").field("code", reason.as_str()).emit();
        }
    }
}
