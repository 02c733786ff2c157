//! Least privilege in Redis: the user of docs/operations.md is enough, and less than that has a name.
//!
//! It guards the promise of SECURITY.md that a web process needs no more than this line. Commands that a script runs are
//! checked against its caller's rights, so a job's whole life must pass through it, on two hosts.

#[path = "support/own_redis.rs"]
mod own_redis;
#[path = "support/program.rs"]
mod program;
#[path = "support/service.rs"]
mod service;

use own_redis::Server;
use program::{Folder, SECRET, cofferdam, command, example, on_redis, run, shown};
use service::{PATIENCE, Service, kill, until};

/// The line of a user, as the guide prints it.
fn user(name: &str) -> String {
    let guide = include_str!("../docs/operations.md");
    let line = guide.lines().map(str::trim).find(|line| line.starts_with(&format!("user {name} ")));
    line.unwrap_or_else(|| panic!("docs/operations.md has no user {name}")).replace("PASSWORD", "right")
}

struct Site {
    server: Server,
    folder: Folder,
}

impl Site {
    fn new(users: &[String]) -> Site {
        let server = Server::absent(&[]);
        let all = format!("user default on nopass ~* &* +@all\n{}\n", users.join("\n"));
        let file = server.file("users.acl", &all);
        let mut server = server.with(&["--aclfile", &file.display().to_string()]);
        server.up();
        Site { server, folder: Folder::new() }
    }

    fn words(&self, first: &[&str], name: &str) -> Vec<String> {
        let password = self.folder.private_file("password", "right\n");
        let own = on_redis(&self.server.url(), &self.folder, SECRET);
        let others = [
            format!("runtime.platform.redis.username={name}"),
            format!("runtime.platform.redis.password_file={}", password.display()),
            "runtime.platform.queue.visibility_timeout_ms=500".into(),
            "runtime.platform.reply.result_ttl_seconds=5".into(),
            "runtime.platform.reply.awaited_ttl_seconds=5".into(),
            "runtime.platform.reply.failed_ttl_seconds=5".into(),
            r#"handlers.echo.ordering={"key":"/k"}"#.into(),
        ];
        let sets = own.into_iter().chain(others).flat_map(|set| ["--set".to_owned(), set]);
        first.iter().map(ToString::to_string).chain(sets).collect()
    }
}

#[test]
fn the_user_of_the_guide_is_enough() {
    let site = Site::new(&[user("cofferdam")]);
    let words = site.words(&["web", "--set", "web.bind=127.0.0.1:0"], "cofferdam");
    let web = Service::from(command(&example("embedder"), words).spawn().expect("it can be started"));
    let executor = || {
        let words = site.words(&["executor"], "cofferdam");
        command(&example("embedder"), words).spawn().expect("it can be started")
    };
    let mut first = executor();
    until("it is ready", PATIENCE, || (web.get("/readyz").status == 200).then_some(()));

    // Lanes with and without state, keys, waits, steering, a batch, records, figures.
    assert_eq!([web.post("/v1/jobs/count", "1").text(), web.post("/v1/jobs/count", "1").text()], ["1", "2"]);
    for _ in 0..2 {
        assert_eq!(web.request("POST", "/v1/jobs/echo", &["Idempotency-Key: k"], r#"{"k":1}"#).status, 200);
    }
    assert_eq!(web.post("/v1/batch/wall", "1\n2\n3\n").text().lines().count(), 3);
    assert_eq!(web.request("POST", "/v1/handlers/sleep/pause", &[], "").status, 200);
    let id = web.submit("/v1/jobs/sleep", &[], r#"{"ms":1}"#);
    assert_eq!(web.request("DELETE", &format!("/v1/jobs/{id}"), &[], "").json()["status"], "cancelled");
    assert_eq!(web.request("POST", &format!("/v1/jobs/{id}/retry"), &[], "").status, 202);
    assert_eq!(web.request("POST", "/v1/handlers/sleep/resume", &[], "").status, 200);
    assert_eq!(web.get(&format!("/v1/jobs/{id}?wait=20")).json()["status"], "succeeded");
    let next = web.get("/v1/jobs?limit=5").json()["next"].as_str().expect("there are more").to_owned();
    assert_eq!(web.get(&format!("/v1/jobs?limit=5&after={next}")).status, 200);
    assert_eq!(web.get(&format!("/v1/jobs/{id}/payload")).code(), "not_found");
    assert_eq!(web.get("/metrics").status, 200);
    assert_eq!(web.get("/v1/lanes/echo").status, 200);
    // A running job is cancelled; a lost executor's are delivered again; a job that nobody signed is put aside.
    let long = web.submit("/v1/jobs/sleep", &[], r#"{"ms":60000}"#);
    web.record_when(&long, "running");
    assert_eq!(web.request("DELETE", &format!("/v1/jobs/{long}"), &[], "").json()["status"], "cancelled");
    let lost = web.submit("/v1/jobs/sleep", &[], r#"{"ms":2000}"#);
    web.record_when(&lost, "running");
    kill(first.id());
    let _ = first.wait();
    let mut second = executor();
    let record = web.record_when(&lost, "succeeded");
    assert_eq!(record["attempts"].as_array().map(Vec::len), Some(2), "{record}");
    let mut raw = site.server.connect();
    assert_eq!(web.request("POST", "/v1/handlers/sleep/pause", &[], "").status, 200);
    let forged = web.submit("/v1/jobs/sleep", &[], r#"{"ms":1}"#);
    let key = format!("{{cofferdam}}:job:{forged}");
    redis::cmd("HSET").arg(key).arg("env").arg("forged").exec(&mut raw).expect("the server is there");
    assert_eq!(web.request("POST", "/v1/handlers/sleep/resume", &[], "").status, 200);
    until("it is put aside", PATIENCE, || {
        let key = format!("{{cofferdam}}:quarantine:{forged}");
        redis::cmd("EXISTS").arg(key).query::<bool>(&mut raw).expect("the server is there").then_some(())
    });
    until("records expire", PATIENCE, || {
        (web.get("/v1/stats").json()["totals"]["records"] == 0).then_some(())
    });
    service::signal(second.id(), rustix::process::Signal::TERM);
    until("it ends", PATIENCE, || second.try_wait().expect("our own child"));
    assert_eq!(web.stop().status.code(), Some(0));
    let denied: Vec<Vec<redis::Value>> =
        redis::cmd("ACL").arg("LOG").query(&mut raw).expect("the server is there");
    assert!(denied.is_empty(), "{denied:?}");
}

#[test]
fn a_user_without_a_right_is_told_so() {
    let none = "user poor on >right ~{cofferdam}:* resetchannels -@all".to_owned();
    let site = Site::new(&[none]);
    let output = run(&mut command(&cofferdam(), site.words(&["check"], "poor")), b"");
    assert_eq!(output.status.code(), Some(2), "{}", shown(&output));
    let said = String::from_utf8_lossy(&output.stderr).into_owned();
    assert!(said.contains("this server cannot be used") && said.to_lowercase().contains("info"), "{said}");
}
