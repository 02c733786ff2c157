//! [`Replies`]: how a waiting process hears that a job has ended.

use std::sync::Arc;

use super::error::Reached;
use crate::bell::Bell;
use crate::job::{Finished, InstanceId, JobId, JobRecord};

/// A job's end is told as a part of its commit. What is told may be lost or doubled; the job's record is the truth.
pub trait Replies: Send + Sync {
    /// Opens the inbox of `instance`; `bell` rings when there is something in it.
    fn subscribe(&self, instance: InstanceId, bell: Bell) -> Reached<Box<dyn Inbox>>;
}

/// What one process is told.
pub trait Inbox: Send {
    /// Takes up to `most` of the ends that it holds; never waits.
    fn take(&mut self, most: usize) -> Ends;
}

/// What was told since the last look.
#[derive(Debug, Default)]
pub struct Ends {
    /// In the order of the commits.
    pub ended: Vec<JobEnded>,
    /// Some were lost: look at the records of all jobs that are waited for.
    pub lost: bool,
}

/// A job that a process waits for has ended.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct JobEnded {
    pub job: JobId,
    pub finished: Arc<Finished>,
}

impl JobEnded {
    /// What was told, or should have been, for this record; `None` if it has not ended.
    pub fn of(record: JobRecord) -> Option<JobEnded> {
        Some(JobEnded { job: record.spec.id, finished: record.finished? })
    }
}
