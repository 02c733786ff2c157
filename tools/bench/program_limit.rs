//! What programs cost without Cofferdam: `bench-program-limit spawn|lines SECONDS THREADS PROGRAM [ARGUMENT]...`
//!
//! `spawn` starts the program and waits for its end, again and again on each thread. `lines` starts one a thread, and asks it
//! with a line like those of docs/workers.md and waits for its line, again and again. It prints how many a second.
//!
//! It guards the figures of programs against being compared with a guess.
#![forbid(unsafe_code)]

use std::io::{BufRead, BufReader, Write};
use std::process::{Command, ExitCode, Stdio};
use std::time::{Duration, Instant};

const QUESTION: &[u8] = br#"{"id":"0123456789abcdef0123456789abcdef","delivery":1,"fence":1795953198990176,"handler":"echo","key":null,"trace":"00-0123456789abcdef0123456789abcdef-0123456789abcdef-01","tracestate":null,"deadline_ms":1795953228990,"media_type":"application/json","payload":{"a":1,"b":"xxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxx"},"context":{}}
"#;

fn main() -> ExitCode {
    let words: Vec<String> = std::env::args().skip(1).collect();
    let [kind, seconds, threads, program @ ..] = &words[..] else { return ExitCode::from(2) };
    let (Ok(seconds), Ok(threads), false) = (seconds.parse(), threads.parse::<usize>(), program.is_empty())
    else {
        return ExitCode::from(2);
    };
    let work: fn(&[String], Instant) -> std::io::Result<u64> = if kind == "spawn" { spawn } else { lines };
    let begun = Instant::now();
    let until = begun + Duration::from_secs_f64(seconds);
    let counts: Vec<std::io::Result<u64>> = std::thread::scope(|scope| {
        let threads: Vec<_> = (0..threads).map(|_| scope.spawn(|| work(program, until))).collect();
        threads.into_iter().map(|thread| thread.join().expect("it does not panic")).collect()
    });
    let elapsed = begun.elapsed().as_secs_f64();
    match counts.into_iter().sum::<std::io::Result<u64>>() {
        Ok(count) => {
            println!("{:.1}", count as f64 / elapsed);
            ExitCode::SUCCESS
        }
        Err(error) => {
            eprintln!("{error}");
            ExitCode::FAILURE
        }
    }
}

fn command(program: &[String]) -> Command {
    let mut command = Command::new(&program[0]);
    command.args(&program[1..]);
    command
}

fn spawn(program: &[String], until: Instant) -> std::io::Result<u64> {
    let mut count = 0;
    while Instant::now() < until {
        let mut child = command(program);
        let child = child.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn()?;
        child.wait_with_output()?;
        count += 1;
    }
    Ok(count)
}

fn lines(program: &[String], until: Instant) -> std::io::Result<u64> {
    let mut child = command(program).stdin(Stdio::piped()).stdout(Stdio::piped()).spawn()?;
    let (Some(mut input), Some(output)) = (child.stdin.take(), child.stdout.take()) else { return Ok(0) };
    let (mut output, mut line, mut count) = (BufReader::new(output), Vec::new(), 0);
    while Instant::now() < until {
        input.write_all(QUESTION)?;
        line.clear();
        if output.read_until(b'\n', &mut line)? == 0 {
            return Err(std::io::Error::other("it has ended"));
        }
        count += 1;
    }
    drop(input);
    child.wait()?;
    Ok(count)
}
