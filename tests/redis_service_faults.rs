//! What goes wrong with a Redis server and the way to it, under real processes,
//! each test named after its row.
//!
//! It guards that a backend which is away costs time and nothing else: answers are bounded, nothing accepted is lost,
//! each effect is once, nobody spins, and all is well again by itself.

#[path = "support/aftermath.rs"]
mod aftermath;
#[path = "support/own_redis.rs"]
mod own_redis;
#[path = "support/program.rs"]
mod program;
#[path = "support/redis_proxy.rs"]
mod redis_proxy;
#[path = "support/redis_server.rs"]
mod redis_server;
#[path = "support/service.rs"]
mod service;

use std::collections::BTreeSet;
use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use aftermath::{SECRET, assert_counted, assert_ended, assert_text, counters};
use program::{cofferdam, example, run, shown};
use redis_proxy::{Cut, Proxy};
use redis_server::{
    BACK, DURABLE, Deployment, Server, Sound, answered_more, running_and_heard, shows, under_load,
};
use rustix::process::Signal;
use serde_json::json;
use service::{
    Answer, Client, Done, PATIENCE, Service, Stopwatch, all_children, caller, is_alive, processor_time,
    request, running, signal, sleeper, until, waiters,
};

/// Calls to a server that says nothing end by then.
const SHORT_CALLS: &str = "runtime.platform.redis.response_timeout_ms=400";
/// Such a call, the one before it, and a loaded machine.
const BOUNDED: Duration = Duration::from_millis(2_500);
const LEASE: Duration = Duration::from_millis(1_000);
const SHORT_LEASE: &str = "runtime.platform.queue.visibility_timeout_ms=1000";
const PASSWORD: &str = "a-password-that-no-log-may-show";

#[track_caller]
fn assert_unavailable(answer: &Answer) {
    assert_eq!((answer.status, answer.code().as_str()), (503, "backend_unavailable"), "{answer:?}");
    assert!(answer.header("retry-after").is_some(), "{answer:?}");
}

/// All that ask are told so, in bounded time, and none of it is a crash.
#[track_caller]
fn assert_is_away(service: &Service) {
    let bounded = |what: &str, ask: &dyn Fn() -> Answer| {
        let begun = Stopwatch::start();
        let answer = ask();
        assert!(begun.elapsed() < BOUNDED, "{what} took {:?}", begun.elapsed());
        answer
    };
    assert_unavailable(&bounded("a caller", &|| service.post("/v1/jobs/echo", "1")));
    let asynchronous = ["Prefer: respond-async"];
    assert_unavailable(&bounded("a submission", &|| {
        service.request("POST", "/v1/jobs/echo", &asynchronous, "1")
    }));
    let record = || service.get("/v1/jobs/00000000000000000000000000000000");
    assert_unavailable(&bounded("a record", &record));
    assert_eq!(bounded("/readyz", &|| service.get("/readyz")).status, 503);
    assert_eq!(service.get("/healthz").status, 200);
}

/// Nobody of these takes 20 % of a processor.
#[track_caller]
fn assert_no_hot_loop(pids: &[u32]) {
    let before: Vec<Duration> = pids.iter().map(|pid| processor_time(*pid)).collect();
    let watched = Duration::from_millis(1_000);
    std::thread::sleep(watched);
    for (pid, before) in pids.iter().zip(before) {
        let used = processor_time(*pid).saturating_sub(before);
        assert!(used < watched / 5, "{pid} ({:?}) takes {used:?} of {watched:?}", service::words(*pid));
    }
}

/// Submits `count` jobs all the time that `work` takes, and as a client that was told to come again does. At the end
/// each accepted one has succeeded, and its effect was once.
#[track_caller]
fn nothing_accepted_is_lost(service: &Service, work: impl FnOnce(&dyn Fn() -> usize)) {
    let (accepted, done) = (Mutex::new(Vec::<String>::new()), AtomicBool::new(false));
    std::thread::scope(|scope| {
        scope.spawn(|| {
            let mut client = Client::to(service.address);
            while !done.load(Ordering::Relaxed) {
                let answer = client.request("POST", "/v1/jobs/count", &["Prefer: respond-async"], "1");
                match answer.status {
                    202 => {
                        let id = answer.json()["id"].as_str().expect("an id").to_owned();
                        accepted.lock().expect("nobody panics with it").push(id);
                    }
                    _ => assert_unavailable(&answer),
                }
                std::thread::sleep(Duration::from_millis(5));
            }
        });
        let _done = Done(&done);
        work(&|| accepted.lock().expect("nobody panics with it").len());
    });
    let accepted = accepted.into_inner().expect("nobody panicked");
    assert!(accepted.len() > 20, "only {} were accepted", accepted.len());
    let results: BTreeSet<u64> = accepted
        .iter()
        .map(|id| service.record_when(id, "succeeded")["result"].as_u64().expect("a number"))
        .collect();
    assert_eq!(results.len(), accepted.len(), "each has a number of its own");
    // One whose submission was answered with 503 may have been heard all the same; none ran twice.
    until("the lane is empty", PATIENCE, || {
        (service.get("/v1/stats").json()["totals"]["queued"] == 0).then_some(())
    });
    let ended = service.metric("jobs_finished_total{handler=\"count\",status=\"succeeded\"}");
    let next: f64 = service.post("/v1/jobs/count", "0").text().parse().expect("a number");
    assert_eq!(next, ended + 1.0, "each effect once");
}

#[test]
fn r1_a_service_whose_server_is_down_at_the_start_waits_for_it_without_a_hot_loop() {
    let mut server = Server::absent(&[]);
    let deployment = Deployment::on(&server);
    let output = run(&mut deployment.command(&cofferdam(), "check", &[]), b"");
    assert_eq!(output.status.code(), Some(1), "nothing is wrong with the config: {}", shown(&output));
    let service = deployment.serve(&[]);
    let children = all_children(service.pid);
    assert_is_away(&service);
    assert_no_hot_loop(&[children[0], children[1], service.pid]);
    server.up();
    until("it is ready by itself", BACK, || (service.get("/readyz").status == 200).then_some(()));
    assert_text(&service.post("/v1/jobs/echo", "1"), "1");
    assert_eq!(all_children(service.pid), children, "nobody was replaced");
    let ended = service.stop();
    assert_ended(&ended.status, &ended.stderr, Some(0));
}

#[test]
fn r1_lone_processes_wait_for_their_server_and_drain_without_it() {
    let mut server = Server::absent(&[]);
    let deployment = Deployment::on(&server);
    let web = deployment.web(&cofferdam(), &[]);
    let executor = deployment.executor(&cofferdam(), &[]);
    assert_is_away(&web);
    assert_no_hot_loop(&[web.pid, executor.pid]);
    server.up();
    until("it is ready by itself", BACK, || (web.get("/readyz").status == 200).then_some(()));
    assert_text(&web.post("/v1/jobs/echo", "1"), "1");
    // The caller may have heard of it before the executor has.
    shows(&executor, r#"jobs_finished_total{handler="echo",status="succeeded"} 1"#);
    server.kill();
    // Nothing runs, so nothing is to be waited for.
    let begun = Stopwatch::start();
    executor.terminate();
    let ended = executor.ended();
    assert_ended(&ended.status, &ended.stderr, Some(0));
    let ended = web.stop();
    assert_ended(&ended.status, &ended.stderr, Some(0));
    assert!(begun.elapsed() < Duration::from_secs(8), "it took {:?}", begun.elapsed());
}

#[test]
fn r1_a_server_that_is_killed_under_load_and_comes_back_has_lost_nothing_that_was_accepted() {
    let mut server = Server::start(&DURABLE);
    let service = Deployment::on(&server).serve_of(&example("embedder"), &[]);
    let sound = Sound::before(&service);
    let children = all_children(service.pid);
    nothing_accepted_is_lost(&service, |accepted| {
        for away_ms in [0, 600] {
            answered_more(accepted, 40);
            server.kill();
            std::thread::sleep(Duration::from_millis(away_ms));
            server.up();
        }
        answered_more(accepted, 20);
    });
    assert_eq!(all_children(service.pid), children, "nobody was replaced");
    sound.over(service);
}

#[test]
fn r1_callers_that_wait_while_the_server_restarts_get_their_answer() {
    let mut server = Server::start(&DURABLE);
    let service = Deployment::on(&server).serve(&[]);
    let sound = Sound::before(&service);
    let mut waiting: Vec<Client> = [1_500, 4_000].map(|ms| sleeper(&service, ms)).into();
    running_and_heard(&service, 2);
    server.kill();
    // One of them ends while nobody can be told.
    std::thread::sleep(Duration::from_millis(1_800));
    server.up();
    assert_text(&waiting[0].read(), r#"{"slept_ms":1500}"#);
    assert_text(&waiting[1].read(), r#"{"slept_ms":4000}"#);
    drop(waiting);
    assert_eq!(service.metric("queue_redelivered_total"), 0.0);
    sound.over(service);
}

#[test]
fn r1_a_server_that_stalls_is_bounded_and_what_runs_goes_on() {
    let server = Server::start(&[]);
    let service = Deployment::on(&server).serve(&[SHORT_CALLS]);
    let sound = Sound::before(&service);
    let mut waiting = sleeper(&service, 1_500);
    running_and_heard(&service, 1);
    server.freeze();
    let begun = Instant::now();
    assert_is_away(&service);
    assert_no_hot_loop(&all_children(service.pid));
    std::thread::sleep(Duration::from_secs(10).saturating_sub(begun.elapsed()));
    server.thaw();
    assert_text(&waiting.read(), r#"{"slept_ms":1500}"#);
    drop(waiting);
    assert_eq!(service.metric("queue_redelivered_total"), 0.0);
    sound.over(service);
}

#[test]
fn r1_a_drain_waits_for_its_server_while_an_outcome_is_unheard() {
    let mut server = Server::start(&DURABLE);
    let deployment = Deployment::on(&server);
    let web = deployment.web(&cofferdam(), &[]);
    let executor = deployment.executor(&cofferdam(), &[]);
    let id = web.submit("/v1/jobs/sleep", &[], r#"{"ms":2000}"#);
    running_and_heard(&web, 1);
    server.kill();
    executor.terminate();
    // The job ends while nobody can be told.
    std::thread::sleep(Duration::from_millis(2_500));
    server.up();
    let ended = executor.ended();
    assert_ended(&ended.status, &ended.stderr, Some(0));
    let record = web.record_when(&id, "succeeded");
    assert_eq!(record["deliveries"], 1, "{record}");
    let ended = web.stop();
    assert_ended(&ended.status, &ended.stderr, Some(0));
}

#[test]
fn r1_a_drain_that_outlasts_its_leases_names_the_jobs_that_it_has_lost() {
    let mut server = Server::start(&DURABLE);
    let deployment = Deployment::on(&server).with(SHORT_LEASE);
    let web = deployment.web(&cofferdam(), &[]);
    let executor = deployment.executor(&cofferdam(), &[]);
    let id = web.submit("/v1/jobs/sleep", &[], r#"{"ms":600000}"#);
    web.record_when(&id, "running");
    // Claimed is not started.
    std::thread::sleep(Duration::from_millis(300));
    server.kill();
    executor.terminate();
    let ended = executor.ended();
    assert_ended(&ended.status, &ended.stderr, Some(4));
    assert!(ended.stderr.contains(&format!("lifecycle.forced job_id={id}")), "{}", ended.stderr);
    let ended = web.stop();
    assert_ended(&ended.status, &ended.stderr, Some(0));
}

#[test]
fn r1_a_drain_whose_server_says_nothing_names_what_it_cuts_off_and_has_nothing_to_name_when_idle() {
    let short = "runtime.platform.lifecycle.graceful_timeout_ms=800";
    for is_lone in [true, false] {
        for is_busy in [true, false] {
            let server = Server::start(&[]);
            let deployment = Deployment::on(&server).with(short);
            let (web, executor) = match is_lone {
                true => (deployment.web(&cofferdam(), &[]), Some(deployment.executor(&cofferdam(), &[]))),
                false => (deployment.serve(&[]), None),
            };
            let id = web.submit("/v1/jobs/sleep", &[], r#"{"ms":600000}"#);
            web.record_when(&id, "running");
            let has_heard = |busy: u8| match &executor {
                Some(executor) => shows(executor, &format!("workers_busy{{group=\"execution\"}} {busy}")),
                None => until("its executor is told", PATIENCE, || {
                    (web.metric("workers_busy{group=\"execution\"}") == f64::from(busy)).then_some(())
                }),
            };
            has_heard(1);
            if !is_busy {
                web.request("DELETE", &format!("/v1/jobs/{id}"), &[], "");
                has_heard(0);
            }
            // Calls last 5 s now, and a drain less than one.
            server.freeze();
            std::thread::sleep(Duration::from_millis(300));
            let begun = Stopwatch::start();
            let ended = match executor {
                Some(executor) => {
                    executor.terminate();
                    executor.ended()
                }
                None => {
                    web.terminate();
                    until("it ends", PATIENCE, || (!is_alive(web.pid)).then_some(()));
                    server.thaw();
                    web.ended()
                }
            };
            let took = begun.elapsed();
            server.thaw();
            assert_ended(&ended.status, &ended.stderr, Some(if is_busy { 4 } else { 0 }));
            assert_eq!(
                ended.stderr.contains(&format!("lifecycle.forced job_id={id}")),
                is_busy,
                "{}",
                ended.stderr
            );
            assert!(took < Duration::from_secs(5), "it took {took:?}");
        }
    }
}

#[test]
fn r1_connections_that_the_server_cuts_under_load_are_noticed_by_nobody() {
    let server = Server::start(&[]);
    let service = Deployment::on(&server).serve_of(&example("embedder"), &[]);
    let sound = Sound::before(&service);
    nothing_accepted_is_lost(&service, |accepted| {
        let ((), ends) = under_load(&service, 3, |answered| {
            for _ in 0..15 {
                answered_more(answered, 10);
                // Its own connection is kept.
                server.tell(&["CLIENT", "KILL", "TYPE", "normal"]);
            }
        });
        assert_eq!(ends.keys().collect::<Vec<_>>(), ["200"], "{ends:?}");
        answered_more(accepted, 10);
    });
    assert_eq!(service.metric("queue_redelivered_total"), 0.0, "no lease was lost");
    // At least the connection over which web asks, each time, and each time once.
    until("reconnects are counted", PATIENCE, || {
        (service.metric("backend_reconnects_total") >= 15.0).then_some(())
    });
    assert!(service.metric("backend_reconnects_total") < 200.0);
    sound.over(service);
}

#[test]
fn r1_a_black_hole_on_the_way_is_bounded_and_forgotten_once_it_is_gone() {
    let server = Server::start(&[]);
    let proxy = Proxy::to(&server.socket());
    black_hole(&proxy, &Deployment::at(&proxy.url()));
}

#[test]
fn r1_a_black_hole_is_bounded_also_where_a_new_connection_waits_for_its_login() {
    let server = Server::start(&["--user", "app", "on", &format!(">{PASSWORD}"), "~*", "&*", "+@all"]);
    let proxy = Proxy::to(&server.socket());
    let deployment = Deployment::at(&format!("{}/0", proxy.url()));
    let password = deployment.file("password", PASSWORD);
    let deployment = deployment
        .with("runtime.platform.redis.connect_timeout_ms=400")
        .with("runtime.platform.redis.username=app")
        .with(&format!("runtime.platform.redis.password_file={}", password.display()));
    black_hole(&proxy, &deployment);
}

#[track_caller]
fn black_hole(proxy: &Proxy, deployment: &Deployment) {
    let service = deployment.serve(&[SHORT_CALLS]);
    let sound = Sound::before(&service);
    let mut waiting = sleeper(&service, 3_000);
    running_and_heard(&service, 1);
    proxy.black_hole(true);
    assert_is_away(&service);
    assert_no_hot_loop(&all_children(service.pid));
    assert_is_away(&service);
    proxy.black_hole(false);
    sound.again(&service);
    assert_text(&waiting.read(), r#"{"slept_ms":3000}"#);
    drop(waiting);
    // At the start of all processes, too.
    proxy.black_hole(true);
    let begun = Stopwatch::start();
    let next = deployment.serve(&[SHORT_CALLS]);
    assert!(begun.elapsed() < Duration::from_secs(6), "it starts all the same: {:?}", begun.elapsed());
    assert_is_away(&next);
    proxy.black_hole(false);
    until("it is ready by itself", BACK, || (next.get("/readyz").status == 200).then_some(()));
    let ended = next.stop();
    assert_ended(&ended.status, &ended.stderr, Some(0));
    assert!(!ended.stderr.contains(PASSWORD));
    let ended = sound.over(service);
    assert!(!ended.stderr.contains(PASSWORD));
}

#[test]
fn r1_a_way_that_refuses_connections_is_no_hot_loop_and_a_slow_one_only_slow() {
    let server = Server::start(&[]);
    let proxy = Proxy::to(&server.socket());
    let service = Deployment::at(&proxy.url()).serve(&[]);
    let sound = Sound::before(&service);
    proxy.refuse(true);
    assert_is_away(&service);
    assert_no_hot_loop(&all_children(service.pid));
    proxy.refuse(false);
    sound.again(&service);
    proxy.delay("", Duration::from_millis(60));
    let ((), ends) = under_load(&service, 6, |answered| answered_more(answered, 60));
    assert_eq!(ends.keys().collect::<Vec<_>>(), ["200"], "{ends:?}");
    proxy.delay("", Duration::ZERO);
    sound.over(service);
}

/// A counting service whose way to the server can be cut, and what it held before.
struct Cuttable {
    server: Server,
    proxy: Proxy,
    service: Service,
    sound: Sound,
}

fn cuttable() -> Cuttable {
    cuttable_of(Server::start(&[]))
}

fn cuttable_of(server: Server) -> Cuttable {
    let proxy = Proxy::to(&server.socket());
    let service = Deployment::at(&proxy.url()).serve_of(&example("embedder"), &[]);
    let sound = Sound::before(&service);
    Cuttable { server, proxy, service, sound }
}

const SUBMIT: Cut = Cut { request: "\"jobs\":[{", answer: "new", each: 1, times: 1 };
const CLAIM: Cut = Cut { request: "\"commits\":[]", answer: "\r\ncount\r\n", each: 1, times: 1 };
const COMMIT: Cut = Cut { request: "\"commits\":[{", answer: "committed", each: 1, times: 1 };

#[test]
fn r2_a_submission_whose_answer_is_lost_is_repeated_and_the_job_runs_once() {
    let Cuttable { server: _server, proxy, service, sound } = cuttable();
    for number in 1..=5 {
        proxy.cut(SUBMIT);
        assert_text(&service.post("/v1/jobs/count", "0"), &number.to_string());
        assert_eq!(proxy.cuts(), number);
    }
    // Many in one call.
    proxy.cut(SUBMIT);
    let lines = "0\n".repeat(100);
    let answers: String = (6..=105).map(|number| format!("{number}\n")).collect();
    assert_text(&service.post("/v1/batch/count", &lines), &answers);
    assert_eq!(proxy.cuts(), 6);
    sound.over(service);
}

#[test]
fn r2_a_submission_that_is_cut_twice_is_503_and_its_key_finds_the_one_job() {
    let Cuttable { server: _server, proxy, service, sound } = cuttable();
    proxy.cut(Cut { times: 2, ..SUBMIT });
    let key = ["Idempotency-Key: once"];
    assert_unavailable(&service.request("POST", "/v1/jobs/count", &key, "0"));
    assert_eq!(proxy.cuts(), 2);
    let again = service.request("POST", "/v1/jobs/count", &key, "0");
    assert_text(&again, "1");
    assert_eq!(again.header("idempotency-replayed"), Some("true"), "{again:?}");
    assert_counted(&mut counters(&service, 1, 0), 2);
    sound.over(service);
}

/// Whoever asks by the id that the answer names is told the truth: the job runs, or there is none.
#[test]
fn u5_an_outage_in_the_middle_of_a_submission_names_the_id_and_asking_by_it_tells_the_truth() {
    let Cuttable { mut server, proxy, service, sound } = cuttable_of(Server::start(&DURABLE));
    let unavailable = |headers: &[&str]| {
        let answer = service.request("POST", "/v1/jobs/count", headers, "0");
        assert_unavailable(&answer);
        let detail = answer.json()["detail"].as_str().expect("words").to_owned();
        assert!(detail.contains("may have been accepted"), "{detail}");
        answer.header("cofferdam-job-id").expect("an id").to_owned()
    };
    for (number, headers) in [&[][..], &["Prefer: respond-async"], &["Prefer: wait=5"]].iter().enumerate() {
        proxy.cut(Cut { times: 2, ..SUBMIT });
        let id = unavailable(headers);
        let record = service.get(&format!("/v1/jobs/{id}?wait=5")).json();
        assert_eq!((&record["status"], &record["result"]), (&"succeeded".into(), &(number + 1).into()));
    }
    // Never heard of it.
    server.kill();
    let lost = ["Idempotency-Key: lost"].as_slice();
    let id = unavailable(lost);
    let asked = service.get(&format!("/v1/jobs/{id}"));
    assert_unavailable(&asked);
    assert_eq!(asked.header("cofferdam-job-id"), Some(id.as_str()), "nothing is known of it");
    server.up();
    until("it is ready by itself", BACK, || (service.get("/readyz").status == 200).then_some(()));
    assert_eq!(service.get(&format!("/v1/jobs/{id}")).code(), "unknown_job");
    assert_text(&service.request("POST", "/v1/jobs/count", lost, "0"), "4");
    sound.over(service);
}

#[test]
fn metrics_and_stats_answer_while_the_server_is_away_and_the_log_tells_of_it_once() {
    let mut server = Server::start(&[]);
    let deployment = Deployment::on(&server);
    let service = deployment.serve(&["observability.log=json", SHORT_LEASE]);
    assert_text(&service.post("/v1/jobs/echo", "1"), "1");
    assert_eq!(service.metric("backend_up"), 1.0);
    server.kill();
    let begun = Instant::now();
    until("it is not ready", PATIENCE, || (service.get("/readyz").status == 503).then_some(()));
    for _ in 0..3 {
        let metrics = service.get("/metrics");
        assert_eq!(metrics.status, 200, "{metrics:?}");
        let text = metrics.text();
        for line in [
            "cofferdam_backend_up 0\n",
            "cofferdam_reply_waiters 0\n",
            "route=\"submit\",status=\"200\"} 1\n",
        ] {
            assert!(text.contains(line), "{line}: {text}");
        }
        assert!(!text.contains("jobs_submitted_total"), "a counter never falls to 0: {text}");
        let stats = service.get("/v1/stats");
        assert_eq!(stats.status, 200, "{stats:?}");
        let stats = stats.json();
        assert_eq!(stats["groups"][0]["executors"], 1, "{stats}");
        assert!(stats["backend_error"].is_string() && stats.get("totals").is_none(), "{stats}");
        std::thread::sleep(LEASE);
    }
    server.up();
    until("it is ready by itself", BACK, || (service.get("/readyz").status == 200).then_some(()));
    let away = begun.elapsed();
    assert_eq!(service.metric("backend_up"), 1.0);
    assert!(service.get("/v1/stats").json()["totals"].is_object());
    let back = || service.stderr().contains(r#""event":"backend.back""#).then_some(());
    until("the log tells that it is back", PATIENCE, back);
    let log = service.stderr();
    let events = |name: &str| {
        log.lines().filter(|line| line.contains(&format!(r#""event":"{name}""#))).collect::<Vec<_>>()
    };
    assert_eq!((events("backend.away").len(), events("backend.back").len()), (1, 1), "{log}");
    let line: serde_json::Value = serde_json::from_str(events("backend.back")[0]).expect("an object");
    let after = Duration::from_millis(line["after_ms"].as_u64().expect("a time"));
    assert!(after >= 2 * LEASE && after <= away + LEASE, "{after:?} of {away:?}");
    let ended = service.stop();
    assert_ended(&ended.status, &ended.stderr, Some(0));
}

#[test]
fn r2_a_claim_whose_answer_is_lost_is_repeated_and_the_job_is_delivered_once() {
    let Cuttable { server: _server, proxy, service, sound } = cuttable();
    let mut cuts = 0;
    for number in 1..=4 {
        // The third of them in a row is beyond what one call repeats.
        let times = if number == 4 { 3 } else { 1 };
        proxy.cut(Cut { times, ..CLAIM });
        let answer = service.request("POST", "/v1/jobs/count", &["Prefer: respond-async"], "0");
        assert_eq!(answer.status, if times == 1 { 202 } else { 503 }, "{answer:?}");
        let id = answer.header("cofferdam-job-id").expect("it is told either way").to_owned();
        let record = service.record_when(&id, "succeeded");
        assert_eq!((&record["result"], &record["deliveries"]), (&json!(number), &json!(1)), "{record}");
        cuts += times;
        assert_eq!(proxy.cuts(), cuts);
    }
    assert_eq!(service.metric("queue_redelivered_total"), 0.0);
    sound.over(service);
}

#[test]
fn r2_a_commit_whose_answer_is_lost_is_repeated_and_its_effect_is_once() {
    let Cuttable { server: _server, proxy, service, sound } = cuttable();
    let mut cuts = 0;
    for number in 1..=4 {
        let times = if number == 4 { 3 } else { 1 };
        // The second of them in a row is told that it has been heard before.
        proxy.cut(Cut { times, answer: if times == 1 { COMMIT.answer } else { "" }, ..COMMIT });
        assert_text(&service.post("/v1/jobs/count", "0"), &number.to_string());
        cuts += times;
        until("they were cut", PATIENCE, || (proxy.cuts() == cuts).then_some(()));
    }
    let mut callers = counters(&service, 20, 1);
    assert_counted(&mut callers, 5);
    drop(callers);
    assert_eq!(service.metric("queue_redelivered_total"), 0.0);
    sound.over(service);
}

#[test]
fn r2_calls_of_all_kinds_whose_answers_are_lost_take_effect_once() {
    let Cuttable { server: _server, proxy, service, sound } = cuttable();
    nothing_accepted_is_lost(&service, |accepted| {
        for (each, cuts) in [(7, 15), (5, 30), (3, 45)] {
            proxy.cut(Cut { request: "", answer: "", each, times: 15 });
            until("they were cut", PATIENCE, || (proxy.cuts() == cuts).then_some(()));
            answered_more(accepted, 10);
        }
    });
    sound.over(service);
}

/// A web process and two executors, the first of them on a way of its own.
struct Pair {
    server: Server,
    proxy: Proxy,
    web: Service,
    first: Service,
    deployment: Deployment,
}

fn pair(lease: &str) -> Pair {
    let server = Server::start(&[]);
    let proxy = Proxy::to(&server.socket());
    let deployment = Deployment::on(&server).with(lease).with(SHORT_CALLS);
    let program = example("embedder");
    let web = deployment.web(&program, &[]);
    let by_proxy = format!("runtime.platform.redis.url={}", proxy.url());
    let first = deployment.executor(&program, &[&by_proxy]);
    Pair { server, proxy, web, first, deployment }
}

#[track_caller]
fn all_end_well(web: Service, executors: Vec<Service>) {
    for executor in executors {
        executor.terminate();
        let ended = executor.ended();
        assert_ended(&ended.status, &ended.stderr, Some(0));
    }
    let ended = web.stop();
    assert_ended(&ended.status, &ended.stderr, Some(0));
}

#[test]
fn r3_an_executor_that_is_killed_between_claim_and_commit_is_followed_after_its_lease() {
    // It ends before the process counts as gone, which would say nothing about its jobs.
    let lease = Duration::from_millis(3_500);
    let Pair { server: _server, proxy, web, first, deployment } =
        pair("runtime.platform.queue.visibility_timeout_ms=3500");
    // It has done its work within its lease; its word never arrives.
    assert_counted(&mut counters(&web, 2, 0), 1);
    let id = web.submit("/v1/jobs/count", &[], "1500");
    web.record_when(&id, "running");
    proxy.black_hole(true);
    let second = deployment.executor(&example("embedder"), &[]);
    std::thread::sleep(Duration::from_millis(1_700));
    let begun = Stopwatch::start();
    drop(first);
    let record = web.record_when(&id, "succeeded");
    assert_eq!((&record["result"], &record["deliveries"]), (&json!(3), &json!(2)), "{record}");
    assert!(begun.elapsed() < lease + Duration::from_secs(4), "it took {:?}", begun.elapsed());
    assert_counted(&mut counters(&web, 1, 0), 4);
    all_end_well(web, vec![second]);
}

#[test]
fn r3_a_commit_that_comes_after_the_lease_takes_no_effect() {
    let Pair { server: _server, proxy, web, first, deployment } = pair(SHORT_LEASE);
    // Such a request is held until its lease is another's.
    proxy.delay(COMMIT.request, 2 * LEASE);
    let id = web.submit("/v1/jobs/count", &[], "1500");
    web.record_when(&id, "running");
    let second = deployment.executor(&example("embedder"), &[]);
    let record = web.record_when(&id, "succeeded");
    assert_eq!((&record["result"], &record["deliveries"]), (&json!(1), &json!(2)), "{record}");
    proxy.delay("", Duration::ZERO);
    until("its late word is heard", PATIENCE, || (web.metric("reply_late_total") > 0.0).then_some(()));
    assert_counted(&mut counters(&web, 5, 0), 2);
    // Alone again, the first one builds on what the other has written.
    second.terminate();
    assert_eq!(second.ended().status.code(), Some(0));
    assert_counted(&mut counters(&web, 5, 0), 7);
    assert_eq!(web.record(&id), record, "the late word changed nothing");
    all_end_well(web, vec![first]);
}

#[test]
fn r4_an_executor_that_was_stopped_for_longer_than_its_lease_has_no_say_and_no_old_state() {
    let Pair { server: _server, proxy: _proxy, web, first, deployment } = pair(SHORT_LEASE);
    // It knows the lane's state.
    assert_counted(&mut counters(&web, 3, 0), 1);
    let id = web.submit("/v1/jobs/count", &[], "2500");
    web.record_when(&id, "running");
    // Its whole host: whoever speaks for it to the server, too.
    let host: Vec<u32> = all_children(first.pid).into_iter().chain([first.pid]).collect();
    host.iter().for_each(|pid| signal(*pid, Signal::STOP));
    let second = deployment.executor(&example("embedder"), &[]);
    let record = web.record_when(&id, "succeeded");
    assert_eq!((&record["result"], &record["deliveries"]), (&json!(4), &json!(2)), "{record}");
    assert_counted(&mut counters(&web, 3, 0), 5);
    host.iter().for_each(|pid| signal(*pid, Signal::CONT));
    until("it is one of two again", PATIENCE, || {
        (web.get("/v1/stats").json()["groups"][0]["executors"] == 2).then_some(())
    });
    // What it had cached would make the next number a 4 or a 5.
    second.terminate();
    assert_eq!(second.ended().status.code(), Some(0));
    assert_counted(&mut counters(&web, 3, 0), 8);
    assert_eq!(web.record(&id), record, "its late word changed nothing");
    all_end_well(web, vec![first]);
}

#[test]
fn r5_a_server_whose_memory_is_used_up_refuses_new_jobs_and_lets_running_ones_end() {
    let server = Server::start(&["--maxmemory-policy", "noeviction"]);
    let service = Deployment::on(&server).serve_of(&example("embedder"), &[]);
    let sound = Sound::before(&service);
    assert_eq!(service.post("/v1/handlers/echo/pause", "").status, 200);
    let mut waiting = vec![sleeper(&service, 1_500), caller(&service, "/v1/jobs/count", "1000")];
    running(&service, 2);
    let info: String = server.ask(&["INFO", "memory"]);
    let used = info.lines().find_map(|line| line.strip_prefix("used_memory:")?.trim().parse::<u64>().ok());
    let used = used.expect("a number");
    server.tell(&["CONFIG", "SET", "maxmemory", &(used + (8 << 20)).to_string()]);
    let (mut accepted, payload) = (Vec::new(), vec![b'x'; 200_000]);
    let refused = loop {
        let answer = service.request("POST", "/v1/jobs/echo", &["Prefer: respond-async"], &payload);
        if answer.status != 202 {
            break answer;
        }
        accepted.push(answer.json()["id"].as_str().expect("an id").to_owned());
        assert!(accepted.len() < 200, "nobody is refused");
    };
    assert!(accepted.len() > 5, "{}", accepted.len());
    assert_unavailable(&refused);
    // Not even the smallest fits.
    server.tell(&["CONFIG", "SET", "maxmemory", &used.to_string()]);
    assert_unavailable(&service.post("/v1/jobs/sleep", r#"{"ms":1}"#));
    assert_text(&waiting[0].read(), r#"{"slept_ms":1500}"#);
    assert_text(&waiting[1].read(), "1");
    drop(waiting);
    // What was refused is not there by halves, and what is there can be read, ended and told.
    let stats = service.get("/v1/stats").json();
    assert_eq!(stats["totals"]["queued"], accepted.len(), "{stats}");
    let last = accepted.pop().expect("a job");
    assert_eq!(service.request("DELETE", &format!("/v1/jobs/{last}"), &[], "").json()["status"], "cancelled");
    let records = server.keys().iter().filter(|key| key.contains(":job:")).count();
    let listed = service.get("/v1/jobs?limit=1000").json();
    assert_eq!(listed["jobs"].as_array().map(Vec::len), Some(records), "{listed}");

    server.tell(&["CONFIG", "SET", "maxmemory", "0"]);
    assert_eq!(service.post("/v1/handlers/echo/resume", "").status, 200);
    for id in &accepted {
        service.record_when(id, "succeeded");
    }
    assert_counted(&mut counters(&service, 1, 0), 2);
    sound.over(service);
}

/// How each role ends that is started on this server, and what it says.
#[track_caller]
fn assert_refused(deployment: &Deployment, words: &[&str], sets: &[&str]) {
    for role in ["serve", "web", "executor", "check"] {
        let output = run(&mut deployment.command(&cofferdam(), role, sets), b"");
        assert_eq!(output.status.code(), Some(2), "{role}: {}", shown(&output));
        let stderr = String::from_utf8_lossy(&output.stderr);
        for word in words.iter().chain(&["runtime.platform.redis"]) {
            assert!(stderr.contains(word), "{role} does not say {word:?}: {stderr}");
        }
        assert!(!stderr.contains(PASSWORD), "{stderr}");
    }
    let output = run(deployment.command(&cofferdam(), "batch", sets).args(["--handler", "echo"]), b"1\n");
    assert_eq!(output.status.code(), Some(2), "batch: {}", shown(&output));
}

#[test]
fn r6_a_server_that_throws_jobs_away_is_refused_with_the_line_to_change() {
    for policy in ["allkeys-lru", "volatile-ttl"] {
        let server = Server::start(&["--maxmemory-policy", policy]);
        assert_refused(&Deployment::on(&server), &[policy, "maxmemory-policy noeviction"], &[]);
    }
}

#[test]
fn r6_a_server_that_does_not_let_us_in_is_told_apart_by_its_message() {
    let server = Server::start(&["--requirepass", PASSWORD]);
    // This test's own connection has no password, so the server is not asked.
    let deployment = Deployment::on(&server);
    let wrong = deployment.file("wrong", "not-the-password\n");
    let wrong = format!("runtime.platform.redis.password_file={}", wrong.display());
    assert_refused(&deployment, &["Password", "password_file"], &[&wrong]);
    assert_refused(&deployment, &["NOAUTH", "password_file"], &[]);
    let right = deployment.file("right", &format!("{PASSWORD}\n"));
    let right = format!("runtime.platform.redis.password_file={}", right.display());
    let output = run(&mut deployment.command(&cofferdam(), "check", &[&right]), b"");
    assert_eq!(output.status.code(), Some(0), "{}", shown(&output));
}

#[test]
fn r6_a_user_who_may_too_little_is_told_so() {
    let server = Server::start(&[]);
    let password = format!(">{PASSWORD}");
    server.tell(&["ACL", "SETUSER", "nobody", "on", &password, "~*", "+ping"]);
    server.tell(&["ACL", "SETUSER", "looks", "on", &password, "~*", "+ping", "+info"]);
    server.tell(&["ACL", "SETUSER", "calls", "on", &password, "~*", "+ping", "+info", "+fcall"]);
    let deployment = Deployment::on(&server);
    let password = deployment.file("password", PASSWORD);
    let deployment = deployment.with(&format!("runtime.platform.redis.password_file={}", password.display()));
    assert_refused(&deployment, &["permission", "ACL line"], &["runtime.platform.redis.username=nobody"]);
    assert_refused(&deployment, &["'fcall'", "ACL line"], &["runtime.platform.redis.username=looks"]);
    // One whose lack shows only with the first script is a backend that cannot be used, with its cause, and no hot loop.
    let service = deployment.serve(&["runtime.platform.redis.username=calls"]);
    assert_is_away(&service);
    let children = all_children(service.pid);
    assert_no_hot_loop(&children);
    assert!(service.stderr().contains("permission"), "the log says why: {}", service.stderr());
    server.tell(&["ACL", "SETUSER", "calls", "allchannels", "+@all"]);
    until("it is ready by itself", BACK, || (service.get("/readyz").status == 200).then_some(()));
    assert_eq!(all_children(service.pid), children, "nobody was replaced");
    let ended = service.stop();
    assert_ended(&ended.status, &ended.stderr, Some(0));
}

/// A secret that the server does not know is told to nobody but the operator: with it every job would be forged.
#[test]
fn r6_another_secret_is_refused_at_every_start_and_touches_no_job() {
    const OTHER: &str = "0f1e2d3c4b5a69788796a5b4c3d2e1f00123456789abcdeffedcba9876543210";
    let mut server = Server::start(&DURABLE);
    let deployment = Deployment::on(&server);
    let output = run(&mut deployment.command(&cofferdam(), "check", &[]), b"");
    assert_eq!((output.status.code(), server.keys()), (Some(0), Vec::new()), "a look changes nothing");
    let service = deployment.serve(&[]);
    assert!(service.post("/v1/handlers/echo/pause", "").status == 200);
    let id = service.submit("/v1/jobs/echo", &[], "1");
    service.stop();
    let file = deployment.file("other", &format!("{OTHER}\n"));
    let other = format!("runtime.platform.execution_ipc.auth.secret_file={}", file.display());
    assert_refused(&deployment, &["another secret", &file.display().to_string()], &[&other]);
    // One that could not ask at its start asks before it says anything else.
    server.kill();
    let stranger = deployment.serve(&[&other]);
    server.up();
    until("it says why", BACK, || stranger.stderr().contains("another secret").then_some(()));
    assert_is_away(&stranger);
    assert_no_hot_loop(&all_children(stranger.pid));
    stranger.stop();
    // Both secrets in one file, the new one first: what the old one has signed runs, and the old one alone is refused.
    let file = deployment.file("both", &format!("{OTHER}\n{}\n", SECRET));
    let both = format!("runtime.platform.execution_ipc.auth.secret_file={}", file.display());
    let service = deployment.serve(&[&both]);
    assert_eq!(service.record_when(&id, "queued")["deliveries"], 0);
    assert!(service.post("/v1/handlers/echo/resume", "").status == 200);
    assert_eq!(service.record_when(&id, "succeeded")["result"]["base64"], "MQ==");
    assert_eq!(service.metric("forged_total{what=\"job\"}"), 0.0);
    let ended = service.stop();
    assert_ended(&ended.status, &ended.stderr, Some(0));
    assert_refused(&deployment, &["another secret"], &[]);
    // The new one alone is let in, and knows nothing of what the old one has signed.
    let service = deployment.serve(&[&other]);
    assert_eq!(service.get(&format!("/v1/jobs/{id}")).status, 404);
    assert_text(&service.post("/v1/jobs/echo", "2"), "2");
    service.stop();
}

#[test]
fn r6_a_read_only_replica_is_refused_and_the_message_names_the_primary() {
    let mut primary = Server::absent(&["--repl-diskless-sync-delay", "0"]).with_tcp();
    primary.up();
    let replica = replica_of(&primary);
    assert_refused(&Deployment::on(&replica), &["replica", "primary"], &[]);
}

/// One that has all that its primary has.
fn replica_of(primary: &Server) -> Server {
    let port = primary.tcp().port().to_string();
    let replica = Server::start(&["--replicaof", "127.0.0.1", &port]);
    until("it is in step", PATIENCE, || {
        let info: String = replica.ask(&["INFO", "replication"]);
        info.contains("master_link_status:up").then_some(())
    });
    replica
}

#[test]
fn r6_the_log_says_what_the_server_promises() {
    for (options, promise) in [
        (
            &[][..],
            "a crash of the server loses what was not saved: set `appendonly yes` and `appendfsync always`",
        ),
        (&["--appendonly", "yes"][..], "a crash of the server loses at most about a second"),
        (&DURABLE[..], "what is kept there survives a crash of the server"),
    ] {
        let server = Server::start(options);
        let service = Deployment::on(&server).serve(&[]);
        let ended = service.stop();
        assert_ended(&ended.status, &ended.stderr, Some(0));
        assert!(ended.stderr.contains(promise), "no {promise:?} in {}", ended.stderr);
    }
}

#[test]
fn r6_a_server_that_is_loading_its_data_is_waited_for() {
    // It listens after each 1,024 bytes of its file, which must not be packed to a few: a look takes some turns of that.
    let mut server = Server::start(&[
        "--rdbcompression",
        "no",
        "--key-load-delay",
        "40000",
        "--loading-process-events-interval-bytes",
        "1024",
    ]);
    let fill = "for i = 1, 100 do redis.call('SET', 'old:' .. i, string.rep('x', 2000)) end";
    server.tell(&["EVAL", fill, "0"]);
    server.tell(&["SAVE"]);
    server.kill();
    server.begin();
    until("it loads", PATIENCE, || server.socket().exists().then_some(()));
    let service = Deployment::on(&server).serve(&[]);
    assert_unavailable(&service.post("/v1/jobs/echo", "1"));
    until("it is ready by itself", PATIENCE, || (service.get("/readyz").status == 200).then_some(()));
    assert_text(&service.post("/v1/jobs/echo", "1"), "1");
    let ended = service.stop();
    assert_ended(&ended.status, &ended.stderr, Some(0));
}

#[test]
fn r9_scripts_that_are_flushed_under_load_are_noticed_by_nobody() {
    let server = Server::start(&[]);
    let service = Deployment::on(&server).serve_of(&example("embedder"), &[]);
    let sound = Sound::before(&service);
    nothing_accepted_is_lost(&service, |accepted| {
        let ((), ends) = under_load(&service, 3, |answered| {
            for _ in 0..20 {
                answered_more(answered, 10);
                server.tell(&["FUNCTION", "FLUSH"]);
            }
        });
        assert_eq!(ends.keys().collect::<Vec<_>>(), ["200"], "{ends:?}");
        answered_more(accepted, 10);
    });
    assert_eq!(service.metric("queue_redelivered_total"), 0.0);
    sound.over(service);
}

#[test]
fn r9_a_replica_that_takes_over_goes_on_with_what_it_has() {
    let mut primary = Server::absent(&["--repl-diskless-sync-delay", "0"]).with_tcp();
    primary.up();
    let replica = replica_of(&primary);
    let proxy = Proxy::to(&primary.socket());
    let service = Deployment::at(&proxy.url()).serve_of(&example("embedder"), &[]);
    let sound = Sound::before(&service);
    assert_counted(&mut counters(&service, 3, 0), 1);
    let mut waiting = caller(&service, "/v1/jobs/count", "4000");
    running(&service, 1);
    let queued = service.submit("/v1/jobs/count", &[], "0");
    // What the replica lacks is lost, so it lacks nothing: a connection's WAIT waits for what itself has written.
    let mut own = primary.connect();
    let mark = redis::cmd("SET").arg("mark").arg(1).exec(&mut own);
    let copies = mark.and_then(|()| redis::cmd("WAIT").arg(1).arg(5_000).query::<u64>(&mut own));
    assert_eq!(copies.expect("the primary is there"), 1);
    proxy.turn_to(&replica.socket());
    primary.kill();
    // It reads, but may not write yet.
    assert_unavailable(&service.post("/v1/jobs/echo", "1"));
    replica.tell(&["REPLICAOF", "NO", "ONE"]);
    let begun = Stopwatch::start();
    until("it is ready by itself", BACK, || (service.get("/readyz").status == 200).then_some(()));
    assert_text(&waiting.read(), "4");
    assert!(begun.elapsed() < BACK + Duration::from_secs(4), "it took {:?}", begun.elapsed());
    drop(waiting);
    assert_eq!(service.record_when(&queued, "succeeded")["result"], 5);
    assert_counted(&mut counters(&service, 1, 0), 6);
    sound.over(service);
}

/// Ends that other processes tell are lost with the stream that they are told in, and found where they are kept.
#[test]
fn r9_an_inbox_that_vanishes_costs_its_callers_a_second_at_most() {
    const RUNS: Duration = Duration::from_secs(2);
    let server = Server::start(&[]);
    let deployment = Deployment::on(&server);
    let workers = deployment.serve(&[]);
    let web = deployment.web(&cofferdam(), &[]);
    for once in [true, false, false] {
        let mut waiting = sleeper(&web, RUNS.as_millis() as u64);
        let begun = Stopwatch::start();
        running(&workers, 1);
        let done = AtomicBool::new(false);
        std::thread::scope(|scope| {
            scope.spawn(|| {
                while !done.load(Ordering::Relaxed) {
                    for inbox in server.keys().iter().filter(|key| key.contains(":inbox:")) {
                        server.tell(&["DEL", inbox]);
                    }
                    if once {
                        return;
                    }
                    std::thread::sleep(Duration::from_millis(5));
                }
            });
            let _done = Done(&done);
            assert_eq!(waiting.read().status, 200);
        });
        let took = begun.elapsed();
        assert!(took < RUNS + Duration::from_millis(1_800), "gone once: {once}: it took {took:?}");
    }
    web.stop();
    workers.stop();
}

/// A caller that asks for a job's record with a wait is told of a backend that goes away, and never left alone.
#[test]
fn r1_who_waits_for_a_record_while_the_server_is_away_is_answered_in_time() {
    let mut server = Server::start(&DURABLE);
    let service = Deployment::on(&server).serve(&[]);
    let sound = Sound::before(&service);
    let ended = service.submit("/v1/jobs/echo", &[], "1");
    service.record_when(&ended, "succeeded");
    let id = service.submit("/v1/jobs/sleep", &[], r#"{"ms":6000}"#);
    let mut waits = service.connect();
    waits.send(request("GET", &format!("/v1/jobs/{id}?wait=10"), &[], ""));
    let mut gives_up = service.connect();
    gives_up.send(request("GET", &format!("/v1/jobs/{id}?wait=3"), &[], ""));
    service.record_when(&id, "running");
    waiters(&service, 2.0);
    // Who waits is asked for behind them, by the same thread: the server has been asked of both.
    assert_eq!(service.get(&format!("/v1/jobs/{ended}?wait=1")).json()["status"], "succeeded");
    server.kill();
    let begun = Stopwatch::start();
    let answer = gives_up.read();
    assert!(matches!(answer.status, 200 | 503), "{answer:?}");
    assert_eq!(answer.header("cofferdam-job-id"), Some(id.as_str()), "{answer:?}");
    assert!(begun.elapsed() < Duration::from_secs(6), "it took {:?}", begun.elapsed());
    server.up();
    let record = waits.read().json();
    assert_eq!(record["status"], "succeeded", "{record}");
    drop((waits, gives_up));
    sound.over(service);
}
