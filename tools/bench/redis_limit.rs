//! What the scripts alone allow: submit, claim, commit and doorbell, with nothing around them but threads.
//!
//!     bench-redis-limit --url URL --callers N --seconds S
//!
//! One thread submits jobs as long as not `N` are under way, without waiting for the answers, and its inbox tells of the
//! ends; another one takes all leases that are there and gives their outcomes. They are said in the turns of a seat,
//! which is a web process's without a web process around it, and no channel to an executor. URL is as in
//! `runtime.platform.redis.url`. Prints one JSON object.
#![forbid(unsafe_code)]

use std::collections::HashMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::channel;
use std::time::{Duration, Instant};

use cofferdam::HandlerOptions;
use cofferdam::bell::Bell;
use cofferdam::clock::Clock;
use cofferdam::config::Redis;
use cofferdam::config::secret::Secret;
use cofferdam::entropy::Entropy;
use cofferdam::handler::HandlerSpec;
use cofferdam::job::{Effects, InstanceId, JobId, Outcome, Payload, Trace, Version};
use cofferdam::ports::{
    BackendError, Commit, Consumer, NewJob, Producer, Replies, Requests, Rules, Submitted,
};
use cofferdam::redis_backend::{Link, RedisBroker, Settings};
use serde_json::json;

const PAYLOAD_BYTES: usize = 120;
/// Leases that the executor takes at a time: more than there are callers, so that none waits for room.
const ROOM: usize = 4_096;

fn main() -> Result<(), String> {
    let option = |name: &str| {
        let mut words = std::env::args().skip_while(|word| word != name).skip(1);
        words.next().ok_or(format!("{name}: a value is missing"))
    };
    let url = option("--url")?;
    let callers: usize = option("--callers")?.parse().map_err(|_| "--callers: a number")?;
    let seconds: f64 = option("--seconds")?.parse().map_err(|_| "--seconds: a number")?;
    if !(1..=ROOM).contains(&callers) || !(0.1..=60.0).contains(&seconds) {
        return Err("1 to 4096 callers, 0.1 to 60 seconds".into());
    }
    let link = Link::new(&server(url.clone())).map_err(|error| error.to_string())?;
    let broker = broker(url)?;
    let seat = broker.sit().map_err(|error| error.to_string())?;
    let before = calls(&link)?;
    let (finished, times) = run(&broker, callers, Duration::from_secs_f64(seconds))?;
    let commands = calls(&link)? - before;
    drop(seat);
    link.remove_all(PREFIX).map_err(|error| error.to_string())?;
    let mut micros: Vec<u128> = times.iter().map(Duration::as_micros).collect();
    micros.sort_unstable();
    let at = |percent: usize| micros.get(micros.len() * percent / 100).copied();
    let report = json!({
        "jobs_per_second": finished as f64 / seconds, "p50_us": at(50), "p99_us": at(99),
        "commands_per_job": commands as f64 / finished.max(1) as f64,
    });
    println!("{report}");
    Ok(())
}

fn broker(url: String) -> Result<RedisBroker, String> {
    let spec = |name: &str| HandlerSpec::new(name, 0, HandlerOptions::default());
    let settings = Settings {
        redis: server(url),
        prefix: PREFIX.into(),
        rules: Rules::default(),
        handlers: vec![spec("echo"), spec("sleep")],
        groups: vec!["execution".into()],
        clock: Clock::system(),
        keep: None,
        workers: vec![ROOM],
    };
    RedisBroker::new(settings, &[&Secret::generate()?.envelope()])
}

const PREFIX: &str = "{limit}:";

fn server(url: String) -> Redis {
    Redis {
        url,
        username: None,
        password_file: None,
        key_prefix: "limit".into(),
        connect_timeout_ms: 2_000,
        response_timeout_ms: 5_000,
    }
}

/// Commands that the server has run, those inside scripts too.
fn calls(link: &Link) -> Result<u64, String> {
    let text = link.command::<String>(redis::cmd("INFO").arg("commandstats"));
    let text = text.map_err(|error| error.to_string())?;
    let counts =
        text.lines().filter_map(|line| line.split_once(":calls=")?.1.split(',').next()?.parse::<u64>().ok());
    Ok(counts.sum())
}

/// Jobs that came back in this time, and how long each took.
fn run(broker: &RedisBroker, callers: usize, time: Duration) -> Result<(usize, Vec<Duration>), String> {
    let failed = |error: BackendError| error.to_string();
    let instance = InstanceId(1);
    let me = Bell::for_this_thread();
    let mut inbox = broker.subscribe(instance, me.clone()).map_err(failed)?;
    let stop = Arc::new(AtomicBool::new(false));
    let executor = std::thread::spawn({
        let (broker, stop) = (broker.clone(), stop.clone());
        move || execute(&broker, &stop)
    });
    let mut under_way = HashMap::<JobId, Instant>::new();
    let (told, answers) = channel::<Result<Vec<Submitted>, BackendError>>();
    let (ends_at, mut times, mut finished) = (Instant::now() + time, Vec::new(), 0);
    let mut entropy = Entropy::system();
    let mut free = callers;
    while Instant::now() < ends_at {
        me.answer();
        let rang = inbox.take(usize::MAX).ended;
        for answer in answers.try_iter() {
            if answer.map_err(failed)?.iter().any(|job| !matches!(job, Submitted::New)) {
                return Err("a job was not accepted".into());
            }
        }
        for doorbell in rang {
            if let Some(since) = under_way.remove(&doorbell.job) {
                times.push(since.elapsed());
                finished += 1;
                free += 1;
            }
        }
        if free > 0 {
            let jobs: Vec<NewJob> = (0..free).map(|_| job(&mut entropy, instance)).collect();
            let now = Instant::now();
            under_way.extend(jobs.iter().map(|job| (job.id, now)));
            free = 0;
            let told = told.clone();
            broker.submit_later(jobs, Box::new(move |answer| drop(told.send(answer))));
        } else if me.asleep() {
            std::thread::park_timeout(Duration::from_millis(100));
        }
    }
    stop.store(true, Ordering::SeqCst);
    executor.join().map_err(|_| "the executor's thread has panicked")??;
    Ok((finished, times))
}

fn execute(broker: &RedisBroker, stop: &AtomicBool) -> Result<(), String> {
    let failed = |error: BackendError| error.to_string();
    let bell = Bell::for_this_thread();
    let mut consumer = broker.consumer(0, bell.clone());
    let mut commits = Vec::new();
    while !stop.load(Ordering::SeqCst) {
        bell.answer();
        let said = Requests { commits: std::mem::take(&mut commits), ..Requests::default() };
        let step = consumer.step(said, ROOM).map_err(failed)?;
        for lease in step.leases {
            let job = &lease.jobs[0];
            let outcome = Outcome::Succeeded(job.payload.clone(), Effects::default());
            let (lease, id, delivery) = (lease.id, job.spec.id, job.delivery);
            commits.push(Commit { lease, job: id, delivery, builds_on: Version::default(), outcome });
        }
        if commits.is_empty() && bell.asleep() {
            std::thread::park_timeout(Duration::from_millis(100));
        }
    }
    Ok(())
}

fn job(entropy: &mut Entropy, instance: InstanceId) -> NewJob {
    let id = JobId(entropy.bytes());
    NewJob {
        id,
        owner: "".into(),
        handler: "echo".into(),
        ordering_key: None,
        payload: Payload::json(vec![b'1'; PAYLOAD_BYTES]),
        trace: Trace { id: id.0, span: [1; 8], ..Trace::default() },
        tracestate: None,
        delay: Duration::ZERO,
        timeout: None,
        idempotency: None,
        awaited: true,
        one_line: false,
        instance,
    }
}
