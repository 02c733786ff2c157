//! The handlers that every binary has: `echo` and `sleep`.

use std::sync::Arc;
use std::time::Duration;

use super::context::{Handler, Job, JobContext, Registry};
use crate::handler::{HandlerError, HandlerOptions};
use crate::job::Payload;

/// `echo` and `sleep`, by name.
pub fn registry() -> Registry {
    let handlers: [(&str, Arc<dyn Handler>); 2] = [("echo", Arc::new(echo)), ("sleep", Arc::new(sleep))];
    handlers.map(|(name, handler)| (name.into(), (HandlerOptions::default(), handler))).into()
}

/// Returns the payload as it came.
fn echo(job: &Job, _: &mut JobContext) -> Result<Payload, HandlerError> {
    Ok(job.payload().clone())
}

#[derive(serde::Deserialize)]
struct Sleep {
    ms: u64,
}

/// `{"ms":N}`: waits that long, or until it is cancelled; returns `{"slept_ms":N}`.
fn sleep(job: &Job, cx: &mut JobContext) -> Result<Payload, HandlerError> {
    let Sleep { ms } = serde_json::from_slice(&job.payload().bytes)
        .map_err(|_| HandlerError::Fail(r#"sleep takes {"ms":N}"#.into()))?;
    if !cx.sleep(Duration::from_millis(ms)) {
        return Err(HandlerError::Fail("cancelled while sleeping".into()));
    }
    Ok(Payload::json(format!("{{\"slept_ms\":{ms}}}").into_bytes()))
}
