//! An embedder's binary for the lifecycle tests: handlers whose effects can be counted, and children that end at
//! their start when a test asks for it.
//!
//! `COFFERDAM_TEST_FAULT` names a file. While it is there and reads `ROLE WORDS`, each new child of that role says
//! the words and ends with exit code 7; with `ROLE +MS WORDS` so long after it serves.
#![forbid(unsafe_code)]

use std::fs::File;
use std::io::{Read, Write};
use std::os::unix::net::UnixStream;
use std::process::{Command, ExitCode};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use rustix::process::{Resource, Rlimit, setrlimit};

use cofferdam::{App, HandlerError, HandlerOptions, Job, JobContext, Payload};

fn main() -> ExitCode {
    let fault = std::env::var_os("COFFERDAM_TEST_FAULT").map(std::fs::read_to_string);
    if let Some(Ok(fault)) = fault
        && let Some((role, words)) = fault.split_once(' ')
        && std::env::args().nth(1).as_deref() == Some(role)
    {
        if let Some((ms, words)) = words.strip_prefix('+').and_then(|rest| rest.split_once(' ')) {
            end_once_it_serves(role, Duration::from_millis(ms.parse().unwrap_or_default()), words.to_owned());
            return app().main();
        }
        // As a child of ours that fails: its control socket is closed a moment before its last words.
        if let Ok(null) = File::open("/dev/null") {
            let _ = rustix::stdio::dup2_stdin(&null);
        }
        std::thread::sleep(Duration::from_millis(30));
        eprintln!("{words}");
        return ExitCode::from(7);
    }
    app().main()
}

fn app() -> App {
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
        .handler_with("pair", HandlerOptions::serial(), pair)
        .handler_with("flaky", once.clone(), flaky)
        .handler_with("stubborn", once.clone(), stubborn)
        .handler_with("panics", once.clone(), panics)
        .handler_with("wall", once.clone(), wall)
        .handler_with("say", once.clone(), say)
        .handler_with("orphan", once.clone(), orphan)
        .handler_with("twice", once.clone(), twice)
        .handler_with("look", once.clone(), look)
        .handler_with("poison", once, poison)
        .handler_with("poison-lane", HandlerOptions::serial(), poison)
}

/// A child serves once it has all its sockets: an executor the one to its supervisor and the one to the broker; web besides
/// both listeners, that of its inner server, and both ends of six connections to that.
fn end_once_it_serves(role: &str, after: Duration, words: String) {
    let (web, executor) = (16, 2);
    let sockets = if role == "web" { web } else { executor };
    let serves = move || {
        let links = std::fs::read_dir("/proc/self/fd").into_iter().flatten().flatten();
        let targets = links.filter_map(|link| std::fs::read_link(link.path()).ok());
        targets.filter(|target| target.to_string_lossy().starts_with("socket:")).count() >= sockets
    };
    std::thread::spawn(move || {
        while !serves() {
            std::thread::sleep(Duration::from_millis(1));
        }
        std::thread::sleep(after);
        eprintln!("{words}");
        std::process::exit(7);
    });
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

/// The same on a lane whose state has another entry, which the first job makes and no other one changes.
fn pair(job: &Job, cx: &mut JobContext) -> Result<Payload, HandlerError> {
    let mut state = cx.state().ok_or_else(|| HandlerError::Fail("pair is serial".into()))?;
    if state.get("begun").is_none() {
        state.set("begun", b"true".to_vec());
    }
    count(job, cx)
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

/// Writes its payload to standard error, as a handler's debugging does.
fn say(job: &Job, _: &mut JobContext) -> Result<Payload, HandlerError> {
    let written = std::io::stderr().write_all(&job.payload().bytes);
    written.map_err(|error| HandlerError::Fail(error.to_string()))?;
    Ok(Payload::json(b"true".to_vec()))
}

/// Leaves a process in the background, which ends a little later.
fn orphan(_: &Job, _: &mut JobContext) -> Result<Payload, HandlerError> {
    let status = Command::new("/bin/sh").args(["-c", "sleep 0.1 </dev/null >/dev/null 2>&1 &"]).status();
    match status {
        Ok(status) if status.success() => Ok(Payload::json(b"true".to_vec())),
        failed => Err(HandlerError::Fail(format!("{failed:?}"))),
    }
}

/// Follows itself up twice.
fn twice(job: &Job, cx: &mut JobContext) -> Result<Payload, HandlerError> {
    for _ in 0..2 {
        let submitted = cx.submit("twice", job.payload().clone(), None, Duration::ZERO);
        submitted.map_err(|error| HandlerError::Fail(format!("{error:?}")))?;
    }
    Ok(Payload::json(b"true".to_vec()))
}

/// Looks around as what has taken over its process would: each line of the payload is a file to read, or `connect PATH`
/// and what to say there. Gives what it could read, and of each of its own rights a line.
fn look(job: &Job, _: &mut JobContext) -> Result<Payload, HandlerError> {
    let payload = String::from_utf8_lossy(&job.payload().bytes).into_owned();
    let mut found: Vec<String> =
        payload.lines().map(|line| look_at(line).unwrap_or_else(|no| format!("no: {no}"))).collect();
    let status = std::fs::read_to_string("/proc/self/status").unwrap_or_default();
    let rights =
        |line: &&str| ["Uid:", "Gid:", "Groups:", "NoNewPrivs:"].iter().any(|name| line.starts_with(name));
    found.extend(status.lines().filter(rights).map(str::to_owned));
    Ok(Payload::json(serde_json::json!(found).to_string().into_bytes()))
}

fn look_at(line: &str) -> std::io::Result<String> {
    let mut bytes = Vec::new();
    if let Some((path, said)) = line.strip_prefix("connect ").and_then(|rest| rest.split_once(' ')) {
        let mut stream = UnixStream::connect(path)?;
        stream.set_read_timeout(Some(Duration::from_secs(2)))?;
        write!(stream, "GET {said} HTTP/1.1\r\nHost: inner\r\nConnection: close\r\n\r\n")?;
        stream.take(400).read_to_end(&mut bytes)?;
    } else {
        File::open(line)?.take(400).read_to_end(&mut bytes)?;
    }
    Ok(format!("yes: {}", String::from_utf8_lossy(&bytes)))
}

/// Ends its process if its payload says how; sleeps for so many ms otherwise, and gives its payload.
fn poison(job: &Job, cx: &mut JobContext) -> Result<Payload, HandlerError> {
    match &*String::from_utf8_lossy(&job.payload().bytes) {
        "abort" => std::process::abort(),
        // As a web process ends that its successor would follow.
        "exit" => std::process::exit(2),
        "overflow" => Ok(Payload::json(deeper(1).to_string().into_bytes())),
        "hog" => {
            // As a limit of its host would end it, and not the host.
            let limit = Rlimit { current: Some(4 << 30), maximum: Some(4 << 30) };
            setrlimit(Resource::As, limit).map_err(|error| HandlerError::Fail(error.to_string()))?;
            let mut held = Vec::new();
            loop {
                held.push(vec![0_u8; 256 << 20]);
                std::hint::black_box(&held);
            }
        }
        _ => {
            let _ = cx.sleep(ms(job)?);
            Ok(job.payload().clone())
        }
    }
}

/// Without an end; nothing makes a loop of it.
fn deeper(depth: u64) -> u64 {
    let page = std::hint::black_box([depth; 512]);
    if page[0] == 0 {
        return 0;
    }
    deeper(depth + 1) + page[usize::try_from(depth % 512).unwrap_or(0)]
}
