//! `web.auth.mode=bearer` over the wire: who may do what, whose jobs are whose, how tokens come and go while the service
//! runs, and that no token is anywhere but in the hands of its holder.
//!
//! It guards against a route that asks for less than it should, a job that shows itself to another token, and a reread
//! that costs a request.

#[cfg(feature = "redis")]
#[path = "support/aftermath.rs"]
mod aftermath;
#[path = "support/bearer.rs"]
mod bearer;
#[cfg(feature = "redis")]
#[path = "support/own_redis.rs"]
mod own_redis;
#[path = "support/program.rs"]
mod program;
#[cfg(feature = "redis")]
#[path = "support/redis_server.rs"]
mod redis_server;
#[path = "support/service.rs"]
mod service;

use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use bearer::{Token, TokenFile};
use program::{cofferdam, command, run, wait};
#[cfg(feature = "redis")]
use redis_server::{Deployment, Server};
use rustix::process::Signal;
use service::{Answer, Client, Done, PATIENCE, Service, request, signal, until};

const SUPERVISED: &str = "runtime.platform.bootstrap.mode=process_supervisor";
const INLINE: &str = "runtime.platform.bootstrap.mode=inline";
const NO_JOB: &str = "0123456789abcdef0123456789abcdef";

fn start(file: &TokenFile, more: &[&str]) -> Service {
    let sets = file.sets();
    Service::start(&sets.iter().map(String::as_str).chain(more.iter().copied()).collect::<Vec<_>>())
}

#[track_caller]
fn assert_refused(answer: &Answer, status: u16, code: &str) {
    assert_eq!((answer.status, &*answer.code()), (status, code), "{answer:?}");
}

#[test]
fn every_route_asks_for_its_scope_and_for_nothing_in_the_mode_none() {
    let [submit, read, admin, both] =
        ["submit", "read", "admin", "submit,read"].map(|scopes| Token::new("ann", scopes));
    let lines: Vec<&str> = [&submit, &read, &admin, &both].map(|token| &*token.line).into();
    let file = TokenFile::new(&lines);
    let job = |rest: &str| format!("/v1/jobs/{NO_JOB}{rest}");
    // Method, target, what it asks for, and the answer to who may do it.
    let routes: [(&str, String, &[&str], u16); 23] = [
        ("GET", "/healthz".into(), &[], 200),
        ("GET", "/livez".into(), &[], 200),
        ("GET", "/".into(), &[], 200),
        ("OPTIONS", "*".into(), &[], 200),
        ("GET", "/openapi.json".into(), &[], 200),
        ("GET", "/readyz".into(), &["read", "admin"], 200),
        ("GET", "/metrics".into(), &["read", "admin"], 200),
        ("GET", "/v1/stats".into(), &["read", "admin"], 200),
        ("HEAD", "/v1/events".into(), &["read", "admin"], 200),
        ("GET", "/v1/lanes/echo".into(), &["read", "admin"], 200),
        ("POST", "/v1/jobs/retry".into(), &["admin"], 400),
        ("POST", "/v1/jobs/cancel".into(), &["admin"], 400),
        ("GET", "/v1/jobs".into(), &["read", "admin"], 200),
        ("GET", job(""), &["read", "admin"], 404),
        ("GET", job("?wait=1"), &["read", "admin"], 404),
        ("GET", job("/result"), &["read", "admin"], 404),
        ("GET", job("/payload"), &["read", "admin"], 404),
        ("POST", "/v1/jobs/echo".into(), &["submit"], 200),
        ("POST", "/v1/batch/echo".into(), &["submit"], 200),
        ("DELETE", job(""), &["submit", "admin"], 404),
        ("POST", job("/retry"), &["submit", "admin"], 404),
        ("POST", "/v1/handlers/echo/pause".into(), &["admin"], 200),
        ("POST", "/v1/handlers/echo/resume".into(), &["admin"], 200),
    ];
    for mode in [SUPERVISED, INLINE] {
        let service = start(&file, &[mode]);
        for (method, target, scopes, status) in &routes {
            let what = format!("{mode}: {method} {target}");
            // To HEAD a refusal has no document.
            let code = |code: &'static str| if *method == "HEAD" { "" } else { code };
            for (token, own) in
                [(&submit, "submit"), (&read, "read"), (&admin, "admin"), (&both, "submit,read")]
            {
                let may = scopes.is_empty() || own.split(',').any(|own| scopes.contains(&own));
                let answer = token.ask(&service, method, target, &[], "");
                if may {
                    assert_eq!(answer.status, *status, "{what} with {own}: {answer:?}");
                } else {
                    assert_refused(&answer, 403, code("forbidden"));
                    let challenge = answer.header("www-authenticate").unwrap_or_default();
                    let lacks = format!("error=\"insufficient_scope\", scope=\"{}\"", scopes[0]);
                    assert!(challenge.ends_with(&lacks), "{what}: {challenge}");
                }
                // Paused handlers hold the jobs of what follows.
                if target.ends_with("/pause") && may {
                    assert_eq!(token.ask(&service, "POST", "/v1/handlers/echo/resume", &[], "").status, 200);
                }
            }
            let stranger = service.request(method, target, &["Authorization: Bearer cfd_x"], "");
            let nobody = service.request(method, target, &[], "");
            for answer in [stranger, nobody] {
                if scopes.is_empty() {
                    assert_eq!(answer.status, *status, "{what}");
                } else if answer.status == 429 {
                    assert!(answer.header("retry-after").is_some(), "{what}");
                } else {
                    assert_refused(&answer, 401, code("unauthorized"));
                    assert!(answer.header("www-authenticate").is_some_and(|it| it.starts_with("Bearer ")));
                }
            }
        }
        drop(service);
        let service = Service::start(&[mode]);
        for (method, target, _, status) in &routes {
            let answer = service.request(method, target, &[], "");
            assert_eq!(answer.status, *status, "{mode}: {method} {target}: {answer:?}");
        }
    }
}

#[test]
fn a_token_is_one_authorization_of_visible_ascii_and_judged_before_the_body() {
    let token = Token::new("ann", "submit,read");
    let file = TokenFile::new(&[&token.line]);
    let service = start(&file, &[]);
    let text = &token.text;
    assert_eq!(text.len(), 4 + 43, "cfd_ and 32 bytes as base64url");
    for (headers, status) in [
        (format!("Authorization: Bearer {text}"), 200),
        (format!("authorization: bEARER {text}"), 200),
        (format!("Authorization: Bearer   {text}"), 200),
        (format!("Authorization: Bearer {text}\r\nAuthorization: Bearer {text}"), 401),
        (format!("Authorization: Basic {text}"), 401),
        (format!("Authorization: Bearer{text}"), 401),
        (format!("Authorization: {text}"), 401),
        (format!("Authorization: Bearer {text} x"), 401),
        (format!("Authorization: Bearer {text}\u{e9}"), 401),
        (format!("Authorization: Bearer {}", text.to_uppercase()), 401),
        (format!("Authorization: Bearer {}", &text[..text.len() - 1]), 401),
        (format!("Authorization: Bearer {}{text}", " ".repeat(100)), 401),
        ("Authorization: Bearer ".into(), 401),
        (format!("Cookie: token={text}"), 401),
        (format!("X-Forwarded-For: 127.0.0.1\r\nProxy-Authorization: Bearer {text}"), 401),
    ] {
        let answer = service.request("GET", "/v1/stats", &[&headers], "");
        assert_eq!(answer.status, status, "{headers:?}: {answer:?}");
        // Whoever guesses is told so at most some times a second.
        std::thread::sleep(Duration::from_millis(if status == 401 { 110 } else { 0 }));
    }
    assert_eq!(service.get(&format!("/v1/stats?access_token={text}")).status, 400);
    // No 100 is sent, no byte of a body is waited for, no idempotency key is looked at.
    let mut client = service.connect();
    client.send(
        "POST /v1/jobs/echo HTTP/1.1\r\nHost: localhost\r\nContent-Length: 1000\r\nExpect: 100-continue\r\n\
         Idempotency-Key: k\r\n\r\n",
    );
    assert_refused(&client.read(), 401, "unauthorized");
    let rejected = token.get(&service, "/metrics").text();
    let line = rejected.lines().find(|line| line.contains("http_rejected_total{reason=\"unauthorized\"}"));
    assert_eq!(line.and_then(|line| line.rsplit(' ').next()), Some("13"), "{line:?}");
}

#[test]
fn a_token_for_some_handlers_submits_to_no_others() {
    let token = Token::of(&["ann", "--scopes", "submit,admin", "--handlers", "echo"]);
    let file = TokenFile::new(&[&token.line]);
    let service = start(&file, &[]);
    assert_eq!(token.ask(&service, "POST", "/v1/jobs/echo", &[], "x").status, 200);
    for target in ["/v1/jobs/sleep", "/v1/batch/sleep", "/v1/handlers/sleep/pause", "/v1/jobs/unheard-of"] {
        assert_refused(&token.ask(&service, "POST", target, &[], ""), 403, "forbidden");
    }
    // Nor are jobs of others begun again or ended, its own name's or, by an admin, anybody's.
    let all = Token::new("ann", "submit");
    file.write(&[&token.line, &all.line]);
    signal(service.pid, Signal::HUP);
    until("both tokens are known", PATIENCE, || (all.get(&service, "/v1/jobs").status == 403).then_some(()));
    let id = all.submit(&service, "/v1/jobs/sleep", &[], r#"{"ms":600000}"#);
    let (job, retry) = (format!("/v1/jobs/{id}"), format!("/v1/jobs/{id}/retry"));
    assert_refused(&token.ask(&service, "DELETE", &job, &[], ""), 403, "forbidden");
    assert_eq!(all.ask(&service, "DELETE", &job, &[], "").status, 200);
    assert_refused(&token.ask(&service, "POST", &retry, &[], ""), 403, "forbidden");
    assert_eq!(all.ask(&service, "POST", &retry, &[], "").status, 202);
    assert_eq!(all.ask(&service, "DELETE", &job, &[], "").status, 200);
    drop(service);
    // A handler that is not there is said before anything starts.
    let wrong = Token::of(&["bob", "--handlers", "ecko"]);
    file.write(&[&wrong.line]);
    let sets = file.sets();
    let output = wait(Service::spawn(&cofferdam(), &[&sets[0], &sets[1]]));
    let said = String::from_utf8_lossy(&output.stderr).into_owned();
    assert_eq!(output.status.code(), Some(2), "{said}");
    assert!(said.contains("the token bob is for ecko"), "{said}");
}

/// Two holders and an admin on one service: to each the others' jobs are not there.
fn assert_apart(service: &Service, ann: &Token, bob: &Token, admin: &Token) {
    let key = ["Idempotency-Key: k"];
    let anns = ann.submit(service, "/v1/jobs/sleep", &key, r#"{"ms":600000}"#);
    let bobs = bob.submit(service, "/v1/jobs/sleep", &key, r#"{"ms":600000}"#);
    assert_ne!(anns, bobs, "a key joins the holder's own job and no other");
    let again =
        ann.ask(service, "POST", "/v1/jobs/sleep", &["Idempotency-Key: k", "Prefer: wait=0"], "other");
    assert_refused(&again, 422, "idempotency_mismatch");
    assert_eq!(again.header("cofferdam-job-id"), Some(&*anns), "its own");
    let listed = |token: &Token| -> Vec<String> {
        let jobs = token.get(service, "/v1/jobs").json();
        let ids = jobs["jobs"].as_array().expect("a list").iter();
        ids.map(|job| job["id"].as_str().expect("an id").to_owned()).collect()
    };
    assert_eq!(listed(ann), [&*anns]);
    assert_eq!(listed(bob), [&*bobs]);
    assert_eq!(listed(admin), [&*bobs, &*anns]);
    for (method, rest) in [
        ("GET", ""),
        ("GET", "?wait=5"),
        ("GET", "/result"),
        ("GET", "/payload"),
        ("DELETE", ""),
        ("POST", "/retry"),
    ] {
        let answer = bob.ask(service, method, &format!("/v1/jobs/{anns}{rest}"), &[], "");
        assert_refused(&answer, 404, "unknown_job");
        assert_eq!(answer.header("cofferdam-job-id"), None, "{method} {rest}");
    }
    let record = ann.get(service, &format!("/v1/jobs/{anns}")).json();
    assert!(record["status"] != "cancelled", "{record}");
    assert_eq!(ann.get(service, &format!("/v1/jobs/{anns}/payload")).text(), r#"{"ms":600000}"#);
    assert_eq!(admin.ask(service, "DELETE", &format!("/v1/jobs/{bobs}"), &[], "").status, 200);
    assert_eq!(ann.ask(service, "DELETE", &format!("/v1/jobs/{anns}"), &[], "").status, 200);
    for (token, id) in [(ann, &anns), (bob, &bobs)] {
        until("it is cancelled", PATIENCE, || {
            let record = token.get(service, &format!("/v1/jobs/{id}")).json();
            (record["status"] == "cancelled").then_some(())
        });
    }
    // A batch's lines are its caller's.
    assert_eq!(bob.ask(service, "POST", "/v1/batch/echo", &[], "1\n2\n").text(), "1\n2\n");
    assert_eq!(listed(ann), [&*anns]);
    assert_eq!(listed(bob).len(), 3);
}

#[test]
fn two_tokens_do_not_see_join_cancel_or_list_each_others_jobs() {
    let [ann, bob] = ["ann", "bob"].map(|name| Token::new(name, "submit,read"));
    let admin = Token::new("root", "admin");
    let file = TokenFile::new(&[&ann.line, &bob.line, &admin.line]);
    for mode in [SUPERVISED, INLINE] {
        assert_apart(&start(&file, &[mode]), &ann, &bob, &admin);
    }
}

#[cfg(feature = "redis")]
#[test]
fn two_tokens_do_not_see_join_cancel_or_list_each_others_jobs_on_redis() {
    let [ann, bob] = ["ann", "bob"].map(|name| Token::new(name, "submit,read"));
    let admin = Token::new("root", "admin");
    let file = TokenFile::new(&[&ann.line, &bob.line, &admin.line]);
    let server = Server::start(&[]);
    let deployment = Deployment::on(&server);
    let sets = file.sets();
    assert_apart(&deployment.serve(&[&sets[0], &sets[1]]), &ann, &bob, &admin);
}

#[test]
fn tokens_are_read_again_under_load_and_no_request_is_lost() {
    let [ann, bob] = ["ann", "bob"].map(|name| Token::new(name, "submit,read"));
    let file = TokenFile::new(&["# who may", "", &ann.line]);
    for mode in [SUPERVISED, INLINE] {
        file.write(&[&ann.line]);
        let service = start(&file, &[mode]);
        assert_refused(&bob.get(&service, "/v1/stats"), 401, "unauthorized");
        let stop = AtomicBool::new(false);
        let said = |word: &str, times: usize| {
            until(word, PATIENCE, || (service.stderr().matches(word).count() == times).then_some(()));
        };
        let answered: usize = std::thread::scope(|scope| {
            let done = Done(&stop);
            let callers: Vec<_> = (0..4)
                .map(|_| {
                    let (mut client, own): (Client, _) = (service.connect(), ann.header());
                    let stop = &stop;
                    scope.spawn(move || {
                        let mut count = 0;
                        while !stop.load(Ordering::Relaxed) {
                            let answer = client.request("POST", "/v1/jobs/echo", &[&own], "x");
                            assert_eq!((answer.status, answer.text()), (200, "x".into()), "{answer:?}");
                            count += 1;
                        }
                        count
                    })
                })
                .collect();
            for round in 1..=5 {
                file.write(&[&ann.line, &bob.line]);
                signal(service.pid, Signal::HUP);
                said("2 known; added: bob; removed: none; changed: none", round);
                assert_eq!(bob.get(&service, "/v1/stats").status, 200);
                file.write(&[&ann.line]);
                signal(service.pid, Signal::HUP);
                said("1 known; added: none; removed: bob; changed: none", round);
                assert_refused(&bob.get(&service, "/v1/stats"), 401, "unauthorized");
            }
            drop(done);
            callers.into_iter().map(|caller| caller.join().expect("every request is answered")).sum()
        });
        assert!(answered > 50, "there was load: {answered}");
        // One that does not parse, or that others may read, changes nothing.
        file.write(&[&ann.line, "bob nonsense"]);
        signal(service.pid, Signal::HUP);
        said("the tokens stay as they were: web.auth.token_file: ", 1);
        assert!(service.stderr().contains("line 2: "), "{}", service.stderr());
        file.write(&[&bob.line]);
        let open = std::os::unix::fs::PermissionsExt::from_mode(0o644);
        std::fs::set_permissions(&file.path, open).expect("our own file");
        signal(service.pid, Signal::HUP);
        said("the tokens stay as they were: web.auth.token_file: ", 2);
        std::fs::remove_file(&file.path).expect("our own file");
        signal(service.pid, Signal::HUP);
        said("the tokens stay as they were: web.auth.token_file: ", 3);
        assert_eq!(ann.get(&service, "/v1/stats").status, 200);
        // A successor has what was read last.
        if mode == SUPERVISED {
            file.write(&[&ann.line, &bob.line]);
            signal(service.pid, Signal::HUP);
            said("2 known; added: bob", 6);
            service::kill(service.child("web"));
            let at = service.address;
            until("a successor answers", PATIENCE, || {
                let mut client = Client::try_to(at).ok()?;
                client.send(request("GET", "/v1/stats", &[&bob.header()], ""));
                let answer = client.try_read(PATIENCE).ok()?;
                assert_eq!(answer.status, 200, "{answer:?}");
                Some(())
            });
        }
    }
}

#[test]
fn a_tokens_own_limits_hold() {
    let ann = Token::new("ann", "submit,read");
    let line = format!("{} max_inflight=2 rate_per_second=5", ann.line);
    let bob = Token::new("bob", "submit,read");
    let file = TokenFile::new(&[&line, &bob.line]);
    let service = start(&file, &[r#"runtime.platform.process_groups=[{"name":"execution","workers":8}]"#]);
    let waits = |token: &Token| {
        let mut client = service.connect();
        client.send(request("POST", "/v1/jobs/sleep", &[&token.header()], r#"{"ms":2000}"#));
        client
    };
    let mut held = [waits(&ann), waits(&ann)];
    std::thread::sleep(Duration::from_millis(300));
    let answer = ann.ask(&service, "POST", "/v1/jobs/echo", &[], "x");
    assert_refused(&answer, 429, "too_many_waiters");
    assert!(answer.header("retry-after").is_some(), "{answer:?}");
    assert_eq!(bob.ask(&service, "POST", "/v1/jobs/echo", &[], "x").status, 200);
    held.iter_mut().for_each(|client| assert_eq!(client.read().status, 200));
    let begun = Instant::now();
    let statuses: Vec<u16> = (0..40).map(|_| ann.get(&service, "/v1/stats").status).collect();
    let allowed = statuses.iter().filter(|status| **status == 200).count();
    let most = 6.0 + 5.0 * begun.elapsed().as_secs_f64();
    assert!(allowed >= 4 && allowed as f64 <= most, "{allowed} of {statuses:?}, at most {most}");
    assert!(statuses.iter().all(|status| [200, 429].contains(status)), "{statuses:?}");
    assert_eq!(bob.get(&service, "/v1/stats").status, 200);
}

#[test]
fn one_token_leaves_others_waiters_and_queue() {
    let [ann, bob] = ["ann", "bob"].map(|name| Token::new(name, "submit,read"));
    let file = TokenFile::new(&[&ann.line, &bob.line]);
    let one_worker = r#"runtime.platform.process_groups=[{"name":"execution","workers":1}]"#;
    let service = start(&file, &[one_worker, "web.max_inflight=16", "runtime.platform.queue.capacity=40"]);
    let wait = |token: &Token| {
        let mut client = service.connect();
        client.send(request("POST", "/v1/jobs/sleep", &[&token.header()], r#"{"ms":60000}"#));
        client
    };
    let refused = |clients: &mut [Client]| {
        let answers = clients.iter_mut().filter_map(|client| client.try_read(Duration::from_millis(20)).ok());
        answers.inspect(|answer| assert_refused(answer, 429, "too_many_waiters")).count()
    };
    // Alone it has all but a quarter; then there is room for another one, up to a quarter at least.
    let mut anns: Vec<Client> = (0..20).map(|_| wait(&ann)).collect();
    until("eight are refused", PATIENCE, || {
        let page = bob.get(&service, "/metrics").text();
        page.contains("http_rejected_total{reason=\"too_many_waiters\"} 8\n").then_some(())
    });
    assert_eq!(refused(&mut anns), 8);
    let mut bobs: Vec<Client> = (0..4).map(|_| wait(&bob)).collect();
    assert_eq!(refused(&mut bobs), 0);
    // The queue has its own shares: 40 places, of which 16 are taken.
    let fill = |token: &Token| {
        let submit = |_: &u16| {
            let headers = ["Prefer: respond-async"];
            token.ask(&service, "POST", "/v1/jobs/echo", &headers, "x").status == 202
        };
        (0..40).filter(submit).count()
    };
    assert_eq!(fill(&ann), 0, "it has 12, more than a quarter, and another one waits");
    assert_eq!(fill(&bob), 6, "up to a quarter");
}

#[test]
fn one_token_leaves_others_pages_and_batches() {
    let [ann, bob] = ["ann", "bob"].map(|name| Token::new(name, "submit,read"));
    let file = TokenFile::new(&[&ann.line, &bob.line]);
    let service = start(&file, &[]);
    // Pages: strangers ask for the one that needs no token, a holder for lists.
    let page = "GET / HTTP/1.1\r\nHost: localhost\r\n\r\n".repeat(20);
    let list = format!("GET /v1/jobs HTTP/1.1\r\nHost: localhost\r\n{}\r\n\r\n", ann.header()).repeat(20);
    let crowd: Vec<Client> = (0..600)
        .map(|number| {
            let mut client = service.connect();
            client.send(if number % 2 == 0 { &page } else { &list });
            client
        })
        .collect();
    for _ in 0..20 {
        assert_eq!(bob.get(&service, "/v1/jobs?limit=1").status, 200);
    }
    drop(crowd);
    // Batches whose answers nobody reads.
    let batch = format!("{}\n", "a".repeat(500_000)).repeat(28);
    let deaf: Vec<Client> = (0..6)
        .map(|_| {
            let mut client = service.connect();
            client.send(request("POST", "/v1/batch/echo", &[&ann.header()], &batch));
            client
        })
        .collect();
    std::thread::sleep(Duration::from_millis(300));
    let answer = bob.ask(&service, "POST", "/v1/batch/echo", &[], &batch);
    assert_eq!((answer.status, answer.body.len()), (200, batch.len()));
    drop(deaf);
}

/// A new life takes a place as a new job does.
#[test]
fn retries_go_round_nobodys_share() {
    let [ann, bob] = ["ann", "bob"].map(|name| Token::new(name, "submit,read"));
    let admin = Token::new("root", "admin");
    let file = TokenFile::new(&[&ann.line, &bob.line, &admin.line]);
    let service = start(&file, &["runtime.platform.queue.capacity=20"]);
    // What is retried stays in the queue.
    assert_eq!(admin.ask(&service, "POST", "/v1/handlers/echo/pause", &[], "").status, 200);
    let cancelled: Vec<String> = (0..30)
        .map(|_| {
            let id = ann.submit(&service, "/v1/jobs/echo?delay_ms=600000", &[], "x");
            assert_eq!(ann.ask(&service, "DELETE", &format!("/v1/jobs/{id}"), &[], "").status, 200);
            id
        })
        .collect();
    bob.submit(&service, "/v1/jobs/sleep", &[], r#"{"ms":60000}"#);
    let retry = |id: &String| ann.ask(&service, "POST", &format!("/v1/jobs/{id}/retry"), &[], "");
    let sleeper = ann.submit(&service, "/v1/jobs/sleep", &[], r#"{"ms":60000}"#);
    let statuses: Vec<u16> = cancelled.iter().map(|id| retry(id).status).collect();
    assert!(statuses.iter().all(|status| [202, 503].contains(status)), "{statuses:?}");
    let accepted = statuses.iter().filter(|status| **status == 202).count();
    assert_eq!(accepted, 4, "with the one that runs a quarter of 20");
    assert_refused(&retry(&cancelled[29]), 503, "queue_full");
    bob.submit(&service, "/v1/jobs/echo", &[], "x");
    assert_refused(&retry(&sleeper), 409, "not_retryable");
}

#[test]
fn figures_need_a_token_unless_they_are_open_and_health_asks_with_one() {
    let [read, submit] = ["read", "submit"].map(|scope| Token::new("ann", scope));
    let file = TokenFile::new(&[&read.line, &submit.line]);
    let service = start(&file, &[]);
    let health = |arguments: &[&str]| {
        let url = format!("http://{}", service.address);
        let arguments = [&["health", "--url", &*url], arguments].concat();
        run(&mut command(&cofferdam(), arguments), b"")
    };
    assert_eq!(health(&[]).status.code(), Some(1));
    let in_file = |text: &str| file.folder.file("token", text.to_owned() + "\n").display().to_string();
    assert_eq!(health(&["--token-file", &in_file(&read.text)]).status.code(), Some(0));
    let output = health(&["--token-file", &in_file(&submit.text)]);
    assert_eq!(output.status.code(), Some(1));
    let said = String::from_utf8_lossy(&output.stderr).into_owned();
    assert!(said.contains("the token lacks the scope read") && !said.contains(&submit.text), "{said}");
    drop(service);
    let service = start(&file, &["web.auth.open_metrics=true"]);
    for page in ["/metrics", "/readyz"] {
        assert_eq!(service.get(page).status, 200);
    }
    assert_refused(&service.get("/v1/stats"), 401, "unauthorized");
}

#[test]
fn the_page_without_a_token_shows_nothing_and_runs_its_own_script_alone() {
    let token = Token::new("ann", "read");
    let file = TokenFile::new(&[&token.line]);
    let service = start(&file, &[]);
    let page = service.get("/");
    assert_eq!(page.status, 200);
    let (text, policy) = (page.text(), page.header("content-security-policy").unwrap_or_default().to_owned());
    // Of the handlers: `echo` stands there as an example, whatever there is.
    for secret in ["sleep", &service.address.to_string(), "supervised"] {
        assert!(!text.contains(secret), "{secret} is for who has a token");
    }
    assert_eq!(token.get(&service, "/").text(), text, "the same for everybody");
    assert!(
        policy.starts_with("default-src 'none'; script-src 'sha256-") && !policy.contains("unsafe"),
        "{policy}"
    );
}

#[test]
fn a_token_is_in_no_output_and_no_process_table() {
    let ann = Token::new("ann", "submit,read,admin");
    let stranger = Token::new("eve", "admin");
    let file = TokenFile::new(&[&ann.line]);
    let sets = file.sets();
    let arguments = ["serve", "--set", "web.bind=127.0.0.1:0", "--set", "observability.log=json"];
    let sets = ["--set", &*sets[0], "--set", &*sets[1]];
    let mut serve = command(&cofferdam(), arguments.into_iter().chain(sets));
    serve.env("RUST_LOG", "trace");
    let service = Service::from(serve.spawn().expect("it runs"));
    let mut seen = Vec::new();
    for token in [&ann, &stranger] {
        for (method, target) in [
            ("POST", "/v1/jobs/echo".to_owned()),
            ("POST", "/v1/batch/echo".into()),
            ("GET", "/v1/jobs".into()),
            ("GET", "/metrics".into()),
            ("GET", "/v1/stats".into()),
            ("GET", "/".into()),
            ("GET", format!("/nothing?token={}", token.text)),
            ("TRACE", format!("/{}", token.text)),
        ] {
            let answer = token.ask(&service, method, &target, &[], "1\n");
            seen.extend(format!("{answer:?}").into_bytes());
        }
        let mut broken = service.connect();
        broken.send(format!("GET / HTTP/1.1\r\nHost: localhost\r\n{} \u{1}\r\n\r\n", token.header()));
        seen.extend(format!("{:?}", broken.read()).into_bytes());
    }
    signal(service.pid, Signal::HUP);
    until("it is read again", PATIENCE, || service.stderr().contains("1 known").then_some(()));
    for pid in [service.pid, service.child("web"), service.child("executor")] {
        for page in ["cmdline", "environ", "status"] {
            seen.extend(std::fs::read(format!("/proc/{pid}/{page}")).unwrap_or_default());
        }
    }
    let ended = service.stop();
    assert_eq!(ended.status.code(), Some(0), "{}", ended.stderr);
    seen.extend(ended.stderr.into_bytes());
    let seen = String::from_utf8_lossy(&seen);
    for token in [&ann, &stranger] {
        let hash = token.line.split(' ').nth(1).expect("a hash");
        for needle in [&*token.text, &token.text[4..], hash] {
            assert!(!seen.contains(needle), "a token, or its hash, is in what was written");
        }
    }
    assert!(seen.contains("\"client\":\"127.0.0.1\""), "who came without a valid one is said");
}
