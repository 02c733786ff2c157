//! A handler's part of the configuration, and what it says of one that is a program.
#![allow(missing_docs, reason = "a section says what it is by its keys")]

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};
use serde_json::Value;

use super::key::{COUNT, FROM_0, Key, Kind, USER, keys};
use crate::handler::HandlerOptions;

/// Options of any handler, and what it is if it is a program.
#[derive(Clone, Debug, Deserialize)]
pub struct HandlerConfig {
    #[serde(flatten)]
    pub options: HandlerOptions,
    /// `None`: a function of this binary.
    #[serde(flatten)]
    pub program: Option<Program>,
}

/// A program that does jobs.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
pub struct Program {
    /// The program and its arguments.
    pub command: Vec<String>,
    pub mode: ProgramMode,
    #[serde(default)]
    pub env: BTreeMap<String, String>,
    pub dir: Option<String>,
    pub max_output_bytes: usize,
    pub stop_grace_ms: u64,
    pub max_jobs: u64,
    pub idle_ms: u64,
    pub user: Option<Value>,
    #[serde(default)]
    pub limits: Limits,
}

/// How a program takes jobs.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum ProgramMode {
    /// A process a job.
    Once,
    /// A process for many jobs, one after the other.
    Worker,
}

/// Limits of a program's processes (setrlimit(2)).
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize, Serialize)]
#[serde(default)]
pub struct Limits {
    #[serde(skip_serializing_if = "Option::is_none")]
    pub memory_mb: Option<u64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub cpu_seconds: Option<u64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub processes: Option<u64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub open_files: Option<u64>,
}

const COMMAND: Kind =
    Kind::Shape("list", is_command, "a list of strings: the program, not empty, and its arguments");
const TEXT_MAP: Kind = Kind::Shape("object", is_environment, "an object of strings; a name has no =");

/// Options of a handler that is a program, beside those of any.
pub(super) const COMMAND_KEYS: &[Key] = keys! {
    /// A program and its arguments. A name without a slash is looked for in PATH; in a config file a relative path is relative to that.
    command = null, COMMAND;
    /// A process a job: its payload is standard input, its result standard output. Or a process for many jobs, a line each.
    mode = "once", Kind::OneOf(&["once", "worker"]);
    /// Its environment, beside PATH, HOME and LANG as they are here, and what tells of the job.
    env = null, TEXT_MAP;
    /// Its working directory; none is that of the service.
    dir = null, Kind::Path;
    /// The most that it may write of a job, to standard output and to standard error each; beyond it it is killed.
    max_output_bytes = 1_048_576, Kind::Int(1, 67_108_864);
    /// How long it may take to stop, after SIGTERM, before SIGKILL.
    stop_grace_ms = 2_000, Kind::Int(0, 600_000);
    /// A worker is replaced after so many jobs; 0 is never.
    max_jobs = 0, Kind::Int(0, 1 << 40);
    /// A worker that had no job for so long is stopped.
    idle_ms = 300_000, COUNT;
    /// The user that it runs as, a name or a number; another than ours needs root.
    user = null, USER;
    limits = null, Kind::Optional(LIMIT_KEYS);
};
const LIMIT_KEYS: &[Key] = keys! {
    /// Address space of each of its processes (RLIMIT_AS).
    memory_mb = null, Kind::Int(1, 1 << 24);
    /// Processor time of each of its processes (RLIMIT_CPU).
    cpu_seconds = null, COUNT;
    /// Processes and threads of its user, others' included (RLIMIT_NPROC; root has no such limit).
    processes = null, FROM_0;
    /// Open files of each of its processes (RLIMIT_NOFILE); none: 1,024.
    open_files = null, Kind::Int(3, 1 << 20);
};

fn is_command(value: &Value) -> bool {
    let is_word = |word: &Value| word.as_str().is_some_and(|word| !word.contains('\0'));
    value.as_array().is_some_and(|list| !list.is_empty() && list[0] != "" && list.iter().all(is_word))
}

fn is_environment(value: &Value) -> bool {
    let is_variable = |(name, value): (&String, &Value)| {
        !name.is_empty()
            && !name.contains(['=', '\0'])
            && value.as_str().is_some_and(|value| !value.contains('\0'))
    };
    value.as_object().is_some_and(|map| map.iter().all(is_variable))
}
