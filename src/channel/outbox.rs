//! Frames on their way out. They wait unsealed, so that nothing ages in our own queue and urgent ones overtake;
//! sequence, time and mac are set when the bytes go to the socket. Pure.

use std::collections::VecDeque;

use super::frame::{OVERHEAD_BYTES, Sealer};

/// Sealed bytes at once: enough for one large write, little enough that urgent frames still overtake.
const SEALED_BYTES: usize = 256 << 10;

#[derive(Default)]
pub(super) struct Outbox {
    queue: VecDeque<Waiting>,
    queued_bytes: usize,
    /// Of them, those of frames that bring no lease.
    small_bytes: usize,
    sealed: Vec<u8>,
    sent: usize,
    /// Frames sealed.
    pub(super) frames: u64,
}

struct Waiting {
    kind: u8,
    lease: u64,
    body: Vec<u8>,
    /// It brings a lease, or the maps of one.
    is_lease: bool,
}

impl Waiting {
    fn bytes(&self) -> usize {
        OVERHEAD_BYTES + self.body.len()
    }
}

impl Outbox {
    /// Bytes that go before any frame: the handshake's.
    pub(super) fn put_raw(&mut self, bytes: &[u8]) {
        self.sealed.extend_from_slice(bytes);
    }

    pub(super) fn push(&mut self, (kind, body): (u8, Vec<u8>), lease: u64) {
        self.enter(Waiting { kind, lease, body, is_lease: false }, VecDeque::push_back);
    }

    /// The same of a frame that brings a lease, or the maps of one.
    pub(super) fn push_lease(&mut self, (kind, body): (u8, Vec<u8>), lease: u64) {
        self.enter(Waiting { kind, lease, body, is_lease: true }, VecDeque::push_back);
    }

    /// Before all that wait, unless one of them is about the same lease: it must arrive first.
    pub(super) fn push_urgent(&mut self, (kind, body): (u8, Vec<u8>), lease: u64) {
        if lease != 0 && self.queue.iter().any(|waiting| waiting.lease == lease) {
            return self.push((kind, body), lease);
        }
        self.enter(Waiting { kind, lease, body, is_lease: false }, VecDeque::push_front);
    }

    fn enter(&mut self, frame: Waiting, put: impl FnOnce(&mut VecDeque<Waiting>, Waiting)) {
        self.queued_bytes += frame.bytes();
        self.small_bytes += if frame.is_lease { 0 } else { frame.bytes() };
        put(&mut self.queue, frame);
    }

    /// Bytes that wait, sealed or not.
    pub(super) fn waiting(&self) -> usize {
        self.queued_bytes + self.sealed.len() - self.sent
    }

    /// Bytes of unsealed frames that bring no lease.
    pub(super) fn small_waiting(&self) -> usize {
        self.small_bytes
    }

    /// What to write next; seals as much as fits one write.
    pub(super) fn bytes(&mut self, sealer: Option<&mut Sealer>, now_ms: u64) -> &[u8] {
        if self.sent == self.sealed.len() {
            self.sealed.clear();
            self.sent = 0;
        }
        if let Some(sealer) = sealer.filter(|_| self.sent == 0) {
            while self.sealed.len() < SEALED_BYTES {
                let Some(frame) = self.queue.pop_front() else { break };
                self.queued_bytes -= frame.bytes();
                self.small_bytes -= if frame.is_lease { 0 } else { frame.bytes() };
                sealer.seal(frame.kind, frame.lease, &frame.body, now_ms, &mut self.sealed);
                self.frames += 1;
            }
        }
        &self.sealed[self.sent..]
    }

    pub(super) fn wrote(&mut self, bytes: usize) {
        self.sent += bytes;
        if self.sent == self.sealed.len() && self.sealed.capacity() > 2 * SEALED_BYTES {
            self.sealed = Vec::new();
            self.sent = 0;
        }
    }
}
