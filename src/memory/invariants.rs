//! What holds between the broker's indices after every operation. For tests: each look is at everything.

use std::collections::BTreeSet;

use super::broker::Broker;
use crate::job::{IdMap, JobId, JobStatus};
use crate::journal::facts::Thing;
use crate::ports::Share;

impl Broker {
    /// Fails where two indices disagree about the same thing.
    pub fn check_invariants(&self) {
        self.check_lanes();
        self.check_leases();
        self.check_counts();
    }

    /// All that a journal has bases of.
    #[must_use]
    pub fn things(&self) -> Vec<Thing> {
        let jobs = self.jobs.keys().map(|id| Thing::Job(*id));
        let maps = self.maps.names().map(|name| Thing::Map(name.clone()));
        let keys = self.idempotency.scopes().map(|scope| Thing::Key(Box::new(scope.clone())));
        let paused = self.handlers.iter().filter(|queue| queue.figures.paused);
        let paused = paused.map(|queue| Thing::Paused(queue.spec.name.clone()));
        jobs.chain(maps).chain(keys).chain(paused).collect()
    }

    /// A job that has not ended, or that holds its lane, stands in that lane's queue alone; and a lane is ready iff
    /// its head can be claimed.
    fn check_lanes(&self) {
        let mut queued = BTreeSet::new();
        for (number, lane) in &self.lanes {
            assert!(lane.jobs.iter().all(|id| queued.insert(*id)), "a job stands in one lane, once");
            assert!(lane.jobs.iter().all(|id| self.jobs[id].lane == *number), "a job knows its lane");
            let can_run = !lane.jobs.is_empty() && lane.lease.is_none() && !lane.parked;
            assert_eq!(lane.ready.is_some(), can_run, "lane {number} is ready iff it can run");
            let ready = &self.handlers[lane.handler].ready;
            assert!(lane.ready.is_none_or(|place| ready.get(&place) == Some(number)), "its place is its own");
            if let Some(map) = &lane.map {
                assert_eq!(self.ordered_lanes.get(map), Some(number), "a lane is found by its state");
            }
        }
        let mut expected = BTreeSet::new();
        for (id, entry) in &self.jobs {
            let lane =
                self.lanes.get(&entry.lane).filter(|lane| lane.parked && lane.jobs.front() == Some(id));
            assert_eq!(
                entry.place.is_some(),
                entry.job.record.status.is_terminal() && lane.is_none(),
                "{id}"
            );
            expected.extend(entry.place.is_none().then_some(*id));
        }
        assert_eq!(queued, expected, "the lanes hold what has not ended");
        let ordered = self.lanes.values().filter(|lane| lane.map.is_some()).count();
        assert_eq!(self.ordered_lanes.len(), ordered, "each name is a lane's");
    }

    /// A lease is its lane's and its executor's, and its jobs are the first of the lane, of which one runs.
    fn check_leases(&self) {
        for (number, lease) in &self.leases {
            let lane = &self.lanes[&lease.lane];
            assert_eq!(lane.lease, Some(*number), "a lane knows its lease");
            let of_consumer = self.consumers[&lease.consumer].leases.iter().filter(|own| *own == number);
            assert_eq!(of_consumer.count(), 1, "an executor knows its leases");
            assert!(!lease.jobs.is_empty() && lease.jobs.iter().eq(lane.jobs.iter().take(lease.jobs.len())));
        }
        let leased = self.lanes.values().filter(|lane| lane.lease.is_some()).count();
        let held: usize = self.consumers.values().map(|consumer| consumer.leases.len()).sum();
        assert_eq!((leased, held), (self.leases.len(), self.leases.len()), "no lease is known that is over");
        for consumer in self.consumers.values().filter(|consumer| consumer.is_alone) {
            assert!(self.holds_one_job(&consumer.leases), "who runs alone has nothing else");
        }
        let heads: BTreeSet<JobId> =
            self.leases.values().filter_map(|lease| lease.jobs.front()).copied().collect();
        let running = self.jobs.iter().filter(|(_, entry)| entry.job.record.status == JobStatus::Running);
        assert_eq!(running.map(|(id, _)| *id).collect::<BTreeSet<_>>(), heads, "the first of each run runs");
    }

    /// What is counted as things change is what counting everything gives.
    fn check_counts(&self) {
        for (index, queue) in self.handlers.iter().enumerate() {
            let lanes = self.lanes.values().filter(|lane| lane.handler == index);
            let ready = lanes.clone().filter(|lane| lane.ready.is_some()).count();
            assert_eq!((queue.figures.lanes, queue.ready.len()), (lanes.count(), ready), "lanes, ready ones");
            let own = self.jobs.values().filter(|entry| entry.handler == index).map(|entry| &entry.job);
            let of = |status| own.clone().filter(move |job| job.record.status == status);
            let counts = (queue.figures.queued, queue.figures.running);
            let (queued, running) = (of(JobStatus::Queued), of(JobStatus::Running));
            assert_eq!(counts, (queued.clone().count(), running.count()), "queued, running");
            let waiting: BTreeSet<_> = queued.map(|job| (job.waits_since, job.record.spec.id)).collect();
            assert_eq!(queue.waiting, waiting, "what waits, and since when");
            let parked = self.lanes.values().filter(|lane| lane.handler == index && lane.parked).count();
            assert_eq!(queue.figures.parked, parked, "parked lanes");
            let (mut follow_ups, mut of_callers) = (Share::default(), Share::default());
            let mut owners: IdMap<_, Share> = IdMap::default();
            for job in own.filter(|job| !job.record.status.is_terminal()) {
                let one = Share { jobs: 1, bytes: job.payload_bytes() };
                if job.is_follow_up {
                    follow_ups = follow_ups + one;
                    continue;
                }
                of_callers = of_callers + one;
                let share = owners.entry(job.record.spec.owner.clone()).or_default();
                *share = *share + one;
            }
            owners.retain(|owner, _| !owner.is_empty());
            let counts = (queue.follow_ups, queue.of_callers, &queue.owners);
            assert_eq!(counts, (follow_ups, of_callers, &owners), "jobs that have not ended");
        }
        let suspects = self.jobs.values().map(|entry| &entry.job).filter(|job| job.losses > 0);
        assert!(suspects.clone().all(|job| !job.record.status.is_terminal()), "an end clears a job");
        assert_eq!(self.totals.suspects, suspects.count(), "suspects");
        let kept = self.jobs.values().filter(|entry| entry.place.is_some()).count();
        assert_eq!(self.retention.len(), kept, "records");
        assert_eq!(self.submissions.len(), self.jobs.len(), "each job was submitted once");
    }
}
