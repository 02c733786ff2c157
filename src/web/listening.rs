//! `/v1/events`: who listens, and what each of them is sent. What is told comes from `watch`.

use std::sync::atomic::Ordering::Relaxed;

use serde_json::{Value, json};

use super::clients::{DRAINING, Listening, NEVER, OUTPUT_BYTES, Phase};
use super::gate::Gate;
use super::http1::refused;
use super::respond::Answer;
use super::watch::{News, event};
use crate::limits::LISTENERS;
use crate::ports::RecentEnd;
use crate::problem::Code;

impl Gate {
    /// From now on this client is told what happens.
    pub(super) fn begin_listening(&mut self, number: usize) {
        let listeners = self.clients.counters.listeners.load(Relaxed);
        let Some(conn) = self.clients.conns.get(&number) else { return };
        let viewer = conn.current.caller.viewer.clone();
        let is_own = |phase: &Phase| matches!(phase, Phase::Listening(of) if of.viewer.name == viewer.name);
        let own = self.clients.in_phase(is_own).len() as u64;
        // A name has a quarter.
        let is_full = listeners >= LISTENERS || !viewer.name.is_empty() && own >= LISTENERS / 4;
        let Some(conn) = self.clients.conns.get_mut(&number) else { return };
        // A drain does not wait for who listens, nor for one who would begin to.
        if self.clients.are_last {
            return self.clients.refuse(number, DRAINING);
        }
        if is_full {
            let refused =
                refused(Code::Overloaded, "too many listen already: ask for /v1/stats now and then");
            return self.clients.refuse(number, refused);
        }
        let head = Answer::new(200, "text/event-stream", []);
        if !conn.current.has_body {
            self.clients.write(number, &head, None);
            return self.clients.next_request(number);
        }
        self.clients.counters.listeners.fetch_add(1, Relaxed);
        conn.phase = Phase::Listening(Box::new(Listening { viewer, is_new: true, lost: 0 }));
        self.clients.write(number, &head, None);
        self.clients.set_deadline(number, NEVER);
        self.clients.expect_progress(number);
    }

    /// Tells all who listen. Who has not taken what was told before misses this, and is told that.
    pub(super) fn tell(&mut self, news: &News) {
        for number in self.clients.in_phase(|phase| matches!(phase, Phase::Listening(_))) {
            let Some(conn) = self.clients.conns.get_mut(&number) else { continue };
            let is_slow = conn.output.len() >= OUTPUT_BYTES;
            let Phase::Listening(listening) = &mut conn.phase else { continue };
            let seen = || news.ends.iter().filter(|end| listening.viewer.sees(&end.spec.owner));
            // Nobody is told what others have missed.
            let lost = if listening.viewer.admin { news.lost } else { 0 };
            if is_slow {
                listening.lost += lost + seen().count() as u64 + 1;
                continue;
            }
            let mut told = String::new();
            if std::mem::take(&mut listening.is_new) {
                told += &news.history;
            } else {
                let lost = lost + std::mem::take(&mut listening.lost);
                if lost > 0 {
                    told += &event("lost", &json!({ "events": lost }));
                }
                let ends: Vec<Value> = seen().map(shown).collect();
                if !ends.is_empty() {
                    told += &event("ended", &ends.into());
                }
            }
            told += &news.figures;
            conn.write_part(told.as_bytes());
            self.clients.expect_progress(number);
            self.keep_budget(number);
        }
    }

    /// All are sent away: the service stops, or who they are is to be asked again.
    pub(super) fn end_listening(&mut self) {
        for number in self.clients.in_phase(|phase| matches!(phase, Phase::Listening(_))) {
            self.listener_left();
            if let Some(conn) = self.clients.conns.get_mut(&number) {
                conn.keep_alive = false;
                conn.end_parts();
            }
            self.clients.next_request(number);
        }
    }

    pub(super) fn listener_left(&mut self) {
        self.clients.counters.listeners.fetch_sub(1, Relaxed);
    }
}

fn shown(RecentEnd { spec, status, finished_at }: &RecentEnd) -> Value {
    let (id, at) = (spec.id.to_string(), finished_at.to_string());
    json!({ "id": id, "handler": *spec.handler, "status": status.as_str(), "finished_at": at })
}
