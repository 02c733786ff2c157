//! A job of a caller who asks for nothing but that it runs.

use std::time::Duration;

use cofferdam::job::{InstanceId, JobId, Payload, Trace};
use cofferdam::ports::NewJob;

pub fn plain(id: JobId, handler: &str) -> NewJob {
    NewJob {
        id,
        owner: "".into(),
        handler: handler.into(),
        ordering_key: None,
        payload: Payload::json(*b"1"),
        trace: Trace { id: [1; 16], span: [1; 8], ..Trace::default() },
        tracestate: None,
        delay: Duration::ZERO,
        timeout: None,
        idempotency: None,
        awaited: false,
        one_line: false,
        instance: InstanceId(1),
    }
}
