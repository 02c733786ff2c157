//! [`Replies`]: how a waiting process hears that a job has ended.

use std::sync::Arc;

use super::BackendError;
use crate::bell::Bell;
use crate::job::{Finished, InstanceId, JobId};

/// A job that a process waits for has ended.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Doorbell {
    /// The job.
    pub job: JobId,
    /// How it ended.
    pub finished: Arc<Finished>,
}

/// What rang since the last look.
#[derive(Debug, Default)]
pub struct Doorbells {
    /// In the order of the commits.
    pub rang: Vec<Doorbell>,
    /// Some were lost for want of room: look at the records of all jobs that are waited for.
    pub lost: bool,
}

/// One process's doorbells.
pub trait Inbox: Send {
    /// Takes up to `most` of those that have rung; never waits.
    ///
    /// # Errors
    /// The backend is lost; the records are still the truth when it is back.
    fn take(&mut self, most: usize) -> Result<Doorbells, BackendError>;
}

/// Doorbells for finished jobs. A doorbell is published as a part of the job's commit; it may be lost or
/// doubled, the job's record is the truth.
pub trait Replies: Send + Sync {
    /// Opens the inbox of `instance`; `bell` rings when there is something in it.
    ///
    /// # Errors
    /// The backend is lost.
    fn subscribe(&self, instance: InstanceId, bell: Bell) -> Result<Box<dyn Inbox>, BackendError>;
}
