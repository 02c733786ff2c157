//! The state of a `/v1/batch` request.

use std::sync::Arc;

use crate::entropy::Entropy;
use crate::limits::BATCH_LINES;
use crate::ndjson::Pump;
use crate::ports::NewJob;

/// One request's lines.
pub(super) struct Batch {
    pub(super) body: Arc<[u8]>,
    /// Where the next line begins.
    pub(super) at: usize,
    pub(super) pump: Pump,
}

impl Batch {
    /// The jobs to submit next: none while the window is full, the broker is asked, or at the end.
    pub(super) fn jobs(&mut self, max_payload: usize, entropy: &mut Entropy) -> Vec<NewJob> {
        let (body, at) = (&self.body, &mut self.at);
        self.pump.jobs(BATCH_LINES, entropy, || {
            let rest = body.get(*at..).filter(|rest| !rest.is_empty())?;
            let end = rest.iter().position(|byte| *byte == b'\n').unwrap_or(rest.len());
            *at += end + 1;
            Some(if end > max_payload { Err("web.max_body_bytes") } else { Ok(&rest[..end]) })
        })
    }

    pub(super) fn is_done(&self) -> bool {
        self.at >= self.body.len() && self.pump.is_idle()
    }
}
