//! A run: a lease on its way through a worker; and what a worker says of it.

use std::sync::Arc;

use super::context::RunMaps;
use super::run_stop::RunStop;
use crate::clock::Timestamp;
use crate::job::{JobId, Outcome, Version};
use crate::ports::{LeaseId, LeasedJob};

/// See the module.
pub struct Run {
    pub lease: LeaseId,
    pub handler: Arc<str>,
    /// In order.
    pub jobs: Vec<LeasedJob>,
    pub maps: RunMaps,
    /// Shared with the books.
    pub stop: Arc<RunStop>,
}

/// What a worker says.
pub enum Done {
    /// What came of one job.
    Outcome {
        lease: LeaseId,
        job: JobId,
        outcome: Outcome,
        /// The state version that the handler saw.
        builds_on: Version,
        /// When it ended: the next job of the run starts then.
        at: Timestamp,
    },
    /// The run is over and the worker free; the maps as the run left them.
    End { lease: LeaseId, maps: RunMaps },
}
