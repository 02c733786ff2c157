//! A process a job: the payload is its standard input, what it writes to standard output the result, its exit code what came of it.

use std::time::Instant;

use super::child::Seen;
use super::report::{Report, Why};
use super::{ENDS_WITHIN, ProgramHandler};
use crate::execution::context::{Job, JobContext};
use crate::handler::HandlerError;
use crate::job::Payload;

/// "Temporary failure, indicating something that is not really an error" (`EX_TEMPFAIL`, sysexits.h).
const TEMPORARY: i32 = 75;

impl ProgramHandler {
    pub(super) fn once(&self, job: &Job, cx: &mut JobContext) -> Result<Payload, HandlerError> {
        let mut variables = vec![
            ("COFFERDAM_JOB_ID", job.id().to_string()),
            ("COFFERDAM_DELIVERY", cx.delivery().to_string()),
            ("COFFERDAM_FENCE", cx.fence().to_string()),
            ("COFFERDAM_HANDLER", self.name.to_string()),
            ("TRACEPARENT", job.trace().to_string()),
        ];
        variables.extend(job.tracestate().map(|state| ("TRACESTATE", state.to_owned())));
        let begun = Instant::now();
        let mut running = self.start(&variables)?;
        running.begin(&job.0.spec);
        cx.stop.tell(running.bell.clone(), self.grace() + ENDS_WITHIN);
        let mut input = &*job.payload().bytes;
        loop {
            match running.watch(&mut input, true, cx.stop) {
                Seen::Said | Seen::Deaf => {}
                Seen::Exited => break,
                seen @ (Seen::Told | Seen::Flooded) => return Err(self.stopped(running, seen, begun, job)),
            }
        }
        let (report, mut output) = running.end(Why::Itself, self.grace());
        // A line of a batch: that it ends is said by whoever writes it.
        if job.0.spec.one_line && output.ends_with(b"\n") {
            output.pop();
        }
        match report {
            Report { code: Some(0), .. } => Ok(payload(output)),
            Report { code: Some(TEMPORARY), .. } => Err(HandlerError::Retry(report.to_string())),
            Report { code: Some(_), .. } => Err(HandlerError::Fail(report.to_string())),
            Report { code: None, .. } => Err(HandlerError::Crash(report.to_string())),
        }
    }
}

/// JSON if it is that.
fn payload(output: Vec<u8>) -> Payload {
    let is_json = serde_json::from_slice::<serde::de::IgnoredAny>(&output).is_ok();
    if is_json { Payload::json(output) } else { Payload::octets(output) }
}
