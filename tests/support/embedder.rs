//! An embedder's binary for the lifecycle tests: handlers whose effects can be counted, and children that end at
//! their start when a test asks for it.
//!
//! `COFFERDAM_TEST_FAULT` names a file. While it is there and reads `ROLE WORDS`, each new child of that role says
//! the words and ends with exit code 7.
#![forbid(unsafe_code)]

use std::fs::File;
use std::process::ExitCode;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use cofferdam::{App, HandlerError, HandlerOptions, Job, JobContext, Payload};

fn main() -> ExitCode {
    let fault = std::env::var_os("COFFERDAM_TEST_FAULT").map(std::fs::read_to_string);
    if let Some(Ok(fault)) = fault
        && let Some((role, words)) = fault.split_once(' ')
        && std::env::args().nth(1).as_deref() == Some(role)
    {
        // As a child of ours that fails: its control socket is closed a moment before its last words.
        if let Ok(null) = File::open("/dev/null") {
            let _ = rustix::stdio::dup2_stdin(&null);
        }
        std::thread::sleep(Duration::from_millis(30));
        eprintln!("{words}");
        return ExitCode::from(7);
    }
    let once = HandlerOptions::default();
    App::new()
        .about("embedder", "9.8.7")
        .on_worker_start(|| {
            STARTS.fetch_add(1, Ordering::SeqCst);
            std::env::var("COFFERDAM_TEST_START").map_or(Ok(()), Err)
        })
        .handler_with("print", once.clone(), print)
        .handler_with("starts", once.clone(), |_: &Job, _: &mut JobContext| {
            Ok(Payload::json(STARTS.load(Ordering::SeqCst).to_string().into_bytes()))
        })
        .handler_with("count", HandlerOptions::serial(), count)
        .handler_with("flaky", once.clone(), flaky)
        .handler_with("stubborn", once.clone(), stubborn)
        .handler_with("panics", once.clone(), panics)
        .handler_with("wall", once, wall)
        .main()
}

/// How often this process has begun to run handlers.
static STARTS: AtomicUsize = AtomicUsize::new(0);

/// Prints its payload, and so many bytes more, and returns the payload.
fn print(job: &Job, _: &mut JobContext) -> Result<Payload, HandlerError> {
    let text = String::from_utf8_lossy(&job.payload().bytes).into_owned();
    println!("printed {text} {}", ".".repeat(text.parse().unwrap_or(0)));
    Ok(job.payload().clone())
}

fn ms(job: &Job) -> Result<Duration, HandlerError> {
    let text = String::from_utf8_lossy(&job.payload().bytes).into_owned();
    text.parse().map(Duration::from_millis).map_err(|_| HandlerError::Fail("not a number of ms".into()))
}

/// Adds one to its lane's number, takes so many ms, and says the number.
fn count(job: &Job, cx: &mut JobContext) -> Result<Payload, HandlerError> {
    let ms = ms(job)?;
    let mut state = cx.state().ok_or_else(|| HandlerError::Fail("count is serial".into()))?;
    let before = state.get("n").and_then(|n| std::str::from_utf8(n).ok()?.parse().ok()).unwrap_or(0_u64);
    let text = (before + 1).to_string();
    state.set("n", text.clone().into_bytes());
    let _ = cx.sleep(ms);
    Ok(Payload::json(text.into_bytes()))
}

/// Wants to be tried again until the delivery of this number.
fn flaky(job: &Job, cx: &mut JobContext) -> Result<Payload, HandlerError> {
    let wanted: u32 = String::from_utf8_lossy(&job.payload().bytes).parse().unwrap_or(1);
    match cx.delivery() < wanted {
        true => Err(HandlerError::Retry("not yet".into())),
        false => Ok(Payload::json(cx.delivery().to_string().into_bytes())),
    }
}

/// Takes so many ms, whatever its deadline says.
fn stubborn(job: &Job, _: &mut JobContext) -> Result<Payload, HandlerError> {
    std::thread::sleep(ms(job)?);
    Ok(Payload::json(b"true".to_vec()))
}

/// Panics with its payload in its words.
fn panics(job: &Job, _: &mut JobContext) -> Result<Payload, HandlerError> {
    panic!("{}", String::from_utf8_lossy(&job.payload().bytes))
}

/// The wall clock's seconds, as its process sees them.
fn wall(_: &Job, _: &mut JobContext) -> Result<Payload, HandlerError> {
    let seconds = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default().as_secs();
    Ok(Payload::json(seconds.to_string().into_bytes()))
}
