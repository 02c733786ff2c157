//! Same input, same output bytes, on Redis as in memory.
//!
//! It guards the promise that one input gives one output for the Redis profile: the challenge gives the oracle's bytes with any number
//! of executors, with executors killed at any instant, and with a server that cuts connections or is restarted. The
//! instants follow a seed, which a failure shows; `COFFERDAM_SEED=N` replays them.

#[path = "support/deployment.rs"]
mod deployment;
#[path = "../tools/fund-load/generator.rs"]
mod generator;
#[path = "support/oracle.rs"]
mod oracle;
#[path = "support/own_redis.rs"]
mod own_redis;
#[path = "support/parity.rs"]
mod parity;
#[path = "support/program.rs"]
mod program;
#[path = "support/redis.rs"]
mod redis;
#[path = "support/service.rs"]
mod service;

use std::time::{Duration, Instant};

use deployment::{Deployment, can_serve};
use oracle::Rules;
use own_redis::{DURABLE, Server};
use parity::{RUN, UNDYING, assert_same, challenge, seed, turn};
use program::{command, example, run, shown, wait};
use service::{Service, children, kill, request, until, with_harm};

const HANDLERS: [(&str, Rules); 2] = [("fund_load", Rules::Baseline), ("fund_load_exp", Rules::Experiment)];
/// Where nobody can tell that an executor is lost, its lease runs out this soon.
const SHORT_LEASE: &str = "runtime.platform.queue.visibility_timeout_ms=1000";
/// Numbers that follow from a seed.
struct Random(u64);

impl Random {
    fn below(&mut self, bound: u64) -> u64 {
        self.0 = self.0.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (self.0 >> 33) % bound
    }
}

fn executors(count: usize) -> String {
    format!(r#"runtime.platform.process_groups=[{{"name":"execution","processes":{count}}}]"#)
}

/// The words of a batch of the example.
fn batch_words(handler: &str, sets: Vec<String>) -> Vec<String> {
    let fixed = ["batch", "--progress", "never", "--handler", handler];
    fixed.into_iter().map(str::to_owned).chain(sets).collect()
}

fn batch(handler: &str, input: &[u8], sets: Vec<String>) -> Vec<u8> {
    let output = run(&mut command(&example("fund-load"), batch_words(handler, sets)), input);
    assert!(output.status.success(), "{handler}: {}", shown(&output));
    output.stdout
}

fn batch_over_http(service: &Service, handler: &str, input: &[u8]) -> Vec<u8> {
    let mut client = service.connect();
    client.send(request("POST", &format!("/v1/batch/{handler}"), &[], input));
    let answer = client.try_read(RUN).unwrap_or_else(|why| panic!("no answer: {why:?}"));
    assert_eq!(answer.status, 200, "{answer:?}");
    answer.body
}

/// Inputs and what must come of them: what was published, and a longer one that nobody has seen.
fn cases(seed: u64, lines: usize) -> Vec<(&'static str, Vec<u8>, Vec<u8>)> {
    let input = generator::generate(seed, lines);
    let generated =
        HANDLERS.map(|(handler, rules)| (handler, input.clone(), oracle::decide(&input, rules))).into_iter();
    let published = challenge().map(|(input, output)| ("fund_load", input, output));
    // The experiment has no published output; the oracle gives it for the same input.
    let experiment = published
        .as_ref()
        .map(|(_, input, _)| ("fund_load_exp", input.clone(), oracle::decide(input, Rules::Experiment)));
    generated.chain(published).chain(experiment).collect()
}

#[test]
fn a_batch_on_redis_gives_the_same_bytes_as_in_memory_with_one_two_and_four_executors() {
    if !can_serve() {
        return;
    }
    let _turn = turn();
    for (handler, input, expected) in cases(seed(), 2_000) {
        assert_same(&batch(handler, &input, Vec::new()), &expected, &format!("{handler} in memory"));
        for count in [1, 2, 4] {
            let deployment = Deployment::new(&format!("batch{count}"));
            let output = batch(handler, &input, deployment.words(&[&executors(count)]));
            assert_same(&output, &expected, &format!("{handler} on redis, {count} executors"));
            let left = deployment.keys(&mut deployment.raw());
            assert!(left.is_empty(), "a batch leaves nothing: {left:?}");
        }
    }
}

#[test]
fn a_batch_over_http_gives_the_same_bytes_on_redis_as_in_memory() {
    if !can_serve() {
        return;
    }
    let _turn = turn();
    let cases = cases(seed(), 2_000);
    for (handler, input, expected) in &cases {
        let memory = Service::of(&example("fund-load"), &[&executors(2)]);
        assert_same(&batch_over_http(&memory, handler, input), expected, &format!("{handler} in memory"));
        for count in [1, 2, 4] {
            let deployment = Deployment::new(&format!("http-{handler}-{count}-{}", input.len()));
            let service = deployment.serve(&example("fund-load"), &[&executors(count)]);
            let output = batch_over_http(&service, handler, input);
            assert_same(&output, expected, &format!("{handler} on redis, {count} executors"));
            let ended = service.stop();
            assert_eq!(ended.status.code(), Some(0), "{}", ended.stderr);
        }
    }
}

/// Kills one executor of `parent`; the next one 20 to 250 ms later.
fn killer(parent: u32, seed: u64) -> impl FnMut() -> (bool, Duration) + Send {
    let mut random = Random(seed);
    move || {
        let executors = children(parent, "executor");
        if !executors.is_empty() {
            let which = random.below(executors.len() as u64);
            kill(executors[usize::try_from(which).expect("an index")]);
        }
        (!executors.is_empty(), Duration::from_millis(20 + random.below(231)))
    }
}

#[test]
fn d1_a_batch_on_redis_whose_executors_are_killed_gives_the_oracles_bytes() {
    if !can_serve() {
        return;
    }
    let (_turn, seed) = (turn(), seed());
    let input = generator::generate(seed, 10_000);
    for (handler, rules) in HANDLERS {
        let deployment = Deployment::new(&format!("d1-{handler}"));
        let file = deployment.folder.file("input", &input);
        let mut words = batch_words(handler, deployment.words(&[&executors(2), UNDYING, SHORT_LEASE]));
        words.extend(["--input".into(), file.display().to_string()]);
        let child = command(&example("fund-load"), words).spawn().expect("the example can be started");
        // `wait` kills it at its own deadline.
        let (output, kills) = with_harm(killer(child.id(), seed), || wait(child));
        println!("{handler}: {kills} kills");
        assert!(output.status.success(), "seed {seed}, {kills} kills: {}", shown(&output));
        assert_same(&output.stdout, &oracle::decide(&input, rules), &format!("seed {seed}, {handler}"));
        assert!(kills > 1, "the batch ended before the second kill: give it more lines");
    }
}

#[test]
fn d1_a_batch_over_http_on_redis_whose_executors_are_killed_gives_the_oracles_bytes() {
    if !can_serve() {
        return;
    }
    let (_turn, seed) = (turn(), seed());
    let input = generator::generate(seed, 10_000);
    let deployment = Deployment::new("d1-http");
    let service = deployment.serve(&example("fund-load"), &[&executors(2), UNDYING, SHORT_LEASE]);
    for (handler, rules) in HANDLERS {
        let (output, kills) =
            with_harm(killer(service.pid, seed), || batch_over_http(&service, handler, &input));
        println!("{handler}: {kills} kills");
        assert_same(
            &output,
            &oracle::decide(&input, rules),
            &format!("seed {seed}, {handler}, {kills} kills"),
        );
        assert!(kills > 1, "the batch ended before the second kill: give it more lines");
    }
    // Once the fault is gone, everything is as before.
    until("two executors are there", Duration::from_secs(5), || {
        (service.children("executor").len() == 2).then_some(())
    });
    until("it is ready", Duration::from_secs(5), || (service.get("/readyz").status == 200).then_some(()));
    let stats = service.get("/v1/stats").json();
    let totals = &stats["totals"];
    assert_eq!((&totals["queued"], &totals["running"], &stats["waiters"]), (&0.into(), &0.into(), &0.into()));
    let ended = service.stop();
    assert_eq!(ended.status.code(), Some(0), "{}", ended.stderr);
}

#[test]
fn d2_a_batch_on_redis_whose_connections_are_cut_gives_the_oracles_bytes() {
    if !can_serve() {
        return;
    }
    let (_turn, seed) = (turn(), seed());
    let input = generator::generate(seed, 10_000);
    let deployment = Deployment::new("d2-cut");
    let mut raw = deployment.raw();
    let mut cut = move || {
        // All but this one.
        let kill = ::redis::cmd("CLIENT").arg("KILL").arg("TYPE").arg("normal").clone();
        kill.exec(&mut raw).expect("the server is there");
        (true, Duration::from_millis(50))
    };
    for (handler, rules) in HANDLERS {
        let words = deployment.words(&[&executors(2), UNDYING, SHORT_LEASE]);
        let (output, cuts) = with_harm(&mut cut, || batch(handler, &input, words));
        println!("{handler}: cut {cuts} times");
        assert_same(&output, &oracle::decide(&input, rules), &format!("seed {seed}, {handler}, {cuts} cuts"));
        assert!(cuts > 5, "the batch ended before the connections were cut: give it more lines");
    }
}

#[test]
fn d2_a_batch_on_redis_whose_server_is_killed_again_and_again_gives_the_oracles_bytes() {
    if !can_serve() {
        return;
    }
    let (_turn, seed) = (turn(), seed());
    let input = generator::generate(seed, 6_000);
    let mut server = Server::start(&DURABLE);
    let url = format!("unix://{}", server.socket().display());
    let deployment = Deployment::on(&url, "d2-restart");
    let words = deployment.words(&[&executors(2), UNDYING, SHORT_LEASE]);
    // It is up for longer than it is away, also where that takes long: the more it holds, the longer it loads.
    let restart = || {
        let begun = Instant::now();
        server.kill();
        server.up();
        (true, (begun.elapsed() * 2).max(Duration::from_millis(300)))
    };
    let (output, restarts) = with_harm(restart, || batch("fund_load", &input, words));
    println!("{restarts} restarts");
    assert_same(
        &output,
        &oracle::decide(&input, Rules::Baseline),
        &format!("seed {seed}, {restarts} restarts"),
    );
    assert!(restarts > 1, "the batch ended before the server was killed twice: give it more lines");
}
