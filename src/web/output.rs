//! What a client is still to be sent: small pieces together in one, large bodies as they came, so that they are copied nowhere and
//! each keeps its memory to itself until the client has it whole. Pure.

use std::collections::VecDeque;
use std::sync::Arc;

/// A body from here on is a piece of its own; a text is not longer for what comes behind it, and keeps no more memory.
const LARGE_BYTES: usize = 64 << 10;

/// See the module.
#[derive(Default)]
pub struct Output {
    /// None is empty, but a text that is alone: it is kept for the next answer.
    pieces: VecDeque<Piece>,
    /// Bytes of the first piece that were sent.
    sent: usize,
    /// Bytes of all pieces that were not.
    unsent: usize,
}

enum Piece {
    Text(Vec<u8>),
    /// A large one; others may hold it as well.
    Body(Arc<[u8]>),
}

impl Piece {
    fn bytes(&self) -> &[u8] {
        match self {
            Piece::Text(text) => text,
            Piece::Body(body) => body,
        }
    }
}

impl Output {
    /// What is to be sent next; empty iff nothing is to be sent. More may follow.
    pub fn next(&self) -> &[u8] {
        self.pieces.front().map_or(&[], |piece| &piece.bytes()[self.sent..])
    }

    /// Bytes of all that is to be sent.
    pub fn len(&self) -> usize {
        self.unsent
    }

    pub fn is_empty(&self) -> bool {
        self.unsent == 0
    }

    /// Bytes of memory that it holds, but for what a text alone keeps for the next answer.
    pub fn held(&self) -> usize {
        let held = |piece: &Piece| match piece {
            Piece::Text(text) if text.capacity() <= LARGE_BYTES => text.len(),
            Piece::Text(text) => text.capacity(),
            Piece::Body(body) => body.len(),
        };
        self.pieces.iter().map(held).sum()
    }

    /// All of these, one behind the other.
    pub fn text(&mut self, parts: &[&[u8]]) {
        let length = parts.iter().map(|part| part.len()).sum::<usize>();
        let most = LARGE_BYTES.max(length);
        let fits = |piece: &Piece| matches!(piece, Piece::Text(text) if text.len() + length <= most);
        // Nothing is no piece.
        if length > 0 && !self.pieces.back().is_some_and(fits) {
            self.pieces.push_back(Piece::Text(Vec::new()));
        }
        self.unsent += length;
        if let Some(Piece::Text(text)) = self.pieces.back_mut() {
            text.reserve(length);
            parts.iter().for_each(|part| text.extend_from_slice(part));
        }
    }

    /// A body, which is not copied if it is large.
    pub fn body(&mut self, body: &Arc<[u8]>) {
        if body.len() < LARGE_BYTES {
            return self.text(&[body]);
        }
        if self.unsent == 0 {
            // A text that was kept for what comes next.
            self.pieces.clear();
        }
        self.unsent += body.len();
        self.pieces.push_back(Piece::Body(body.clone()));
    }

    /// So many bytes of [`Output::next`] were sent.
    pub fn sent(&mut self, bytes: usize) {
        self.sent += bytes;
        self.unsent -= bytes;
        if !self.next().is_empty() {
            return;
        }
        self.sent = 0;
        match self.pieces.front_mut() {
            // One large answer must not keep its memory for the connection's life.
            Some(Piece::Text(text)) if self.unsent == 0 && text.capacity() <= LARGE_BYTES => text.clear(),
            _ => _ = self.pieces.pop_front(),
        }
    }

    /// Nobody takes it any more.
    pub fn clear(&mut self) {
        *self = Output::default();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Sends all of it, at most so many bytes at a time.
    fn take(output: &mut Output, most: usize) -> Vec<u8> {
        let mut taken = Vec::new();
        while !output.is_empty() {
            let next = output.next();
            assert!(!next.is_empty(), "there is more");
            let sent = next.len().min(most);
            taken.extend_from_slice(&next[..sent]);
            output.sent(sent);
        }
        assert!(output.next().is_empty());
        taken
    }

    #[test]
    fn whatever_is_put_in_comes_out_in_its_order_however_little_is_taken_at_a_time() {
        let bodies: Vec<Arc<[u8]>> = [0, 1, LARGE_BYTES - 1, LARGE_BYTES, 3 * LARGE_BYTES]
            .map(|length| (0..length).map(|at| (at % 251) as u8).collect())
            .into();
        let mut output = Output::default();
        for most in [usize::MAX, 65_537, 1_000, 1] {
            let mut expected = Vec::new();
            for (number, body) in bodies.iter().chain(bodies.iter().rev()).enumerate() {
                let head = format!("head {number}: ");
                output.text(&[head.as_bytes(), b"\r\n"]);
                output.body(body);
                expected.extend_from_slice(head.as_bytes());
                expected.extend_from_slice(b"\r\n");
                expected.extend_from_slice(body);
                assert_eq!(output.len(), expected.len());
            }
            assert!(take(&mut output, most) == expected, "{most} at a time");
            assert_eq!((output.len(), output.held()), (0, 0));
        }
    }

    #[test]
    fn a_large_body_is_shared_and_given_up_as_soon_as_it_was_sent() {
        let (mut output, body) = (Output::default(), Arc::<[u8]>::from(vec![b'a'; 1 << 20]));
        for _ in 0..3 {
            output.text(&[b"head"]);
            output.body(&body);
            output.body(&Arc::from([]));
        }
        assert_eq!((Arc::strong_count(&body), output.held()), (4, 3 * ((1 << 20) + 4)));
        output.sent(4);
        output.sent(body.len());
        assert_eq!((Arc::strong_count(&body), output.len()), (3, 2 * ((1 << 20) + 4)));
        assert_eq!(output.next(), b"head", "nothing stands between two bodies");
        output.clear();
        assert_eq!((Arc::strong_count(&body), output.held(), output.len()), (1, 0, 0));
    }

    #[test]
    fn small_answers_share_a_piece_and_its_room_is_kept_until_it_was_large() {
        let mut output = Output::default();
        for _ in 0..10 {
            output.text(&[&[b'x'; 1_000]]);
        }
        assert_eq!((output.pieces.len(), output.next().len()), (1, 10_000));
        take(&mut output, usize::MAX);
        assert!(matches!(output.pieces.front(), Some(Piece::Text(text)) if text.capacity() >= 10_000));
        output.text(&[&[b'x'; LARGE_BYTES + 1]]);
        assert!(output.held() > LARGE_BYTES);
        take(&mut output, usize::MAX);
        assert!(output.pieces.is_empty());
    }
}
