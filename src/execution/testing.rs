//! Trying one handler in a test, with a job of one's own: no processes, no broker, nothing kept.
//!
//! ```
//! use cofferdam::testing::Trial;
//! use cofferdam::{HandlerError, HandlerOptions, Job, JobContext, Payload};
//!
//! fn count(_: &Job, cx: &mut JobContext) -> Result<Payload, HandlerError> {
//!     let mut state = cx.state().ok_or("count is serial")?;
//!     let seen = state.get("seen").map_or(0, |seen| seen[0]) + 1;
//!     state.set("seen", vec![seen]);
//!     Ok(Payload::json(seen.to_string().into_bytes()))
//! }
//!
//! let trial = Trial::new(Payload::json(*b"{}")).options(HandlerOptions::serial()).state("seen", [6]);
//! let tried = trial.run(&count);
//! assert_eq!(&*tried.result.unwrap().bytes, b"7");
//! assert_eq!(tried.state["seen"], [7]);
//! ```

use std::cell::RefCell;
use std::collections::BTreeMap;
use std::sync::Arc;

use super::context::{Handler, Handlers, Job, JobContext, Staging};
use super::run::{RunMaps, RunStop};
use crate::clock::Clock;
use crate::handler::{HandlerError, HandlerOptions, HandlerSpec};
pub use crate::job::FollowUp;
use crate::job::{Effects, Entries, JobId, JobSpec, Payload, Progress, Trace, Version};
use crate::ports::{LeasedJob, Rules};

/// A job, and what its handler finds.
pub struct Trial {
    payload: Payload,
    ordering_key: Option<String>,
    spec: HandlerSpec,
    others: Handlers,
    state: Entries,
    context: Entries,
    delivery: u32,
    stop: Arc<RunStop>,
    tells: fn(&str),
}

/// What came of it.
#[derive(Debug)]
pub struct Tried {
    /// What the handler said; a change that no commit would take is a [`HandlerError::Fail`].
    pub result: Result<Payload, HandlerError>,
    /// The lane's state after that: as it was, unless it succeeded.
    pub state: BTreeMap<String, Vec<u8>>,
    /// The trace's context, likewise.
    pub context: BTreeMap<String, Vec<u8>>,
    /// The jobs that it submits; none, unless it succeeded.
    pub follow_ups: Vec<FollowUp>,
    /// What it said of how far it was, each as JSON; a service passes on at most one a second, the last.
    pub progress: Vec<String>,
    /// It ended after its time.
    #[doc(hidden)]
    pub is_late: bool,
}

impl Trial {
    /// The first delivery of a job with this payload, to a handler without ordering.
    pub fn new(payload: Payload) -> Trial {
        Trial::of(HandlerSpec::new("trial", 0, HandlerOptions::default()), Vec::new(), payload)
    }

    /// The same of a handler of a deployment, beside its others.
    #[doc(hidden)]
    pub fn of(spec: HandlerSpec, others: Handlers, payload: Payload) -> Trial {
        let (ordering_key, state, context, stop) = Default::default();
        Trial { payload, ordering_key, spec, others, state, context, delivery: 1, stop, tells: |_| () }
    }

    /// Its progress is told as it comes.
    #[doc(hidden)]
    #[must_use]
    pub fn telling(self, tells: fn(&str)) -> Trial {
        Trial { tells, ..self }
    }

    /// What ends it before its time.
    #[doc(hidden)]
    pub fn stop(&self) -> Arc<RunStop> {
        self.stop.clone()
    }

    /// The handler's options: only an ordered one has a state.
    #[must_use]
    pub fn options(mut self, options: HandlerOptions) -> Trial {
        self.spec.options = options;
        self
    }

    /// The job's ordering key.
    #[must_use]
    pub fn key(mut self, key: &str) -> Trial {
        self.ordering_key = Some(key.into());
        self
    }

    /// An entry of the lane's state.
    #[must_use]
    pub fn state(mut self, key: &str, value: impl Into<Arc<[u8]>>) -> Trial {
        self.state.insert(key.into(), value.into());
        self
    }

    /// An entry of the trace's context.
    #[must_use]
    pub fn context(mut self, key: &str, value: impl Into<Arc<[u8]>>) -> Trial {
        self.context.insert(key.into(), value.into());
        self
    }

    /// Which delivery it is.
    #[must_use]
    pub fn delivery(mut self, delivery: u32) -> Trial {
        self.delivery = delivery;
        self
    }

    /// The job was cancelled meanwhile.
    #[must_use]
    pub fn cancelled(self) -> Trial {
        self.stop.end();
        self
    }

    /// There is another handler, which jobs may be submitted to.
    #[must_use]
    pub fn beside(mut self, name: &str, options: HandlerOptions) -> Trial {
        let code = |job: &Job, _: &mut JobContext| Ok(job.payload().clone());
        self.others.push((HandlerSpec::new(name, 0, options), Arc::new(code)));
        self
    }

    /// Runs it, on this thread. A panic goes on.
    pub fn run(self, handler: &(impl Handler + ?Sized)) -> Tried {
        let spec = self.spec;
        let (trace, timeout) =
            (Trace { id: [1; 16], span: [1; 8], ..Trace::default() }, spec.options.timeout);
        let (now, key) = (Clock::system().now(), self.ordering_key.as_deref().map(Arc::from));
        let job = Job(LeasedJob {
            spec: Arc::new(JobSpec {
                id: JobId([1; 16]),
                owner: Arc::from(""),
                handler: spec.name.clone(),
                ordering_key: key,
                trace,
                tracestate: None,
                submitted_at: now,
                timeout,
                one_line: false,
            }),
            payload: self.payload,
            delivery: self.delivery,
            fence: u64::from(self.delivery),
            context: self.context,
        });
        let mut maps = RunMaps::new(Version(0), self.state);
        let (stop, deadline) = (&self.stop, now.plus(timeout));
        let (handlers, staging) = (&self.others, Staging::default());
        let said = RefCell::new(Vec::new());
        let progress: &dyn Fn(Progress) = &|progress| {
            (self.tells)(progress.as_str());
            said.borrow_mut().push(progress.as_str().to_owned());
        };
        let (maps_of, spec) = (&mut maps, &spec);
        let mut cx =
            JobContext { job: &job.0, maps: maps_of, stop, deadline, spec, handlers, staging, progress };
        let result = handler.handle(&job, &mut cx);
        let committed = result.and_then(|payload| {
            let committed = cx.commit(&Rules::default());
            committed.map(|effects| (payload, effects)).map_err(|error| HandlerError::Fail(error.detail))
        });
        let (result, effects) = match committed {
            Ok((payload, effects)) => (Ok(payload), effects),
            Err(error) => (Err(error), Effects::default()),
        };
        let context = maps.traces.get(&trace.id).unwrap_or(&job.0.context);
        Tried {
            result,
            state: in_order(&maps.state),
            context: in_order(context),
            follow_ups: effects.follow_ups,
            progress: said.into_inner(),
            is_late: false,
        }
    }
}

fn in_order(map: &Entries) -> BTreeMap<String, Vec<u8>> {
    map.iter().map(|(key, value)| (key.to_string(), value.to_vec())).collect()
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    fn chain(job: &Job, cx: &mut JobContext) -> Result<Payload, HandlerError> {
        cx.submit("next", job.payload().clone(), None, Duration::from_secs(1))?;
        cx.context().set("seen", *b"yes");
        let mut state = cx.state().ok_or("chain is ordered")?;
        state.set("n", *b"2");
        match (cx.delivery(), cx.is_cancelled()) {
            (1, false) => Err(HandlerError::Retry("not the first time".into())),
            (_, true) => Err("cancelled".into()),
            _ => Ok(job.payload().clone()),
        }
    }

    fn trial() -> Trial {
        let options = HandlerOptions::serial();
        Trial::new(Payload::json(*b"{}")).options(options).state("n", *b"1").context("old", *b"too")
    }

    #[test]
    fn what_a_handler_changes_is_there_with_its_success_and_only_then() {
        let tried = trial().beside("next", HandlerOptions::default()).delivery(2).run(&chain);
        assert_eq!(tried.result, Ok(Payload::json(*b"{}")));
        assert_eq!(tried.state, BTreeMap::from([("n".into(), b"2".to_vec())]));
        let context = [("old", "too"), ("seen", "yes")].map(|(k, v)| (k.to_owned(), v.as_bytes().to_vec()));
        assert_eq!(tried.context, context.into());
        let [next] = &tried.follow_ups[..] else { panic!("{:?}", tried.follow_ups) };
        assert_eq!((&*next.handler, next.delay), ("next", Duration::from_secs(1)));

        for (tried, why) in [
            (
                trial().beside("next", HandlerOptions::default()),
                HandlerError::Retry("not the first time".into()),
            ),
            (trial().beside("next", HandlerOptions::default()).cancelled(), "cancelled".into()),
            (trial().delivery(2), "there is no handler next".into()),
            (trial().beside("next", HandlerOptions::keyed("/k")), {
                "there is no ordering key: neither the header nor a scalar at /k".into()
            }),
        ] {
            let tried = tried.run(&chain);
            assert_eq!(tried.result, Err(why));
            assert_eq!(tried.state["n"], b"1");
            assert!(tried.follow_ups.is_empty() && !tried.context.contains_key("seen"));
        }
    }

    #[test]
    fn progress_is_json_of_at_most_a_kibibyte_and_what_is_none_is_left_out() {
        let says = |_: &Job, cx: &mut JobContext| {
            cx.progress(0.5);
            cx.progress(serde_json::json!({ "done": 1 }));
            cx.progress("x".repeat(1_022));
            cx.progress("x".repeat(1_023));
            cx.progress(BTreeMap::from([((1, 2), "keys of JSON are texts")]));
            Ok(Payload::json(*b"1"))
        };
        let tried = trial().run(&says);
        assert_eq!(tried.progress, ["0.5", r#"{"done":1}"#, &format!("\"{}\"", "x".repeat(1_022))]);
        assert!(trial().cancelled().run(&says).progress.is_empty());
    }

    #[test]
    fn what_no_commit_would_take_is_a_failure() {
        let large = |_: &Job, cx: &mut JobContext| {
            cx.context().set(&"k".repeat(2_000), *b"");
            Ok(Payload::json(*b"1"))
        };
        let Err(HandlerError::Fail(why)) = trial().run(&large).result else { panic!("it is taken") };
        assert!(why.contains("1024 bytes"), "{why}");
    }
}
