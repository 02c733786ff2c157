//! What an embedder writes: [`Handler`]; and the handlers of a binary by name.

use std::collections::BTreeMap;
use std::sync::Arc;

use super::context::{Job, JobContext};
use crate::handler::{HandlerError, HandlerOptions, HandlerSpec};
use crate::job::Payload;

/// A function that does jobs. It runs on a worker thread and may block.
///
/// The same job may be delivered again after a crash, so effects outside of the system should carry
/// [`JobContext::fence`] or be idempotent; effects through the context happen once.
pub trait Handler: Send + Sync {
    /// Does one job.
    ///
    /// # Errors
    /// [`HandlerError::Retry`] is delivered again after a backoff, [`HandlerError::Fail`] is final. A panic
    /// counts as a crash of this delivery.
    fn handle(&self, job: &Job, cx: &mut JobContext) -> Result<Payload, HandlerError>;

    /// The options that hold where the config says nothing.
    fn options(&self) -> HandlerOptions {
        HandlerOptions::default()
    }
}

impl<F> Handler for F
where
    F: Fn(&Job, &mut JobContext) -> Result<Payload, HandlerError> + Send + Sync,
{
    fn handle(&self, job: &Job, cx: &mut JobContext) -> Result<Payload, HandlerError> {
        self(job, cx)
    }
}

/// Handlers with their code, for a pool of workers.
pub type Handlers = Vec<(HandlerSpec, Arc<dyn Handler>)>;

/// The handlers of a binary with their own options, by name. A name is 1 to 64 of `a-z A-Z 0-9 _ - .`
pub type Registry = BTreeMap<String, (HandlerOptions, Arc<dyn Handler>)>;
