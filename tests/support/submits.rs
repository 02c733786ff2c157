//! A broker's submitting side that takes jobs and knows nothing else, for the gate by itself.
//!
//! It guards against two stand-ins for a broker that drift apart.

use cofferdam::job::{InstanceId, JobId, JobRecord, Payload};
use cofferdam::ports::{
    BackendError, Filter, LaneStats, Listed, Looked, NewJob, Producer, Retried, Stats, Submitted, Viewer,
};

/// Answers each job by this.
pub struct Submits<F>(pub F);

impl<F: Fn(NewJob) -> Submitted + Send + Sync> Producer for Submits<F> {
    fn submit(&self, jobs: Vec<NewJob>) -> Result<Vec<Submitted>, BackendError> {
        Ok(jobs.into_iter().map(&self.0).collect())
    }

    fn record(&self, _: &Viewer, _: JobId) -> Result<Option<JobRecord>, BackendError> {
        Ok(None)
    }

    fn watch(&self, _: &Viewer, _: JobId, _: InstanceId) -> Result<Option<JobRecord>, BackendError> {
        Ok(None)
    }

    fn cancel(&self, _: &Viewer, _: JobId) -> Result<Option<JobRecord>, BackendError> {
        Ok(None)
    }

    fn retry(&self, _: &Viewer, _: JobId) -> Result<Option<Retried>, BackendError> {
        Ok(None)
    }

    fn pause(&self, _: &str, _: bool) -> Result<bool, BackendError> {
        Ok(false)
    }

    fn payload(&self, _: &Viewer, _: JobId) -> Result<Option<Option<Payload>>, BackendError> {
        Ok(None)
    }

    fn list(&self, _: &Viewer, _: &Filter) -> Result<Listed, BackendError> {
        Ok(Listed::default())
    }

    fn lanes(&self, _: &Viewer, _: &str, _: usize) -> Result<Option<Vec<LaneStats>>, BackendError> {
        Ok(None)
    }

    fn recent_ends(&self, _: u64) -> Looked {
        Looked::default()
    }

    fn take_traced(&self) -> (Vec<JobRecord>, u64) {
        (Vec::new(), 0)
    }

    fn stats(&self) -> Result<Stats, BackendError> {
        Ok(Stats::default())
    }
}
