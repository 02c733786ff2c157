//! What goes wrong with a Redis server, and with what stands in it at the adapters.

use std::sync::Arc;
use std::time::Duration;

use cofferdam::HandlerOptions;
use cofferdam::bell::Bell;
use cofferdam::clock::{Clock, Timestamp};
use cofferdam::config::secret::Secret;
use cofferdam::handler::HandlerSpec;
use cofferdam::job::{Change, JobId, JobStatus, Outcome, Payload, Progress, Trace, Version};
use cofferdam::ports::{
    Commit, Consumer, Filter, KeyValue, Lease, NewJob, Producer, Requests, Rules, StateAt, Step, Submitted,
    Viewer,
};
use cofferdam::redis_backend::envelope::Signer;
use cofferdam::redis_backend::{RedisBroker, RedisConsumer, Settings};
use jobs::plain;

#[path = "support/jobs.rs"]
mod jobs;
#[path = "support/redis.rs"]
mod server;

/// The server is one for all: what a test does to all of it must not happen beside another.
static TURN: std::sync::Mutex<()> = std::sync::Mutex::new(());

struct Deployment {
    broker: RedisBroker,
    raw: redis::Connection,
    prefix: String,
    last: u8,
}

impl Deployment {
    fn new(row: &str) -> Deployment {
        let seconds = Duration::from_secs;
        let rules = Rules {
            capacity: 100,
            visibility: seconds(30),
            max_deliveries: 3,
            retry: cofferdam::handler::Retry { base_ms: 0, max_ms: 0 },
            result_ttl: seconds(60),
            awaited_ttl: seconds(60),
            context_ttl: seconds(60),
            lane_state_max: 1 << 20,
            max_payload: 1 << 20,
            grace: seconds(5),
            ..Rules::default()
        };
        let spec = |name: &str, options| HandlerSpec::new(name, 0, options);
        let settings = Settings {
            redis: server::config(),
            prefix: format!("{{{row}}}:"),
            rules,
            handlers: vec![spec("free", HandlerOptions::default()), spec("serial", HandlerOptions::serial())],
            groups: vec![Arc::from("execution")],
            clock: Clock::manual(Timestamp(1_700_000_000_000_000)),
            keep: None,
            workers: vec![1],
        };
        let secret =
            Secret::new(std::array::from_fn(|at| u8::try_from(at).expect("a byte"))).expect("a secret");
        let broker = RedisBroker::new(settings, &[&secret]).expect("a sound address");
        let raw = redis::Client::open(server::url()).and_then(|client| client.get_connection());
        Deployment { broker, raw: raw.expect("the server is there"), prefix: format!("{{{row}}}:"), last: 0 }
    }

    fn submit(&mut self, handler: &str) -> JobId {
        self.last += 1;
        let id = JobId([self.last; 16]);
        let payload = Payload::json(vec![b'0' + self.last % 10]);
        let trace = Trace { id: id.0, span: [1; 8], ..Trace::default() };
        let job = NewJob { payload, trace, ..plain(id, handler) };
        let answers = self.broker.submit(vec![job]).expect("the server is there");
        assert_eq!(answers, [Submitted::New]);
        id
    }

    fn executor(&self) -> Executor {
        Executor { broker: self.broker.clone(), consumer: self.broker.consumer(0, Bell::silent()) }
    }

    fn status(&self, id: JobId) -> Option<JobStatus> {
        let record = self.broker.record(&Viewer::anonymous(), id).expect("the server is there");
        record.map(|record| record.status)
    }

    /// As a stranger who can write to the server.
    fn set(&mut self, key: &str, field: impl redis::ToRedisArgs, value: impl redis::ToRedisArgs) {
        let key = format!("{}{key}", self.prefix);
        redis::cmd("HSET").arg(key).arg(field).arg(value).exec(&mut self.raw).expect("the server is there");
    }

    fn bytes(&mut self, key: &str, field: &str) -> Vec<u8> {
        let key = format!("{}{key}", self.prefix);
        redis::cmd("HGET").arg(key).arg(field).query(&mut self.raw).expect("it is there")
    }
}

struct Executor {
    broker: RedisBroker,
    consumer: RedisConsumer,
}

impl Executor {
    /// What it says, and what comes of it.
    fn step(&mut self, commits: Vec<Commit>, room: usize) -> Step {
        let said = Requests { commits, ..Requests::default() };
        let before = self.consumer.step(said, room).expect("it is there");
        assert!(before.is_empty(), "{before:?}");
        self.broker.settle().expect("the server is there");
        self.consumer.step(Requests::default(), room).expect("it is there")
    }
}

/// The next lease, also where one that was forged came before it.
fn lease(executor: &mut Executor) -> Option<Lease> {
    let lease = (0..3).find_map(|_| executor.step(Vec::new(), 1).leases.pop());
    assert!(executor.step(Vec::new(), 0).is_empty());
    lease
}

/// Ready is who has executors: a process knows its own at once, not only once it has told the others.
#[test]
fn an_executor_is_known_to_its_own_process_before_anything_is_said_of_it() {
    let _turn = TURN.lock();
    let deployment = Deployment::new("own");
    let figures = || {
        let stats = deployment.broker.stats().expect("the server is there");
        let roles: Vec<&str> = stats.processes.iter().map(|process| process.role).collect();
        (stats.consumers, roles.join(" "))
    };
    assert_eq!(figures(), (vec![0], "web".into()));
    let executor = deployment.executor();
    assert_eq!(figures(), (vec![1], "web executor".into()));
    deployment.broker.settle().expect("the server is there");
    assert_eq!(figures(), (vec![1], "web executor".into()), "each once");
    drop(executor);
    assert_eq!(figures(), (vec![0], "web".into()));
}

/// True if it holds.
fn finish(executor: &mut Executor, lease: &Lease, result: &str) -> bool {
    let job = &lease.jobs[0];
    let outcome = Outcome::Succeeded(Payload::json(result.as_bytes()), cofferdam::job::Effects::default());
    let builds_on = Version::default();
    let commit = Commit { lease: lease.id, job: job.spec.id, delivery: job.delivery, builds_on, outcome };
    executor.step(vec![commit], 0).fenced.is_empty()
}

#[test]
fn r1_connections_that_the_server_cuts_are_replaced_and_the_call_is_repeated() {
    let _turn = TURN.lock();
    let mut deployment = Deployment::new("r1");
    let mut executor = deployment.executor();
    for _ in 0..20 {
        let id = deployment.submit("free");
        let cut = redis::cmd("CLIENT").arg("KILL").arg("TYPE").arg("normal").clone();
        cut.exec(&mut deployment.raw).expect("the server is there");
        let lease = lease(&mut executor).expect("the job is there");
        cut.exec(&mut deployment.raw).expect("the server is there");
        assert!(finish(&mut executor, &lease, "1"));
        assert_eq!((lease.jobs[0].spec.id, deployment.status(id)), (id, Some(JobStatus::Succeeded)));
    }
    assert_eq!(deployment.broker.stats().expect("the server is there").redelivered, 0, "each effect once");
}

#[test]
fn r7_a_server_that_was_flushed_knows_no_old_job_and_serves_new_ones() {
    let _turn = TURN.lock();
    let mut deployment = Deployment::new("r7");
    let mut executor = deployment.executor();
    let old = [deployment.submit("free"), deployment.submit("serial")];
    let held = lease(&mut executor).expect("a job");
    redis::cmd("FLUSHALL").exec(&mut deployment.raw).expect("the server is there");
    assert!(old.iter().all(|id| deployment.status(*id).is_none()));
    assert!(!finish(&mut executor, &held, "1"));
    let new = deployment.submit("serial");
    let lease = lease(&mut executor).expect("the new job");
    assert_eq!(lease.jobs[0].spec.id, new);
    assert!(finish(&mut executor, &lease, "1"));
}

#[test]
fn r8_a_job_that_nobody_of_the_deployment_signed_is_never_run_and_holds_up_nobody() {
    let _turn = TURN.lock();
    let mut deployment = Deployment::new("r8");
    let mut executor = deployment.executor();
    let [altered, replaced, swapped, good] = [(); 4].map(|()| deployment.submit("serial"));
    // One bit of the time of submission, behind owner, handler, key, trace and span; another payload; the envelope of
    // another job.
    let mut envelope = deployment.bytes(&format!("job:{altered}"), "env");
    envelope[40] ^= 1;
    deployment.set(&format!("job:{altered}"), "env", envelope);
    deployment.set(&format!("job:{replaced}"), "pl", "{\"paid\":true}");
    let of_another = deployment.bytes(&format!("job:{good}"), "env");
    deployment.set(&format!("job:{swapped}"), "env", of_another);
    let leases: Vec<Lease> = (0..5).filter_map(|_| lease(&mut executor)).collect();
    assert_eq!(leases.len(), 1);
    assert_eq!(leases[0].jobs[0].spec.id, good, "what is signed is run, in its order");
    assert_eq!(deployment.broker.stats().expect("the server is there").forged, [3, 0, 0, 0]);
    // Their records say what became of them, under a signature of ours.
    assert!([altered, replaced, swapped].iter().all(|id| deployment.status(*id) == Some(JobStatus::Dead)));

    // A forged result is no result, a forged state no state.
    assert!(finish(&mut executor, &leases[0], "1"));
    deployment.set(&format!("job:{good}"), "r", "{\"paid\":true}");
    assert!(deployment.status(good).is_none());
    let change = |value: &str| Change { key: "k".into(), value: Some(Arc::from(value.as_bytes())) };
    deployment.broker.apply("m", &[change("mine")], None).expect("the server is there");
    deployment.set("m:m", "k", "theirs");
    assert_eq!(deployment.broker.load("m", None), Ok(cofferdam::job::Entries::new()));
}

/// As a stranger: a hash as it stands.
fn map(deployment: &mut Deployment, key: &str) -> Vec<(Vec<u8>, Vec<u8>)> {
    let key = format!("{}{key}", deployment.prefix);
    redis::cmd("HGETALL").arg(key).query(&mut deployment.raw).expect("the server is there")
}

fn put(deployment: &mut Deployment, key: &str, entries: &[(Vec<u8>, Vec<u8>)]) {
    let key = format!("{}{key}", deployment.prefix);
    redis::cmd("DEL").arg(&key).exec(&mut deployment.raw).expect("the server is there");
    for (name, value) in entries {
        redis::cmd("HSET")
            .arg(&key)
            .arg(name)
            .arg(value)
            .exec(&mut deployment.raw)
            .expect("the server is there");
    }
}

/// Sets these keys of the serial lane's state.
fn commit_state(deployment: &mut Deployment, pairs: &[(&str, &str)]) {
    let id = deployment.submit("serial");
    let mut executor = deployment.executor();
    let lease = lease(&mut executor).expect("the lane is free");
    let builds_on = match &lease.state {
        StateAt::Whole(version, _) | StateAt::Known(version) => *version,
        StateAt::Stateless => panic!("it has a state"),
    };
    let change =
        |(key, value): &(&str, &str)| Change { key: (*key).into(), value: Some(Arc::from(value.as_bytes())) };
    let state = pairs.iter().map(change).collect();
    let effects = cofferdam::job::Effects { state, ..Default::default() };
    let outcome = Outcome::Succeeded(Payload::json(*b"1"), effects);
    let delivery = lease.jobs[0].delivery;
    let commit = Commit { lease: lease.id, job: id, delivery, builds_on, outcome };
    assert!(executor.step(vec![commit], 0).fenced.is_empty());
    assert_eq!(deployment.status(id), Some(JobStatus::Succeeded));
}

#[test]
fn s1_a_state_that_is_not_as_it_was_signed_is_never_built_on() {
    let _turn = TURN.lock();
    let mut deployment = Deployment::new("s1");
    let lane = cofferdam::job::state_map("serial", None);
    let (state, books) = (format!("m:{lane}"), format!("lane:{}", lane.trim_start_matches("state:")));
    commit_state(&mut deployment, &[("a", "1"), ("b", "2")]);
    let (older, older_books) = (map(&mut deployment, &state), map(&mut deployment, &books));
    commit_state(&mut deployment, &[("a", "3"), ("c", "4")]);
    let good = map(&mut deployment, &state);
    let without =
        |key: &str| good.iter().filter(|(name, _)| name != key.as_bytes()).cloned().collect::<Vec<_>>();
    let with = |key: &str, value: &str| {
        let mut entries = without(key);
        entries.push((key.into(), value.into()));
        entries
    };
    let mut expected = 0;
    for forged in [with("a", "1"), with("a", "2"), without("b"), with("d", "5"), Vec::new()] {
        put(&mut deployment, &state, &forged);
        let waits = deployment.submit("serial");
        let other = deployment.submit("free");
        let mut executor = deployment.executor();
        let held = lease(&mut executor).expect("others go on");
        assert_eq!(held.jobs[0].spec.id, other, "{forged:?}");
        assert!(finish(&mut executor, &held, "1"));
        assert!(lease(&mut executor).is_none(), "the lane is parked: {forged:?}");
        expected += 1;
        let stats = deployment.broker.stats().expect("the server is there");
        let parked: usize = stats.handlers.iter().map(|handler| handler.parked).sum();
        assert_eq!((stats.forged, parked), ([0, expected, 0, 0], 1));
        assert_eq!(deployment.status(waits), Some(JobStatus::Queued));
        // Once the state is what it was, and somebody says so, the lane goes on.
        put(&mut deployment, &state, &good);
        assert_eq!(deployment.broker.pause("serial", false), Ok(true));
        let held = lease(&mut executor).expect("the lane goes on");
        let StateAt::Whole(builds_on, entries) = &held.state else { panic!("{:?}", held.state) };
        assert_eq!((held.jobs[0].spec.id, entries.len()), (waits, 3));
        let outcome = Outcome::Succeeded(Payload::json(*b"1"), Default::default());
        let delivery = held.jobs[0].delivery;
        let commit = Commit { lease: held.id, job: waits, delivery, builds_on: *builds_on, outcome };
        assert!(executor.step(vec![commit], 0).fenced.is_empty());
        assert_eq!(deployment.broker.stats().expect("the server is there").handlers[1].parked, 0);
    }
    // A whole older state under its own signature is what a writer can still bring back.
    put(&mut deployment, &state, &older);
    put(&mut deployment, &books, &older_books);
    commit_state(&mut deployment, &[("a", "9")]);
}

#[test]
fn s2_whose_a_job_is_stands_in_its_envelope() {
    let _turn = TURN.lock();
    let mut deployment = Deployment::new("s2");
    let viewer = |name: &str| Viewer { name: name.into(), ..Viewer::default() };
    let (ann, bob) = (viewer("ann"), viewer("bob"));
    let job = JobId([7; 16]);
    let new = NewJob { owner: ann.name.clone(), ..plain(job, "free") };
    assert_eq!(deployment.broker.submit(vec![new]).expect("the server is there"), [Submitted::New]);
    // The stranger gives it to another caller.
    let key = format!("{}job:{job}", deployment.prefix);
    redis::cmd("HSET").arg(&key).arg("ow").arg("bob").exec(&mut deployment.raw).unwrap();
    let broker = &deployment.broker;
    let filter = Filter { limit: 10, ..Filter::default() };
    assert_eq!(broker.record(&bob, job), Ok(None));
    assert_eq!(broker.payload(&bob, job), Ok(None));
    assert_eq!(broker.list(&bob, &filter).expect("the server is there").records, []);
    assert_eq!(broker.cancel(&bob, job), Ok(None));
    assert_eq!(broker.retry(&bob, job), Ok(None));
    assert_eq!(deployment.status(job), Some(JobStatus::Queued));
}

#[test]
fn s2_an_idempotency_key_that_names_anothers_job_is_refused_and_counted() {
    let _turn = TURN.lock();
    let mut deployment = Deployment::new("s2");
    let victim = deployment.submit("free");
    let mut executor = deployment.executor();
    let held = lease(&mut executor).expect("a job");
    assert!(finish(&mut executor, &held, "\"a secret of another caller\""));
    let with_key = |id: u8, fingerprint: u8| {
        let key = cofferdam::ports::Idempotency { key: "k".into(), fingerprint: [fingerprint; 32] };
        NewJob { idempotency: Some(key), ..plain(JobId([id; 16]), "free") }
    };
    let answer = |deployment: &Deployment, job| {
        deployment.broker.submit(vec![job]).expect("the server is there").remove(0)
    };
    assert_eq!(answer(&deployment, with_key(100, 1)), Submitted::New);
    // The stranger points the key at another job, under the fingerprint of this payload.
    let keys: Vec<String> =
        redis::cmd("KEYS").arg(format!("{}idem:*", deployment.prefix)).query(&mut deployment.raw).unwrap();
    let bound: String = redis::cmd("GET").arg(&keys[0]).query(&mut deployment.raw).unwrap();
    let (_, fingerprint) = bound.split_once(' ').expect("an id and a fingerprint");
    redis::cmd("SET").arg(&keys[0]).arg(format!("{victim} {fingerprint}")).exec(&mut deployment.raw).unwrap();
    let refused = Submitted::Refused(cofferdam::ports::Refusal::IdempotencyMismatch(None));
    assert_eq!(answer(&deployment, with_key(101, 1)), refused);
    assert_eq!(deployment.broker.stats().expect("the server is there").forged, [0, 0, 1, 0]);
}

#[test]
fn s3_what_stands_in_a_lanes_place_stops_that_lane_alone_and_fences_do_not_leave_their_day() {
    let _turn = TURN.lock();
    let mut deployment = Deployment::new("s3");
    commit_state(&mut deployment, &[("a", "1")]);
    let lane = cofferdam::job::state_map("serial", None);
    let lane = lane.trim_start_matches("state:").to_owned();
    let mut executor = deployment.executor();
    for (key, value) in [
        (format!("q:{lane}"), "a string"),
        (format!("m:state:{lane}"), "a string"),
        (format!("lane:{lane}"), "a string"),
    ] {
        deployment.submit("serial");
        let free = deployment.submit("free");
        let key = format!("{}{key}", deployment.prefix);
        redis::cmd("SET").arg(&key).arg(value).exec(&mut deployment.raw).expect("the server is there");
        let held = lease(&mut executor).expect("others go on");
        assert_eq!(held.jobs[0].spec.id, free, "{key}");
        assert!(finish(&mut executor, &held, "1"));
        assert!(lease(&mut executor).is_none());
        // Whoever submits there meets it, too: accepted, and waiting with the lane.
        let (waits, free) = (deployment.submit("serial"), deployment.submit("free"));
        let held = lease(&mut executor).expect("others go on");
        assert_eq!(held.jobs[0].spec.id, free, "{key}");
        assert!(finish(&mut executor, &held, "1"));
        assert!(lease(&mut executor).is_none());
        assert_eq!(deployment.status(waits), Some(JobStatus::Queued));
        let stats = deployment.broker.stats().expect("the server is there");
        let parked: usize = stats.handlers.iter().map(|handler| handler.parked).sum();
        assert!(stats.forged[1] > 0 && parked == 1, "{key}: {:?}, {parked} parked", stats.forged);
        redis::cmd("FLUSHALL").exec(&mut deployment.raw).expect("the server is there");
        executor = deployment.executor();
    }
    // Time here is 1,700,000,000 s: a fence is between the last one and a day from now.
    for forged in ["9007199254740992", "18014398509481984", "-1", "nan", "1e400"] {
        deployment.set("count", "fence", forged);
        deployment.submit("free");
        let held = lease(&mut executor).expect("a job");
        let fence = held.jobs[0].fence;
        assert!((1_700_000_000_000_000..1_700_086_400_000_000).contains(&fence), "{forged}: {fence}");
        assert!(finish(&mut executor, &held, "1"));
    }
}

#[test]
fn s3_what_all_jobs_share_is_made_again_from_the_jobs_and_no_job_is_lost() {
    let _turn = TURN.lock();
    let mut deployment = Deployment::new("s3-shared");
    let node = {
        let _executor = deployment.executor();
        deployment.broker.settle().expect("the server is there");
        let nodes: Vec<String> = redis::cmd("KEYS")
            .arg(format!("{}node:*", deployment.prefix))
            .query(&mut deployment.raw)
            .unwrap();
        nodes[0].strip_prefix(&format!("{}node:", deployment.prefix)).expect("its name").to_owned()
    };
    let mut keys: Vec<String> =
        ["count", "all", "leases", "dying", "nodes", "mx", "mb", "idems", "kept:0", "kept:1"]
            .map(String::from)
            .into();
    keys.push("kept:2".into());
    for handler in ["free", "serial"] {
        keys.extend(["ready", "waits", "forged", "parked"].map(|set| format!("{set}:{handler}")));
    }
    keys.extend(["idle:0".into(), "wake:0".into(), format!("node:{node}"), format!("revoked:{node}")]);
    // A turn meets it first, or a command.
    let met = keys.into_iter().flat_map(|key| [(key.clone(), false), (key, true)]);
    for (key, by_command) in met {
        let mut executor = deployment.executor();
        let ran = deployment.submit("free");
        let held = lease(&mut executor).expect("a job");
        assert_eq!(held.jobs[0].spec.id, ran, "{key}");
        let before = [deployment.submit("serial"), deployment.submit("free")];
        let full = format!("{}{key}", deployment.prefix);
        let forged = if key == "wake:0" { ("LPUSH", "0") } else { ("SET", "a string") };
        redis::cmd("DEL").arg(&full).exec(&mut deployment.raw).expect("the server is there");
        redis::cmd(forged.0).arg(&full).arg(forged.1).exec(&mut deployment.raw).expect("the server is there");
        if by_command {
            let look = deployment.broker.lanes(&Viewer::service(), "free", 10);
            assert!(look.is_ok() && deployment.broker.stats().is_ok(), "{key}: {look:?}");
        }
        let after = deployment.submit("free");
        assert!(finish(&mut executor, &held, "1"), "{key}: what ran is believed");
        let mut left = vec![before[0], before[1], after];
        while let Some(held) = lease(&mut executor) {
            let id = held.jobs[0].spec.id;
            assert!(left.contains(&id), "{key}: each once");
            left.retain(|job| *job != id);
            if id == before[0] {
                let StateAt::Whole(builds_on, _) = held.state else { panic!("{:?}", held.state) };
                let outcome = Outcome::Succeeded(Payload::json(*b"1"), Default::default());
                let delivery = held.jobs[0].delivery;
                let commit = Commit { lease: held.id, job: id, delivery, builds_on, outcome };
                assert!(executor.step(vec![commit], 0).fenced.is_empty(), "{key}");
            } else {
                assert!(finish(&mut executor, &held, "1"), "{key}");
            }
        }
        assert!(left.is_empty(), "{key}: none is lost");
        let ended = [ran, before[0], before[1], after];
        assert!(ended.iter().all(|id| deployment.status(*id) == Some(JobStatus::Succeeded)), "{key}");
        let stats = deployment.broker.stats().expect("the server is there");
        let busy: Vec<_> = stats.handlers.iter().map(|h| (h.queued, h.running, h.parked)).collect();
        assert_eq!((busy, stats.leases), (vec![(0, 0, 0); 2], 0), "{key}: the books are as they were");
    }
    // A lease of an ordered lane, and an idempotency key: others go on, and what it was of begins anew.
    let mut executor = deployment.executor();
    let ordered = deployment.submit("serial");
    let held = lease(&mut executor).expect("the lane is free");
    let key = cofferdam::ports::Idempotency { key: "k".into(), fingerprint: [1; 32] };
    let keyed = |id: u8| NewJob { idempotency: Some(key.clone()), ..plain(JobId([id; 16]), "free") };
    let submit = |deployment: &Deployment, id| deployment.broker.submit(vec![keyed(id)]);
    assert_eq!(submit(&deployment, 200), Ok(vec![Submitted::New]));
    for pattern in ["lease:*", "idem:*"] {
        let pattern = format!("{}{pattern}", deployment.prefix);
        let keys: Vec<String> = redis::cmd("KEYS").arg(pattern).query(&mut deployment.raw).unwrap();
        redis::cmd("DEL").arg(&keys).exec(&mut deployment.raw).expect("the server is there");
        redis::cmd("LPUSH")
            .arg(&keys[0])
            .arg("a list")
            .exec(&mut deployment.raw)
            .expect("the server is there");
    }
    assert_eq!(submit(&deployment, 201), Ok(vec![Submitted::New]));
    assert!(!finish(&mut executor, &held, "1"), "nobody has that lease any more");
    let left: Vec<JobId> =
        [(); 3].map(|()| lease(&mut deployment.executor()).expect("one more").jobs[0].spec.id).into();
    assert!([ordered, JobId([200; 16]), JobId([201; 16])].iter().all(|id| left.contains(id)), "{left:?}");
}

#[test]
fn s3_figures_and_attempts_that_nobody_signed_harm_nobody() {
    let _turn = TURN.lock();
    let mut deployment = Deployment::new("s3-figures");
    let job = deployment.submit("free");
    let most = u64::MAX.to_string();
    let count = format!("{}count", deployment.prefix);
    for field in
        ["finished:free:succeeded", "finished:serial:failed", "job:free:0", "job:serial:0", "submitted:free"]
    {
        redis::cmd("HSET")
            .arg(&count)
            .arg(field)
            .arg(&most)
            .exec(&mut deployment.raw)
            .expect("the server is there");
    }
    let stats = deployment.broker.stats().expect("the server is there");
    let mut all = cofferdam::ports::Histogram::default();
    stats.handlers.iter().for_each(|of| all.add(&of.job_seconds));
    assert!(all.quantile(0.99).is_some());
    assert!(stats.handlers.iter().map(|of| of.finished.iter().sum::<u64>()).sum::<u64>() > 0);
    let key = format!("{}job:{job}", deployment.prefix);
    let long = vec![b'x'; 1 << 20];
    for (executor, past, progress) in [
        (&b"\xff\xfe"[..], &b"1 2 \xff retry"[..], &b"100"[..]),
        (b"x", &long, &long),
        (b"", b"1 2 x dead\n1 2\nnone", &[b'1'; 33]),
    ] {
        redis::cmd("HSET")
            .arg(&key)
            .arg(&[("ex", executor), ("at", past), ("pg", progress)])
            .exec(&mut deployment.raw)
            .expect("the server is there");
        let filter = Filter { limit: 10, ..Filter::default() };
        let listed = deployment.broker.list(&Viewer::service(), &filter).expect("a list");
        assert!(listed.records.len() == 1 && listed.records[0].past.len() <= 1, "{listed:?}");
        assert_eq!(listed.records[0].progress, None, "how far a job is, is signed for that job");
    }
}

#[test]
fn s3_progress_is_signed_for_its_job() {
    let secret = Secret::new(std::array::from_fn(|at| at as u8)).expect("a secret");
    let signer = Signer::new(&[&secret.envelope()], "p");
    let progress = Progress::parse(r#"{"done":1}"#).expect("JSON");
    let [one, other] = [JobId([1; 16]), JobId([2; 16])];
    let sealed = signer.seal_progress(one, &progress);
    assert_eq!(signer.open_progress(one, &sealed), Some(progress));
    assert_eq!(signer.open_progress(other, &sealed), None);
    for at in 0..sealed.len() {
        let mut flipped = sealed.clone();
        flipped[at] ^= 1;
        assert_eq!(signer.open_progress(one, &flipped), None, "{at}");
    }
}

#[test]
fn s4_no_end_of_a_job_is_signed_before_it_has_ended_so() {
    let _turn = TURN.lock();
    let mut deployment = Deployment::new("s4");
    let job = deployment.submit("free");
    let before = map(&mut deployment, &format!("job:{job}"));
    let envelope = before.iter().find(|(name, _)| name == b"env").expect("it is signed").1.clone();
    // Whatever stands in the job is no outcome of it, in any status.
    for (name, value) in &before {
        for status in ["succeeded", "failed", "dead", "timed_out", "cancelled"] {
            deployment.set(&format!("job:{job}"), "s", status);
            deployment.set(&format!("job:{job}"), "r", value);
            assert_eq!(deployment.status(job), None, "{:?} as {status}", String::from_utf8_lossy(name));
        }
    }
    put(&mut deployment, &format!("job:{job}"), &before);
    // It is dead once it was lost as often as it may be, and somebody who can sign has heard of that.
    for _ in 0..3 {
        let mut executor = deployment.executor();
        assert!(lease(&mut executor).is_some());
        drop(executor);
        deployment.broker.settle().expect("the server is there");
    }
    assert_eq!(deployment.status(job), Some(JobStatus::Dead));
    assert_eq!(
        map(&mut deployment, &format!("job:{job}")).iter().find(|(name, _)| name == b"env").unwrap().1,
        envelope
    );
    assert!(map(&mut deployment, "dying").is_empty());
}

#[test]
fn r9_scripts_that_the_server_forgot_are_loaded_again() {
    let _turn = TURN.lock();
    let mut deployment = Deployment::new("r9");
    let mut executor = deployment.executor();
    for _ in 0..3 {
        redis::cmd("FUNCTION").arg("FLUSH").exec(&mut deployment.raw).expect("the server is there");
        let id = deployment.submit("free");
        redis::cmd("FUNCTION").arg("FLUSH").exec(&mut deployment.raw).expect("the server is there");
        let lease = lease(&mut executor).expect("the job is there");
        assert_eq!((lease.jobs[0].spec.id, finish(&mut executor, &lease, "1")), (id, true));
    }
}
