//! Who gives way where there is no room for all: at the limit of connections, and beyond the budgets of bodies and of answers. Pure.

use std::cmp::Reverse;
use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;

use super::clients::{Clients, Conn, Incoming, Phase};
use crate::clock::Timestamp;
use crate::limits::UNREAD_BYTES;
use crate::negative_controls::{Control, is_off};

impl Clients {
    /// The connection that can go, to make room for another one: first those that are over, then those without a request and
    /// those whose callers have left, then those that are still to say what they want, then those that take no answer; of several
    /// the one that has been so for longest. Of those that may have more to read than was read nothing is known yet.
    pub fn most_idle(&self, may_say_more: impl Fn(usize) -> bool) -> Option<usize> {
        const TAKES_NOTHING: Duration = Duration::from_secs(1);
        let rank = |conn: &Conn| match &conn.phase {
            Phase::Closing if conn.output.is_empty() => Some((0, conn.rests_since)),
            Phase::Head | Phase::Closing if !conn.output.is_empty() => {
                Some((3, conn.took_at)).filter(|(_, at)| at.plus(TAKES_NOTHING) <= self.now)
            }
            Phase::Head if conn.input.is_empty() => Some((1, conn.rests_since)),
            Phase::Waiting(waiting) => {
                Some((1, conn.rests_since)).filter(|_| !waiting.is_counted && conn.has_left)
            }
            Phase::Head => Some((2, conn.rests_since)),
            Phase::Body(incoming) => Some((2, incoming.since)).filter(|_| !incoming.route.takes_body()),
            Phase::Inner | Phase::Streaming(_) | Phase::Listening(_) | Phase::Closing => None,
        };
        let known = self.conns.iter().filter(|(number, _)| !may_say_more(**number));
        let ranked = known.filter_map(|(number, conn)| Some((rank(conn)?, *number)));
        let ranked = ranked.min().map(|(_, number)| number);
        let is_slow = |_, since: Timestamp| since.plus(TAKES_NOTHING) <= self.now;
        ranked.or_else(|| self.oldest_body(|_| 1, is_slow))
    }

    /// Of the bodies that may go, by number and begin, the oldest of whoever has most in bodies that arrive, each weighed so.
    pub fn oldest_body(
        &self,
        weight: impl Fn(&Incoming) -> usize,
        may_go: impl Fn(usize, Timestamp) -> bool,
    ) -> Option<usize> {
        let bodies = || {
            self.conns.iter().filter_map(|(number, conn)| match &conn.phase {
                Phase::Body(incoming) => Some((*number, &conn.current.caller.viewer.name, incoming)),
                _ => None,
            })
        };
        let mut held: HashMap<&Arc<str>, usize> = HashMap::new();
        for (_, owner, incoming) in bodies() {
            *held.entry(owner).or_default() += weight(incoming);
        }
        let going = bodies().filter(|(number, _, incoming)| may_go(*number, incoming.since));
        let of_most = going.map(|(number, owner, incoming)| (Reverse(held[owner]), incoming.since, number));
        of_most.min().map(|(_, _, number)| number)
    }

    /// Beyond the budget of all outputs, the client that has taken nothing for longest, and of several the one with most to take;
    /// a single one has a bound of its own.
    pub fn over_budget(&self) -> Option<usize> {
        if self.output_bytes <= UNREAD_BYTES || is_off(Control::Unread) {
            return None;
        }
        let unread = || self.conns.iter().filter(|(_, conn)| !conn.output.is_empty());
        let slowest =
            unread().min_by_key(|(number, conn)| (conn.took_at, Reverse(conn.output.len()), **number));
        slowest.map(|(number, _)| *number).filter(|_| unread().nth(1).is_some())
    }
}
