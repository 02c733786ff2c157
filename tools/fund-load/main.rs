//! The example embedder: the fund-load challenge as two handlers of a Cofferdam binary.
//!
//! `fund_load` follows the baseline rules, `fund_load_exp` the experiment's. Both are serial: one lane, one
//! state, lines decided strictly in their order.
#![forbid(unsafe_code)]

mod line;
mod rules;

use std::process::ExitCode;

use cofferdam::{App, HandlerError, HandlerOptions, Job, JobContext, Payload};
use rules::Rules;

fn main() -> ExitCode {
    App::new()
        .handler_with("fund_load", HandlerOptions::serial(), |job: &Job, cx: &mut JobContext| {
            decide(job, cx, Rules::Baseline)
        })
        .handler_with("fund_load_exp", HandlerOptions::serial(), |job: &Job, cx: &mut JobContext| {
            decide(job, cx, Rules::Experiment)
        })
        .main()
}

fn decide(job: &Job, cx: &mut JobContext, rules: Rules) -> Result<Payload, HandlerError> {
    let ids = line::Ids::read(&job.payload().bytes);
    let mut state = cx.state().ok_or_else(|| HandlerError::Fail("fund_load needs a serial lane".into()))?;
    let accepted = match ids.load() {
        Some(load) => rules::accepts(&mut state, &load, rules),
        None => false,
    };
    let text = format!(r#"{{"id":"{}","customer_id":"{}","accepted":{accepted}}}"#, ids.id, ids.customer);
    Ok(Payload::json(text.into_bytes()))
}
