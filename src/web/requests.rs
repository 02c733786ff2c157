//! From bytes to requests: heads, bodies, what is refused on the way, and who handles what is whole.

use std::net::IpAddr;
use std::sync::Arc;

use super::chunked::Chunked;
use super::clients::{Current, DRAINING, Incoming, OUTPUT_BYTES, Phase};
use super::gate::Gate;
use super::guard::{Caller, Known};
use super::http1::{Head, Refused, parse_head, refused};
use super::questions::{PageRequest, Question};
use super::respond::Answer;
use super::routes::{self, Inner, Route, check_browser};
use super::submission;
use crate::limits::{BODY_BYTES, INNER_TIMEOUT, UNASKED_BODY_BYTES};
use crate::problem::Code;

impl Gate {
    /// Goes as far as the bytes allow: many requests of a pipeline, one after the other.
    pub(super) fn advance(&mut self, number: usize) {
        loop {
            let Some(conn) = self.clients.conns.get_mut(&number) else { return };
            let full = conn.output.len() >= OUTPUT_BYTES;
            let goes_on = match &conn.phase {
                Phase::Head => !full && !conn.input.is_empty() && self.advance_head(number),
                Phase::Body(_) => self.advance_body(number),
                Phase::Streaming(_) if !full => return self.feed_batch(number),
                Phase::Waiting(_)
                | Phase::Inner
                | Phase::Streaming(_)
                | Phase::Listening(_)
                | Phase::Closing => false,
            };
            if !goes_on {
                return self.end_at_end(number);
            }
        }
    }

    /// A client that says nothing more, and has no whole request here that is not answered.
    fn end_at_end(&mut self, number: usize) {
        let Some(conn) = self.clients.conns.get_mut(&number).filter(|conn| conn.at_end) else { return };
        let ends = match &conn.phase {
            Phase::Head => conn.output.len() < OUTPUT_BYTES,
            // The rest of a body will never come; who is being closed has read its last answer.
            Phase::Body(_) | Phase::Closing => true,
            Phase::Waiting(_) | Phase::Inner | Phase::Streaming(_) | Phase::Listening(_) => false,
        };
        if ends {
            if let Phase::Body(incoming) = conn.close() {
                self.drop_body(&incoming);
            }
            self.clients.touched.push(number);
        }
    }

    fn advance_head(&mut self, number: usize) -> bool {
        let header_bytes = self.clients.limits.header_bytes;
        let Some(conn) = self.clients.conns.get_mut(&number) else { return false };
        // One that came in two pieces has begun something, which is waited for no longer than any head.
        if conn.input.len() > 2 {
            conn.skip_empty_line();
        }
        let (head, length) = match parse_head(&conn.input, header_bytes) {
            Ok(None) => return false,
            Ok(Some(found)) => found,
            Err(refused) => {
                conn.current = Current::malformed(&mut self.entropy, &conn.input);
                self.refuse_and_close(number, refused);
                return true;
            }
        };
        conn.input.drain(..length);
        (conn.keep_alive, conn.has_skipped) = (head.keep_alive, false);
        let (trace, tracestate) = submission::trace(&head, &mut self.entropy);
        let (has_body, is_1_1) = (head.method() != "HEAD", head.is_1_1);
        let caller = Caller::default();
        conn.current = Current { route: "none", trace, tracestate, caller, has_body, is_1_1 };
        let (peer, mut known) = (conn.peer, conn.known.take());
        let judged = self.judge(&head, peer, &mut known);
        let Some(conn) = self.clients.conns.get_mut(&number) else { return false };
        conn.known = known;
        let (route, label, max, caller) = match judged {
            Ok(judged) => judged,
            Err(refused) => {
                // A body that was announced, or whose length nobody understood, is not read: the connection cannot go on.
                conn.keep_alive &= head.length == Some(0) && refused.code != Code::LengthRequired;
                self.clients.refuse(number, refused);
                return true;
            }
        };
        (conn.current.route, conn.current.caller) = (label, caller);
        conn.asker.request += 1;
        if head.expects_continue && conn.input.is_empty() && head.length != Some(0) {
            conn.output.text(&[b"HTTP/1.1 100 Continue\r\n\r\n"]);
        }
        let (body, chunked) = (Vec::new(), Chunked::default());
        let incoming = Incoming { head, route, body, chunked, max, since: self.clients.now, counted: 0 };
        conn.phase = Phase::Body(Box::new(incoming));
        if !conn.output.is_empty() {
            self.clients.touched.push(number);
        }
        let deadline = self.clients.after(self.clients.limits.body_timeout_ms);
        self.clients.set_deadline(number, deadline);
        true
    }

    /// Everything that can be said on the head alone: the route, how large the body may be, and who the caller is.
    fn judge(
        &mut self,
        head: &Head,
        peer: IpAddr,
        known: &mut Option<Known>,
    ) -> Result<(Route, &'static str, usize, Caller), Refused> {
        let web = &self.settings.web;
        check_browser(head, &web.allowed_hosts)?;
        let (route, label) = routes::route(head.method(), head.target())?;
        let caller = self.guard.judge(head, &route, peer, known, self.clients.now)?;
        let is_batch = matches!(route, Route::Batch(_));
        let max = match route {
            Route::Batch(_) => web.max_batch_bytes,
            Route::Submit(_) => web.max_body_bytes,
            _ => UNASKED_BODY_BYTES.min(web.max_body_bytes),
        };
        if let Route::Submit(name) | Route::Batch(name) = &route {
            if !self.settings.handlers.contains_key(name) {
                return Err(refused(Code::UnknownHandler, "there is no handler of this name"));
            }
            if head.length == Some(0) && head.header("content-length")?.is_none() {
                return Err(refused(Code::LengthRequired, "a submission needs Content-Length or chunks"));
            }
            if self.clients.draining {
                return Err(DRAINING);
            }
            let codings = head.list("content-encoding")?;
            if !codings.iter().all(|coding| coding.eq_ignore_ascii_case("identity")) {
                let detail = "the body must have no content coding: a handler would take it for its payload";
                return Err(refused(Code::UnsupportedMediaType, detail).with("accept-encoding", "identity"));
            }
            if is_batch && head.values("idempotency-key").next().is_some() {
                let detail = "a batch has no Idempotency-Key: its lines are jobs of their own";
                return Err(refused(Code::BadRequest, detail));
            }
        }
        if head.length.is_some_and(|length| length > max) {
            return Err(refused(Code::PayloadTooLarge, "the body exceeds its limit"));
        }
        Ok((route, label, max, caller))
    }

    fn advance_body(&mut self, number: usize) -> bool {
        let Some(conn) = self.clients.conns.get_mut(&number) else { return false };
        let Phase::Body(incoming) = &mut conn.phase else { return false };
        let (used, whole) = match incoming.head.length {
            Some(length) if length <= conn.input.len() => (length, Some(Arc::from(&conn.input[..length]))),
            Some(_) => (0, None),
            None => match incoming.chunked.read(&conn.input, &mut incoming.body, incoming.max) {
                Ok((used, is_whole)) => (used, is_whole.then(|| Arc::from(&incoming.body[..]))),
                Err(refused) => {
                    self.refuse_and_close(number, refused);
                    return true;
                }
            },
        };
        conn.input.drain(..used);
        // What is held of it, not what came: the framing of chunks takes no room.
        let held = incoming.body.len() + conn.input.len();
        self.body_bytes = self.body_bytes - std::mem::replace(&mut incoming.counted, held) + held;
        let Some(body) = whole else {
            if self.clients.draining {
                self.refuse_and_close(number, DRAINING);
                return true;
            }
            self.make_body_room(number);
            return false;
        };
        if conn.input.is_empty() {
            conn.input.shrink_to(4_096);
        }
        if let Phase::Body(incoming) = std::mem::replace(&mut conn.phase, Phase::Head) {
            self.drop_body(&incoming);
            self.handle(number, &incoming.head, incoming.route, body);
        }
        true
    }

    /// Over the budget of all bodies, one of whoever has most of it gives way: the oldest incomplete one.
    fn make_body_room(&mut self, number: usize) {
        if self.body_bytes <= BODY_BYTES {
            return;
        }
        let oldest = self.clients.oldest_body(|incoming| incoming.counted, |other, _| other != number);
        if let Some(oldest) = oldest {
            let refused = refused(Code::Overloaded, "too many bodies are being received");
            self.refuse_and_close(oldest, refused);
        }
    }

    /// A whole request.
    fn handle(&mut self, number: usize, head: &Head, route: Route, body: Arc<[u8]>) {
        match route {
            Route::Options(allow) => {
                self.clients.answer(number, &Answer::new(200, "text/plain", []).with("allow", allow))
            }
            Route::Alive => self.clients.answer(number, &Answer::json(200, r#"{"status":"alive"}"#.into())),
            Route::Submit(name) => self.submit(number, head, &name, body),
            Route::Batch(name) => self.begin_batch(number, head, &name, body),
            Route::Wait(id) => self.wait_for_record(number, head, id),
            Route::Events => self.begin_listening(number),
            Route::Dashboard => self.clients.answer(number, Answer::dashboard()),
            Route::OpenApi => self.clients.answer(number, Answer::openapi()),
            Route::Inner(route) => {
                let method = if head.method() == "HEAD" { "GET" } else { head.method() };
                self.ask_pages(number, route, method, head.target().to_owned(), body);
            }
        }
    }

    /// Refuses the request and whatever comes after it.
    pub(super) fn refuse_and_close(&mut self, number: usize, why: Refused) {
        let Some(conn) = self.clients.conns.get_mut(&number) else { return };
        conn.keep_alive = false;
        if let Phase::Body(incoming) = std::mem::replace(&mut conn.phase, Phase::Head) {
            self.drop_body(&incoming);
        }
        self.clients.refuse(number, why);
    }

    /// A route that renders is to answer.
    pub(super) fn ask_pages(
        &mut self,
        number: usize,
        route: Inner,
        method: &'static str,
        target: String,
        body: Arc<[u8]>,
    ) {
        self.clients.set_deadline(number, self.clients.now.plus(INNER_TIMEOUT));
        let Some(conn) = self.clients.conns.get_mut(&number) else { return };
        conn.phase = Phase::Inner;
        let (trace, viewer) = (conn.current.trace, conn.current.caller.viewer.clone());
        let request = PageRequest { asker: conn.asker, route, method, target, body, trace, viewer };
        self.questions.push(Question::Page(request));
    }
}
