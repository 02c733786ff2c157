//! What goes wrong with a Redis server, and with what stands in it at the adapters.

use std::sync::Arc;
use std::time::Duration;

use cofferdam::HandlerOptions;
use cofferdam::bell::Bell;
use cofferdam::clock::{Clock, Timestamp};
use cofferdam::config::secret::Secret;
use cofferdam::handler::HandlerSpec;
use cofferdam::job::{Change, InstanceId, JobId, JobStatus, Outcome, Payload, Trace, Version};
use cofferdam::ports::{
    Commit, Consumer, KeyValue, Lease, NewJob, Producer, Requests, Rules, Step, Submitted, Viewer,
};
use cofferdam::redis_backend::{RedisBroker, RedisConsumer, Settings};

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
        let job = NewJob {
            id,
            owner: "".into(),
            handler: handler.into(),
            ordering_key: None,
            payload: Payload::json(vec![b'0' + self.last % 10]),
            trace: Trace { id: id.0, span: [1; 8] },
            delay: Duration::ZERO,
            timeout: None,
            idempotency: None,
            awaited: false,
            one_line: false,
            instance: InstanceId(1),
        };
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
        let said = Requests { commits, releases: Vec::new() };
        let before = self.consumer.step(said, room).expect("it is there");
        assert!(before.is_empty(), "{before:?}");
        self.broker.settle().expect("the server is there");
        self.consumer.step(Requests::default(), room).expect("it is there")
    }
}

fn lease(executor: &mut Executor) -> Option<Lease> {
    let step = executor.step(Vec::new(), 1);
    assert!(executor.step(Vec::new(), 0).is_empty());
    step.leases.into_iter().next()
}

/// Ready is who has executors: a process knows its own at once, not only once it has told the others.
#[test]
fn an_executor_is_known_to_its_own_process_before_anything_is_said_of_it() {
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
    assert_eq!(deployment.broker.get("m", "k"), Ok(None));
    assert_eq!(deployment.broker.load("m", None), Ok(cofferdam::job::Entries::new()));
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
