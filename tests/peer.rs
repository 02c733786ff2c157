//! The channel's document, tested: a second implementation of the executor's end, `tests/peer/cofferdam_peer.py`,
//! was written from `docs/protocol.md` alone. It must agree with the document's vectors and live with a real
//! service: take leases, decide, keep lanes' states, and be refused where the document says so.
//!
//! The service's own executor has one worker and is kept busy by a `sleep` wherever the peer must get the jobs: an
//! executor takes a lease for each worker, so all others are the peer's. The peer is driven over its standard
//! streams, a JSON object a line: what a handler would decide goes in, what happens comes out.

#[path = "support/peer.rs"]
mod peer;
#[path = "support/program.rs"]
mod program;
#[path = "support/service.rs"]
mod service;

use std::path::Path;

use peer::{IPC, Known, ONE_GROUP, PYTHON, Peer, ROOT, script, succeeded, with_state};
use program::{Folder, cofferdam, command, example, run, shown};
use serde_json::{Value, json};
use service::{Client, PATIENCE, kill, until};

const OTHER_ROOT: &str = "00e1d2c3b4a5968778695a4b3c2d1e0ff0e1d2c3b4a5968778695a4b3c2d1e0f";
const DELAY_MAX_MS: u64 = 7 * 24 * 3_600 * 1_000;
/// Its index is the one that the peer says; the second group is nobody's but its own executor's.
const GROUPS: &str = r#"runtime.platform.process_groups=[{"name":"main","workers":1,"handlers":["sleep"]},{"name":"other","workers":1,"handlers":["echo"]}]"#;
const KEYED_ECHO: &str = r#"handlers.echo.ordering={"key":"/account"}"#;
const TRACE: &str = "Traceparent: 00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01";

fn load(id: u32) -> String {
    format!(r#"{{"id":"{id}","customer_id":"7","load_amount":"$1.00","time":"2000-01-01T00:00:00Z"}}"#)
}

#[test]
fn a_second_implementation_agrees_with_every_vector_of_the_document() {
    let document = Path::new(env!("CARGO_MANIFEST_DIR")).join("docs/protocol.md");
    let folder = Folder::new();
    let text = std::fs::read_to_string(&document).expect("the document");
    let altered = |from: &str, to: &str| {
        assert_eq!(text.matches(from).count(), 1, "{from}");
        folder.file("altered.md", text.replace(from, to))
    };
    let check = |file: &Path| {
        let words = [PYTHON.as_ref(), script().as_os_str(), "vectors".as_ref(), file.as_os_str()]
            .map(ToOwned::to_owned);
        let mut command = command(Path::new("/usr/bin/env"), words);
        run(command.env("PATH", std::env::var_os("PATH").unwrap_or_default()), b"")
    };
    let output = check(&document);
    assert!(output.status.success(), "{}", shown(&output));
    // It can also see: a vector, a reason and a time that are not as they should be.
    for (from, to) in [
        ("conn_id = 77f7", "conn_id = 77f0"),
        ("frame.x.code             1000002    - --  malformed", "frame.x.code 1000002 - -- bad_signature"),
        ("M1                       1005001    - --", "M1 1005000 - --"),
    ] {
        let output = check(&altered(from, to));
        assert_eq!(output.status.code(), Some(1), "{from}: {}", shown(&output));
    }
}

#[test]
fn outcomes_of_the_peer_reach_their_callers() {
    let (known, _) = Known::busy(
        &cofferdam(),
        &["runtime.platform.queue.retry.base_ms=1", "runtime.platform.queue.max_deliveries=5"],
    );
    let mut peer = known.peer(&["--room=1"]);
    assert_eq!(known.service.get("/v1/stats").json()["groups"][0]["executors"], 2);

    let mut caller = known.caller("/v1/jobs/echo", &["Content-Type: application/json"], r#"{"n":1}"#);
    let lease = peer.lease(1);
    assert_eq!(
        (&lease["handler"], &lease["state"], &lease["version"]),
        (&json!("echo"), &json!("stateless"), &json!(0))
    );
    let job = &lease["jobs"][0];
    assert_eq!((&job["payload"], &job["media"]), (&json!(r#"{"n":1}"#), &json!("application/json")));
    let id = job["id"].as_str().expect("text");
    let progress = || known.service.get(&format!("/v1/jobs/{id}")).json()["progress"].clone();
    peer.tell(json!({"do": "progress", "lease": lease["lease"], "job": id, "progress": "[1,2]"}));
    until("its progress is seen", PATIENCE, || (progress() == json!([1, 2])).then_some(()));
    peer.commit(&lease, succeeded("by the peer"));
    let answer = caller.read();
    assert_eq!((answer.status, answer.text().as_str()), (200, "by the peer"));

    let mut caller = known.caller("/v1/jobs/echo", &[], "2");
    let lease = peer.lease(1);
    peer.commit(&lease, json!({"outcome": "failed", "code": "handler_failed", "detail": "no such account"}));
    let answer = caller.read();
    assert_eq!(answer.code(), "handler_failed", "{answer:?}");
    assert!(answer.text().contains("no such account"), "{answer:?}");

    // One caller, three deliveries.
    let mut caller = known.caller("/v1/jobs/echo", &[], "3");
    let lease = peer.lease(1);
    peer.commit(&lease, json!({"outcome": "retry", "detail": "later"}));
    let lease = peer.lease(2);
    peer.commit(&lease, json!({"outcome": "crashed", "detail": "the handler panicked"}));
    let lease = peer.lease(3);
    peer.commit(&lease, succeeded("at last"));
    assert_eq!(caller.read().text(), "at last");

    let mut caller = known.caller("/v1/jobs/echo", &[], "4");
    let lease = peer.lease(1);
    peer.commit(&lease, json!({"outcome": "timed_out"}));
    assert_eq!(caller.read().code(), "handler_timed_out");

    let mut caller = known.caller("/v1/jobs/echo", &[], "5");
    for delivery in 1..=5 {
        let lease = peer.lease(delivery);
        peer.commit(&lease, json!({"outcome": "crashed", "detail": "again"}));
    }
    let answer = caller.read();
    assert_eq!(
        (answer.code().as_str(), &answer.json()["cause"]),
        ("dead_lettered", &json!("handler_crashed"))
    );
}

#[test]
fn a_lanes_state_goes_from_executor_to_executor_of_either_implementation() {
    let (known, sleep) = Known::busy(&example("fund-load"), &[]);
    let service = &known.service;
    let mut peer = known.peer(&[]);
    let accepted =
        |id: u32, accepted: bool| json!({"id": id.to_string(), "customer_id": "7", "accepted": accepted});

    // Nothing is there yet; what the peer sets is known at the next lease, and is not sent again.
    let mut caller = known.caller("/v1/jobs/fund_load", &[], &load(1));
    let lease = peer.take(1);
    assert_eq!((&lease["state"], &lease["entries"]), (&json!("whole"), &json!({})));
    let answered =
        peer.commit(&lease, with_state("first", json!({"i:1": "", "mine": "kept", "gone": "soon"})));
    assert_eq!(answered["builds_on"], lease["version"]);
    assert_eq!(caller.read().text(), "first");
    let fence = lease["jobs"][0]["fence"].clone();
    let mut caller = known.caller("/v1/jobs/fund_load", &[], &load(2));
    let lease = peer.take(1);
    assert_eq!((&lease["state"], &lease["version"]), (&json!("known"), &fence));

    // Meanwhile a run of three gathers behind it. Each job builds on the last one that changed the state.
    let ids: Vec<String> = (3..6).map(|id| service.submit("/v1/jobs/fund_load", &[], load(id))).collect();
    peer.commit(&lease, with_state("second", json!({"gone": null})));
    assert_eq!(caller.read().text(), "second");
    let version = lease["jobs"][0]["fence"].clone();
    peer.tell(json!({"do": "forget"}));
    // What it gives back comes again at once, with all that it needs.
    peer.room(1);
    peer.expect("need_state");
    let lease = peer.expect("lease");
    peer.room(0);
    peer.expect("drain");
    assert_eq!((&lease["state"], &lease["version"]), (&json!("whole"), &version));
    assert_eq!(lease["entries"], json!({"i:1": "", "mine": "kept"}), "it is the whole state");
    let jobs = lease["jobs"].as_array().expect("a list");
    let leased: Vec<&Value> = jobs.iter().map(|job| &job["id"]).collect();
    let submitted: Vec<Value> = ids.iter().map(|id| json!(id.replace('-', ""))).collect();
    assert_eq!(leased, submitted.iter().collect::<Vec<_>>());
    let answers = [with_state("3", json!({"i:3": ""})), succeeded("4"), with_state("5", json!({"i:5": ""}))];
    let built_on: Vec<Value> =
        answers.into_iter().map(|answer| peer.commit(&lease, answer)["builds_on"].clone()).collect();
    assert_eq!(built_on, [version, jobs[0]["fence"].clone(), jobs[0]["fence"].clone()]);

    // The service's own executor builds on it: an id that the peer has entered is a duplicate.
    service.request("DELETE", &format!("/v1/jobs/{sleep}"), &[], "");
    assert_eq!(service.post("/v1/jobs/fund_load", load(5)).json(), accepted(5, false));
    assert_eq!(service.post("/v1/jobs/fund_load", load(4)).json(), accepted(4, true));
    // And the peer on that, once the other is gone and its successor busy.
    let own = service.child("executor");
    kill(own);
    until("another executor", PATIENCE, || {
        service.children("executor").iter().any(|pid| *pid != own).then_some(())
    });
    known.occupy();
    let mut caller = known.caller("/v1/jobs/fund_load", &[], &load(6));
    let lease = peer.take(1);
    assert_eq!(lease["state"], "whole", "another has changed it meanwhile");
    let names: Vec<&str> = lease["entries"]
        .as_object()
        .expect("a map")
        .keys()
        .map(String::as_str)
        .filter(|name| name.starts_with("i:"))
        .collect();
    assert_eq!((names, &lease["entries"]["mine"]), (vec!["i:1", "i:3", "i:4", "i:5"], &json!("kept")));
    peer.commit(&lease, succeeded("sixth"));
    assert_eq!(caller.read().text(), "sixth");
}

#[test]
fn contexts_go_with_their_trace() {
    let (known, _) = Known::busy(&cofferdam(), &[]);
    let mut peer = known.peer(&["--room=1"]);
    let mut ask = |headers: &[&str], context: Value| {
        let mut caller = known.caller("/v1/jobs/echo", headers, "x");
        let lease = peer.lease(1);
        peer.commit(&lease, json!({"outcome": "succeeded", "result": "done", "context": context}));
        assert_eq!(caller.read().text(), "done");
        lease["jobs"][0]["context"].clone()
    };
    assert_eq!(ask(&[TRACE], json!({"user": "7", "step": "one"})), json!({}));
    assert_eq!(ask(&[TRACE], json!({"step": null, "end": "two"})), json!({"user": "7", "step": "one"}));
    assert_eq!(ask(&[TRACE], json!({})), json!({"user": "7", "end": "two"}));
    assert_eq!(ask(&[], json!({})), json!({}), "another trace has another context");
}

#[test]
fn effects_that_do_not_fit_a_frame_come_in_parts_and_go_in_parts() {
    let sets = [&format!("{IPC}.max_payload_bytes=16384"), "web.max_body_bytes=16384", KEYED_ECHO];
    let (known, _) = Known::busy(&cofferdam(), &sets);
    let mut peer = known.peer(&[]);
    let key = ["Ordering-Key: A"];
    let state = |bytes: usize| -> Value {
        (0..40)
            .map(|at| (format!("entry{at}"), json!({"fill": bytes - at})))
            .collect::<serde_json::Map<_, _>>()
            .into()
    };
    let mut caller = known.caller("/v1/jobs/echo", &key, "x");
    let lease = peer.take(1);
    let mut outcome = with_state("large", state(16_384));
    outcome["follow_ups"] = json!([{"handler": "echo", "key": "B", "payload": {"fill": 16_000}}]);
    outcome["context"] = json!({"far": "behind"});
    let answered = peer.commit(&lease, outcome);
    assert!(answered["parts"].as_u64() >= Some(8), "640 KiB do not fit 8 frames of 80 KiB: {answered}");
    assert_eq!(caller.read().text(), "large");

    let follow_up = peer.take(1);
    let job = &follow_up["jobs"][0];
    assert_eq!((&job["payload"], &job["key"]["key"]), (&json!({"length": 16_000}), &json!("B")));
    assert_eq!(job["context"], json!({"far": "behind"}), "a follow-up belongs to its trace");
    peer.commit(&follow_up, succeeded("follow-up"));

    // The whole of it comes back, in several frames, to a peer that has forgotten it.
    peer.tell(json!({"do": "forget"}));
    peer.room(1);
    let _caller = known.caller("/v1/jobs/echo", &key, "x");
    peer.expect("need_state");
    let lease = peer.lease(1);
    let lengths = |bytes: usize| -> Value {
        (0..40)
            .map(|at| (format!("entry{at}"), json!({"length": bytes - at})))
            .collect::<serde_json::Map<_, _>>()
            .into()
    };
    assert_eq!(lease["entries"], lengths(16_384));
}

/// The service's own executors check sizes before they commit. What such a one would not say must not reach a
/// lane's state or another job: a frame that is too long for it ends each connection that gets the lane.
#[test]
fn an_executor_that_exceeds_a_bound_fails_its_own_job_and_hurts_no_lane() {
    let sets = [&format!("{IPC}.max_payload_bytes=16384"), "web.max_body_bytes=16384", KEYED_ECHO];
    let (known, sleep) = Known::busy(&cofferdam(), &sets);
    let mut peer = known.peer(&["--room=1"]);
    let too_large = json!({"fill": 16_384 + 65_536 - 76});
    let follow_up = |key: &str, payload: Value| json!([{"handler": "echo", "key": key, "payload": payload}]);
    let delayed = |ms: u64| json!([{"handler": "echo", "key": "B", "payload": "x", "delay_ms": ms}]);
    let rows = [
        ("state_too_large", json!({"state": {"big": too_large}})),
        ("state_too_large", json!({"context": {"big": too_large}})),
        ("result_too_large", json!({"result": {"fill": 16_385}})),
        ("handler_failed", json!({"follow_ups": follow_up("A", json!({"fill": 16_385}))})),
        ("handler_failed", json!({"follow_ups": follow_up(&"k".repeat(257), json!("x"))})),
        ("handler_failed", json!({"follow_ups": [{"handler": "nobody", "payload": "x"}]})),
        ("handler_failed", json!({"follow_ups": delayed(DELAY_MAX_MS + 1)})),
    ];
    for (code, mut outcome) in rows {
        let mut caller = known.caller("/v1/jobs/echo", &["Ordering-Key: A", TRACE], "x");
        let lease = peer.lease(1);
        let fields = outcome.as_object_mut().expect("a map");
        fields.insert("outcome".into(), "succeeded".into());
        fields.entry("result").or_insert_with(|| "result".into());
        let shown = outcome.to_string();
        peer.commit(&lease, outcome);
        let answer = caller.read();
        assert_eq!(answer.code(), code, "{shown}: {answer:?}");
    }
    // The lane is as it was for everybody: nothing of all that was applied.
    let headers = ["Ordering-Key: A", TRACE, "tracestate: a=1"];
    let mut caller = known.caller("/v1/jobs/echo", &headers, "x");
    let lease = peer.lease(1);
    assert_eq!((&lease["state"], &lease["entries"]), (&json!("whole"), &json!({})));
    let job = &lease["jobs"][0];
    assert_eq!(job["context"], json!({}));
    assert_eq!((&job["flags"], &job["tracestate"]), (&json!(1), &json!("a=1")));
    let mut outcome = succeeded("still serving");
    outcome["follow_ups"] = delayed(DELAY_MAX_MS);
    peer.commit(&lease, outcome);
    assert_eq!(caller.read().text(), "still serving");
    drop(peer);
    known.service.request("DELETE", &format!("/v1/jobs/{sleep}"), &[], "");
    let answer = known.service.request("POST", "/v1/jobs/echo", &["Ordering-Key: A", TRACE], "own");
    assert_eq!(answer.text(), "own");
}

#[test]
fn what_the_peer_gives_back_comes_again_uncounted_and_what_it_is_told_to_stop_does_not() {
    let (known, _) = Known::busy(&cofferdam(), &[KEYED_ECHO]);
    let service = &known.service;
    let mut peer = known.peer(&[]);
    let submit = |payload: &str| service.submit("/v1/jobs/echo", &["Ordering-Key: A"], payload);
    let payloads = |lease: &Value| -> Vec<String> {
        let jobs = lease["jobs"].as_array().expect("a list").iter();
        jobs.map(|job| format!("{} {}", job["payload"].as_str().expect("text"), job["delivery"])).collect()
    };
    let ids: Vec<String> = ["a", "b", "c", "d"].map(submit).into();
    let lease = peer.take_run();
    assert_eq!(payloads(&lease), ["a 1", "b 1", "c 1", "d 1"]);
    peer.commit(&lease, succeeded("A"));
    // The second has started by now; a release takes that back.
    service.record_when(&ids[1], "running");
    peer.tell(json!({"do": "release", "lease": lease["lease"]}));
    service.record_when(&ids[1], "queued");
    // An outcome of a lease that is over changes nothing.
    peer.tell(json!({"do": "late", "lease": lease["lease"], "job": lease["jobs"][1]["id"]}));
    assert_eq!(peer.expect("fenced")["job"], lease["jobs"][1]["id"]);
    service.record_when(&ids[1], "queued");

    let lease = peer.take_run();
    assert_eq!(payloads(&lease), ["b 1", "c 1", "d 1"], "in their order, uncounted");
    // A later job is left out; then the running one is stopped, and the rest of its run comes again.
    for (id, running) in [(&ids[2], false), (&ids[1], true)] {
        assert_eq!(
            service.request("DELETE", &format!("/v1/jobs/{id}"), &[], "").json()["status"],
            "cancelled"
        );
        let cancel = peer.expect("cancel");
        assert_eq!((cancel["job"] == lease["jobs"][0]["id"], &cancel["lease"]), (running, &lease["lease"]));
    }
    let lease = peer.take_run();
    // It may have begun behind the one that was stopped: a start never shares its number.
    assert_eq!(payloads(&lease), ["d 2"]);
    peer.commit(&lease, succeeded("D"));
    let statuses: Vec<Value> = ids.iter().map(|id| service.record(id)["status"].clone()).collect();
    assert_eq!(statuses, ["succeeded", "cancelled", "cancelled", "succeeded"]);
}

#[test]
fn a_peer_that_withdraws_its_room_gets_the_last_word_and_no_lease() {
    let (known, sleep) = Known::busy(&cofferdam(), &[]);
    let mut peer = known.peer(&[]);
    peer.room(3);
    peer.room(0);
    peer.expect("drain");
    let id = known.service.submit("/v1/jobs/echo", &[], "x");
    known.service.request("DELETE", &format!("/v1/jobs/{sleep}"), &[], "");
    // It was the service's own executor's.
    known.service.record_when(&id, "succeeded");
    // Room is room again.
    known.occupy();
    peer.room(1);
    known.service.submit("/v1/jobs/echo", &[], "y");
    assert_eq!(peer.lease(1)["jobs"][0]["payload"], "y");
}

#[test]
fn room_is_a_level_that_stays_until_another_one_is_said() {
    let (known, _) = Known::busy(&cofferdam(), &[]);
    let mut peer = known.peer(&["--room=2"]);
    let ids: Vec<String> =
        (0..5).map(|at| known.service.submit("/v1/jobs/echo", &[], format!("{at}"))).collect();
    let mut live = [peer.lease(1), peer.lease(1)].to_vec();
    // Said again it adds nothing: the drain of `settle` comes behind all leases that were on their way.
    peer.room(2);
    peer.tell(json!({"do": "settle"}));
    peer.expect("settled");
    // Each that is done is followed by one, without a word.
    for _ in 0..3 {
        let lease = live.remove(0);
        peer.answer(&lease, succeeded("done"));
        live.push(peer.lease(1));
    }
    for lease in live {
        peer.commit(&lease, succeeded("done"));
    }
    ids.iter().for_each(|id| drop(known.service.record_when(id, "succeeded")));
}

#[test]
fn a_peer_that_is_to_end_answers_what_runs_gives_the_rest_back_and_leaves_when_all_is_in_the_books() {
    let (known, _) = Known::busy(&cofferdam(), &[KEYED_ECHO]);
    let submit = |key: &str, payload: &str| {
        known.service.submit("/v1/jobs/echo", &[&format!("Ordering-Key: {key}")], payload)
    };
    let ids = [submit("A", "a"), submit("A", "b"), submit("B", "c")];
    let mut peer = known.peer(&["--room=2"]);
    let [first, second] = [peer.expect("lease"), peer.expect("lease")];
    assert_eq!(first["jobs"].as_array().map(Vec::len), Some(2));
    peer.tell(json!({"do": "end"}));
    let late = submit("C", "d");
    peer.answer(&first, succeeded("A"));
    peer.answer(&second, succeeded("C"));
    peer.expect("ended");
    let statuses = ids.each_ref().map(|id| known.service.record(id)["status"].clone());
    assert_eq!(statuses, ["succeeded", "queued", "succeeded"], "its outcomes were in the books when it left");
    until("one executor is left", PATIENCE, || {
        (known.service.get("/v1/stats").json()["groups"][0]["executors"] == 1).then_some(())
    });
    // What it gave back and what it did not take any more were never delivered.
    let mut peer = known.peer(&["--room=1"]);
    for id in [&late, &ids[1]] {
        let lease = peer.lease(1);
        assert_eq!(lease["jobs"][0]["id"], json!(id.replace('-', "")));
        peer.commit(&lease, succeeded("done"));
    }
}

#[test]
fn a_media_type_is_one_or_becomes_plain_bytes_to_either_implementation() {
    const PLAIN: &str = "application/octet-stream";
    let (known, _) = Known::busy(&cofferdam(), &[]);
    let mut peer = known.peer(&["--room=1"]);
    let long = |bytes: usize| format!("text/{}", "x".repeat(bytes - 5));
    let valid = [
        "text/plain",
        "a/b",
        "!#$%&'*+-.^_`|~/0aZ",
        "text/plain;charset=utf-8",
        "text/plain \t; any thing /;\t~",
        &long(256),
    ];
    let invalid = [
        "",
        "text",
        "text/",
        "/plain",
        "te xt/plain",
        "text/pl/ain",
        "text/pläin",
        "a/b;\u{7f}",
        "a/b\r\nX: y",
        &long(257),
    ];
    let rows = valid.into_iter().map(|media| (media, media));
    for (media, read) in rows.chain(invalid.into_iter().map(|media| (media, PLAIN))) {
        let mut caller = known.caller("/v1/jobs/echo", &[], "x");
        let lease = peer.lease(1);
        let outcome = json!({"outcome": "succeeded", "result": "done", "media": media});
        assert_eq!(peer.commit(&lease, outcome)["media"], read, "{media:?}");
        let answer = caller.read();
        assert_eq!((answer.status, answer.header("content-type")), (200, Some(read)), "{media:?}");
    }
}

#[test]
fn a_peer_with_the_shortest_heartbeat_stays_as_long_as_it_pings_and_is_closed_when_it_does_not() {
    let known = Known::start(&cofferdam(), 100, &[ONE_GROUP]);
    // A machine may be too busy for 100 ms once; a peer that is not answered is cut each time.
    let stays = |peer: &mut Peer| {
        (0..12).all(|_| peer.events.recv_timeout(PATIENCE).expect("it says something")["event"] == "pong")
    };
    let mut peer = (0..10)
        .map(|_| known.peer(&[]))
        .find_map(|mut peer| stays(&mut peer).then_some(peer))
        .expect("one of ten connections lives for eleven heartbeats");
    peer.tell(json!({"do": "mute"}));
    let why = peer.expect("closed")["why"].clone();
    assert!(why == "end of file" || why == "ConnectionResetError", "{why}");
}

#[test]
fn a_peer_that_was_cut_comes_again_and_so_do_its_jobs() {
    let (known, _) = Known::busy(&cofferdam(), &[KEYED_ECHO]);
    let mut peer = known.stranger("main", ROOT, &["--room=1", "--again"]);
    let first = peer.expect("up");
    let mut callers: Vec<Client> =
        ["a", "b"].map(|key| known.caller("/v1/jobs/echo", &[&format!("Ordering-Key: {key}")], key)).into();
    let lease = peer.lease(1);
    peer.tell(json!({"do": "cut"}));
    assert_eq!(peer.expect("closed")["why"], "cut");
    assert_eq!(peer.expect("up")["boot_id"], first["boot_id"]);
    // The job had started, so it counts; the other one waited at the broker.
    let again = peer.expect("lease");
    assert!(again["lease"].as_u64() > lease["lease"].as_u64(), "no number is used again");
    let (job, other) = (lease["jobs"][0]["id"].clone(), again["jobs"][0]["id"].clone());
    peer.tell(json!({"do": "late", "lease": lease["lease"], "job": job}));
    assert_eq!(peer.expect("fenced")["lease"], lease["lease"]);
    let deliveries = |lease: &Value| lease["jobs"][0]["delivery"].clone();
    peer.commit(&again, succeeded("done"));
    let last = peer.expect("lease");
    peer.commit(&last, succeeded("done"));
    let mut both = [deliveries(&again), deliveries(&last)];
    if other != job {
        both.reverse();
    }
    assert_eq!(both, [json!(2), json!(1)], "the one that was started, and the other");
    for caller in &mut callers {
        assert_eq!(caller.read().text(), "done");
    }
    // Another web process is another broker: the connection ends, and the next one says so.
    kill(known.service.child("web"));
    peer.expect("closed");
    let mut event = peer.next();
    while event["event"] == "closed" {
        event = peer.next();
    }
    assert_eq!(event["event"], "up");
    assert_ne!(event["boot_id"], first["boot_id"]);
}

#[test]
fn a_peer_without_the_groups_secret_gets_no_byte() {
    let known = Known::start(&cofferdam(), 2_000, &[GROUPS]);
    for (group, root) in [("main", OTHER_ROOT), ("other", ROOT), ("", ROOT)] {
        let before = known.rejected();
        // An end of file before the first byte of an M2 is a failed handshake; a part of one would not be.
        let closed = known.stranger(group, root, &[]).expect("closed");
        assert_eq!((&closed["why"], &closed["bytes"]), (&json!("handshake_failed"), &json!(0)), "{group}");
        known.counted(&before, "bad_signature");
    }
    let before = known.rejected();
    let mut peer = known.peer(&[]);
    peer.tell(json!({"do": "replay_m1"}));
    assert_eq!(peer.expect("replayed")["bytes"], 0);
    known.counted(&before, "replayed_nonce");
}

#[test]
fn a_frame_that_is_not_as_it_must_be_closes_the_connection_and_is_counted() {
    let (known, _) = Known::busy(&cofferdam(), &["runtime.platform.kv.lane_state_max_bytes=1024"]);
    for (which, reason) in [
        ("replayed", "replayed_nonce"),
        ("skipped", "replayed_nonce"),
        ("stale", "expired_timestamp"),
        ("early", "expired_timestamp"),
        ("altered", "bad_signature"),
        ("trailing", "malformed"),
        ("short", "malformed"),
        ("cut_off", "malformed"),
        ("oversized", "oversized"),
        ("kind", "unknown_kind"),
        ("direction", "unknown_kind"),
        ("report", "unknown_kind"),
        ("part_release", "malformed"),
        ("part_progress", "malformed"),
        ("part_of_another", "malformed"),
        ("outcome_of_another", "malformed"),
        ("parts_beyond", "malformed"),
        ("deaf", "peer_not_reading"),
    ] {
        let before = known.rejected();
        let mut peer = known.peer(&["--lane-state-max=1024"]);
        peer.tell(json!({"do": "fault", "which": which}));
        let closed = peer.expect("closed");
        let why = closed["why"].as_str().expect("text");
        // Which of them, the kernel decides; the last is for who still writes.
        let closed_by_peer = ["end of file", "ConnectionResetError", "BrokenPipeError"];
        assert!(closed_by_peer.contains(&why), "{which}: {closed}");
        known.counted(&before, reason);
    }
}
