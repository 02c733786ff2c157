//! Decoders of the journal: facts, and segments behind a mac.

use std::sync::{Arc, LazyLock};
use std::time::Duration;

use cofferdam::clock::Timestamp;
use cofferdam::job::{Change, Finished, JobId, JobRecord, JobSpec, JobStatus, Payload, Trace};
use cofferdam::journal::facts::{self, Bound, Fact, Job, Scope};
use cofferdam::journal::frame::{self, BEGIN, Turn};
use cofferdam::mac::MacKey;
use cofferdam::problem::{Code, JobError};

/// What was read is read again from what is written of it.
pub fn facts(bytes: &[u8]) {
    let mut read = Vec::new();
    let _ = facts::read_all(bytes, |fact| {
        read.push(fact);
        Ok(())
    });
    let mut out = Vec::new();
    read.iter().for_each(|fact| facts::put(&mut out, fact));
    let mut again = Vec::new();
    let whole = facts::read_all(&out, |fact| {
        again.push(fact);
        Ok(())
    });
    assert!(whole.is_ok() && again == read, "{read:?}\n{again:?}");
}

pub fn some_facts() -> Vec<Vec<u8>> {
    let id = JobId([1; 16]);
    let spec = JobSpec {
        id,
        owner: "o".into(),
        handler: "h".into(),
        ordering_key: Some("k".into()),
        trace: Trace { id: [2; 16], span: [3; 8], flags: 1, parent: Some([4; 8]) },
        tracestate: Some("a=1".into()),
        submitted_at: Timestamp(4),
        timeout: Duration::from_millis(5),
        one_line: false,
    };
    let (spec, payload) = (Arc::new(spec), Payload::json(*b"{}"));
    let stands = |spec: &Arc<JobSpec>, status, result| {
        let record = JobRecord {
            status,
            deliveries: 1,
            started_at: Some(Timestamp(9)),
            finished: Option::map(result, |result| Arc::new(Finished { status, result })),
            ..JobRecord::queued(spec.clone())
        };
        let (not_before, waits_since) = (Timestamp(7), Timestamp(8));
        let job = Job { delivery: 1, order: 6, not_before, waits_since, ..Job::queued(spec.clone()) };
        Box::new(Job { record, awaited: true, ..job })
    };
    let running = stands(&spec, JobStatus::Running, None);
    let job = Job { is_follow_up: true, payload: Some(payload.clone()), ..*running };
    let spec = Arc::new(JobSpec { id, ..JobSpec::default() });
    let dead = stands(&spec, JobStatus::Dead, Some(Err(JobError::new(Code::DeadLettered, "no"))));
    let change = |key: &str, value: Option<&[u8]>| Change { key: key.into(), value: value.map(Arc::from) };
    let (name, expires_at): (Arc<str>, _) = ("m".into(), Some(Timestamp(10)));
    let changes = vec![change("a", Some(b"v")), change("b", None)];
    let scope: Scope = ("o".into(), "h".into(), "k".into());
    let all = [
        Fact::Job(Box::new(job)),
        Fact::Stands(dead),
        Fact::Stands(stands(&spec, JobStatus::Succeeded, Some(Ok(payload)))),
        Fact::Gone(id),
        Fact::Map { name: name.clone(), is_whole: true, version: 9, expires_at, changes },
        Fact::MapGone(name),
        Fact::Key(scope.clone(), Bound { job: id, fingerprint: [11; 32], until: Timestamp(12) }),
        Fact::KeyGone(scope),
        Fact::Paused("h".into(), true),
    ];
    let put = |fact: &Fact| {
        let mut out = Vec::new();
        facts::put(&mut out, fact);
        out
    };
    let all: Vec<Vec<u8>> = all.iter().map(put).collect();
    let together = all.concat();
    all.into_iter().chain([together]).collect()
}

fn key() -> [MacKey; 1] {
    [MacKey::new(b"a test's own")]
}

/// Segment 1, with a frame of each of some facts.
static SEGMENT: LazyLock<Vec<u8>> = LazyLock::new(|| {
    let ([key], mut out) = (key(), Vec::new());
    frame::put_header(&key, 1, 1, &mut out);
    for (sequence, facts) in (1..).zip(some_facts()) {
        let turn = Turn { at: Timestamp(1), last_fence: 2, oldest: 1, facts: &facts };
        frame::seal(&key, 1, out.len() as u64, sequence, sequence - 1, &turn, &mut out);
    }
    out.resize(out.len() + 64, 0);
    out
});

/// Whatever stands there, what opens is what was sealed for that very place.
pub fn segment(bytes: &[u8]) {
    let key = key();
    let is_as_sealed = |from: usize, to: usize| SEGMENT.get(from..to) == bytes.get(from..to);
    let Some(first) = frame::open_header(&key, 1, bytes) else { return };
    assert!(first == 1 && is_as_sealed(0, BEGIN));
    let mut at = BEGIN;
    let read = frame::read(&key, 1, bytes, first, |frame| {
        assert!(is_as_sealed(at, at + frame.length));
        at += frame.length;
        Ok(())
    });
    assert_eq!(read.expect("what was sealed can be read").0, at);
}

pub fn segments() -> Vec<Vec<u8>> {
    vec![SEGMENT.clone()]
}
