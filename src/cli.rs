//! Arguments to a command, and a command's end to an exit code.

use std::ffi::OsString;
use std::io::IsTerminal;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::time::Duration;

use crate::batch::{BatchError, BatchOptions, Resume};
use crate::clock::Clock;
use crate::config::{self, Loaded, SinkMode, Source};
use crate::console::Trouble;
use crate::deployment::{Deployment, own_options};
use crate::execution::program::EXEC;
use crate::execution::{Registry, WorkerStart, running_job};
use crate::exit::{Exit, answer, complain, ended, say};
use crate::facts::Facts;
use crate::observe::{exporter, job_event, log_writer, visible};
use crate::options::Options;
use crate::ports::Fitness;
use crate::process::control_socket::Role;
use crate::process::{exec_shim, hygiene};
use crate::{console, roles, usage};

/// Names the config file where `--config` does not.
const CONFIG_VARIABLE: &str = "COFFERDAM_CONFIG";

/// A binary: its handlers, and what its users see of it.
pub struct Program {
    pub registry: Registry,
    /// What each process that runs handlers does first.
    pub worker_start: Option<WorkerStart>,
    pub name: String,
    pub version: String,
}

/// The whole command line.
pub fn main(program: &Program) -> ExitCode {
    let mut words = std::env::args_os().skip(1);
    if words.next().is_some_and(|command| command == EXEC) {
        let words: Result<Vec<String>, _> = words.map(OsString::into_string).collect();
        return ExitCode::from(exec_shim::exec(&words.unwrap_or_default()));
    }
    // A handler's panic becomes its job's error; its text may hold a payload and is not for the log.
    std::panic::set_hook(Box::new(|info| {
        let at = info.location().map(ToString::to_string).unwrap_or_default();
        let thread = std::thread::current().name().unwrap_or("main").to_owned();
        if let Some(job) = running_job() {
            let panicked = job_event(log::Level::Warn, "job.panicked", &job.trace, job.id, &job.handler);
            panicked.field("at", &at).emit();
        } else {
            complain(&format!("internal error: thread {thread} panicked at {at}: {info}"));
        }
    }));
    let arguments: Result<Vec<String>, _> = std::env::args_os().skip(1).map(OsString::into_string).collect();
    let exit = arguments
        .map_err(|bad| format!("an argument is not UTF-8: {}", bad.display()))
        .and_then(|arguments| run(&arguments, program))
        .unwrap_or_else(|message| {
            complain(&message);
            Exit::Usage
        });
    log_writer::settle();
    ExitCode::from(exit as u8)
}

/// Runs a command; an error is bad usage or a bad config.
fn run(arguments: &[String], program: &Program) -> Result<Exit, String> {
    let Program { registry, worker_start, name, version } = program;
    let overview = || usage::overview().replace("cofferdam", name);
    let Some(command) = arguments.first().map(String::as_str) else {
        say(std::io::stderr(), &overview());
        return Ok(Exit::Usage);
    };
    // What stands behind `--` is no option.
    let mut options = arguments.iter().take_while(|argument| *argument != "--");
    let wants_help = options.any(|argument| argument == "--help" || argument == "-h");
    if wants_help || command == "help" {
        let of = if command == "help" { arguments.get(1).map_or("", |of| of) } else { command };
        let page = usage::page(of).map(|page| page.replace("cofferdam", name));
        return match page {
            None if !of.is_empty() && !of.starts_with('-') => Err(format!("there is no command {of}")),
            page => Ok(answer(&page.unwrap_or_else(overview))),
        };
    }
    if matches!(command, "--version" | "-V") {
        return Ok(answer(&format!("{name} {version}\n")));
    }
    let mut options = Options::new(&arguments[1..]);
    if let Some(role) = Role::parse(command).filter(|_| options.flag("--supervised")) {
        options.finish()?;
        return Ok(roles::run_child(role, registry, worker_start.as_ref()));
    }
    match command {
        "serve" => {
            let takes_over = options.flag("--handover");
            serve(&load(&mut options, registry)?, program, None, takes_over)
        }
        "batch" => run_batch(&mut options, program),
        "check" => check(&mut options, program),
        "facts" => facts(&mut options, program),
        "run" => run_job(&mut options, program),
        "keygen" => keygen(&mut options),
        "health" => health(&mut options, registry),
        "web" => {
            let takes_over = options.flag("--handover");
            serve(&load_of_many(&mut options, registry)?, program, Some(&[]), takes_over)
        }
        "executor" => run_executor(&mut options, program),
        "token" => token(&mut options),
        "journal" => journal(&mut options),
        "jobs" | "lanes" | "handlers" | "top" => console::run(command, &mut options),
        unknown => Err(format!("there is no command {unknown}; see --help")),
    }
}

/// Takes `--config` and `--set`, reads everything, and reports all that is wrong.
fn load(options: &mut Options, registry: &Registry) -> Result<Loaded, String> {
    let mut environment = Vec::new();
    for (name, value) in std::env::vars_os() {
        let Some(name) = name.into_string().ok().filter(|name| name.starts_with("COFFERDAM_")) else {
            continue;
        };
        match value.into_string() {
            Ok(value) => environment.push((name, value)),
            Err(_) if name.contains("__") || name == CONFIG_VARIABLE => {
                return Err(format!("{name}: its value is not UTF-8"));
            }
            Err(_) => {}
        }
    }
    let named = environment.iter().find(|(name, file)| name == CONFIG_VARIABLE && !file.is_empty());
    let file = options.value("--config")?.or_else(|| named.map(|(_, file)| file.clone()));
    let sets = options.values("--set")?;
    let source = Source { file: file.map(PathBuf::from), environment, sets };
    options.finish()?;
    let loaded = config::load(&source, &own_options(registry)).map_err(|issues| {
        let lines: String =
            issues.iter().map(|issue| format!("\n  {}", visible(&issue.to_string()))).collect();
        let (count, plural) = (issues.len(), if issues.len() == 1 { "" } else { "s" });
        format!("the config has {count} error{plural}:{lines}")
    })?;
    loaded.warnings.iter().for_each(|warning| complain(warning));
    Ok(loaded)
}

/// The same for one of many processes: its broker must be where the others find it.
fn load_of_many(options: &mut Options, registry: &Registry) -> Result<Loaded, String> {
    let loaded = load(options, registry)?;
    let platform = &loaded.config.runtime.platform;
    let why = if platform.queue.backend == "memory" {
        "runtime.platform.queue.backend: a single process needs the redis backends (got memory; expected redis); \
         `serve` runs with memory"
    } else if platform.bootstrap.mode == "inline" {
        "runtime.platform.bootstrap.mode: inline runs web and executors together (got inline; expected \
         process_supervisor)"
    } else {
        return Ok(loaded);
    };
    Err(why.into())
}

/// What to run from, where these process groups run (`None`: all), and what its backend says of itself. Refuses what is not built yet, cannot be read or cannot be used.
fn deploy(
    loaded: &Loaded,
    program: &Program,
    groups: Option<&[String]>,
) -> Result<(Deployment, Option<Fitness>), String> {
    let unbuilt = config::unbuilt(&loaded.config);
    if !unbuilt.is_empty() {
        return Err(format!("this config is valid but cannot be started:\n  {}", unbuilt.join("\n  ")));
    }
    // Before a secret is read, or made: nobody may look into this process any more.
    hygiene::keep_secrets().map_err(|error| error.to_string())?;
    if let Some(file) = &loaded.config.runtime.platform.execution_ipc.auth.secret_file {
        let read = config::secret::Secret::read_all(Path::new(file));
        drop(read.map_err(|why| format!("runtime.platform.execution_ipc.auth.secret_file: {why}"))?);
    }
    let mut deployment = Deployment::new(loaded, &program.registry, Clock::system());
    deployment.worker_start = program.worker_start.clone();
    deployment.tokens = deployment.read_tokens().map_err(|why| format!("web.auth.token_file: {why}"))?;
    deployment.platform().process_groups.iter().try_for_each(|group| deployment.account(group).map(drop))?;
    let wrong =
        deployment.vet_programs(|group| groups.is_none_or(|groups| groups.iter().any(|one| one == group)));
    let left_open = if deployment.has_programs() { hygiene::left_open() } else { Vec::new() };
    if !left_open.is_empty() {
        complain(&format!(
            "warning: whoever started this left descriptors open, which programs will have, too: {}",
            left_open.join(", ")
        ));
    }
    if !wrong.is_empty() {
        return Err(format!("these programs cannot be run:\n  {}", wrong.join("\n  ")));
    }
    match deployment.fitness(None)? {
        Some(Fitness::Unfit(why)) => {
            Err(format!("runtime.platform.redis: this server cannot be used: {why}"))
        }
        fitness => Ok((deployment, fitness)),
    }
}

/// The same, where the log has begun. A backend that is away now is waited for later.
fn start(
    loaded: &Loaded,
    program: &Program,
    role: &'static str,
    groups: Option<&[String]>,
) -> Result<Deployment, String> {
    let (deployment, fitness) = deploy(loaded, program, groups)?;
    let traces = &deployment.config.observability.traces.file;
    let opened = traces.as_deref().map(|file| exporter::open(Path::new(file))).transpose();
    drop(opened.map_err(|why| format!("observability.traces.file: {why}"))?);
    let role = if role == "serve" && deployment.is_inline() { "inline" } else { role };
    log_writer::start(deployment.config.observability.log, role, "");
    match fitness {
        Some(Fitness::Fit(promise)) => log::info!("{promise}"),
        Some(Fitness::Away(why)) => log::warn!("the backend is away, and is waited for: {why}"),
        Some(Fitness::Unfit(_)) | None => {}
    }
    Ok(deployment)
}

/// `serve`, and what has a supervisor and only some of the executors.
fn serve(
    loaded: &Loaded,
    program: &Program,
    groups: Option<&[String]>,
    takes_over: bool,
) -> Result<Exit, String> {
    let config = &loaded.config;
    if takes_over && config.runtime.platform.bootstrap.mode == "inline" {
        return Err("--handover needs runtime.platform.bootstrap.mode process_supervisor (got inline)".into());
    }
    if takes_over && config.web.bind.ends_with(":0") {
        return Err(
            "--handover needs a port in web.bind, where a process that comes later looks for this one".into(),
        );
    }
    Ok(ended(roles::serve(&start(loaded, program, "serve", groups)?, groups, takes_over)))
}

/// `executor`: `serve` for some executors, whose web process strangers need not reach.
fn run_executor(options: &mut Options, program: &Program) -> Result<Exit, String> {
    let named = options.values("--group")?;
    let mut loaded = load_of_many(options, &program.registry)?;
    if !loaded.origins.contains_key("web.bind") {
        loaded.config.web.bind = "127.0.0.1:0".into();
        loaded.value["web"]["bind"] = "127.0.0.1:0".into();
    }
    let groups = &loaded.config.runtime.platform.process_groups;
    let known: Vec<&str> = groups.iter().map(|group| group.name.as_str()).collect();
    if named.iter().any(|name| !known.contains(&name.as_str())) {
        return Err(format!("executor: --group is one of {}", known.join(", ")));
    }
    serve(&loaded, program, Some(&*named).filter(|named| !named.is_empty()), false)
}

fn run_batch(options: &mut Options, program: &Program) -> Result<Exit, String> {
    let handler = options.value("--handler")?.ok_or("batch needs --handler NAME")?;
    let sink_mode = options.value("--sink-mode")?;
    let none = |mode: &str| format!("--sink-mode is source_seq or completion, not {mode}");
    let sink_mode = sink_mode.map(|mode| SinkMode::parse(&mode).ok_or_else(|| none(&mode))).transpose()?;
    let shows_progress = match options.value("--progress")?.as_deref() {
        None | Some("auto") => std::io::stderr().is_terminal(),
        Some("always") => true,
        Some("never") => false,
        Some(other) => return Err(format!("--progress is auto, always or never, not {other}")),
    };
    let input = options.value("--input")?.map(PathBuf::from);
    let output = options.value("--output")?.map(PathBuf::from);
    let is_alone = options.is_alone("--resume");
    let lines = options
        .value("--resume")?
        .map(|lines| lines.parse().map_err(|_| format!("--resume is a number of lines, not {lines}")));
    let lines: Option<u64> = lines.transpose()?;
    let resume = lines.map(Resume::Lines).or(is_alone.then_some(Resume::Journal));
    let deployment = start(&load(options, &program.registry)?, program, "batch", None)?;
    let options = BatchOptions { handler, input, output, sink_mode, shows_progress, resume };
    let end = roles::run_batch(&deployment, &options);
    log_writer::settle();
    match end {
        Ok(summary) => {
            let before = deployment.journal().is_none().then(|| lines.unwrap_or(0));
            summary.complaints(before).iter().for_each(|complaint| complain(complaint));
            Ok(summary.exit())
        }
        Err(BatchError::Usage(message)) => Err(message),
        Err(BatchError::Failed(message)) => Ok(ended(Err(message))),
    }
}

fn run_job(options: &mut Options, program: &Program) -> Result<Exit, String> {
    let [payload, key, state] = ["--payload", "--key", "--state"].map(|name| options.value(name));
    let (payload, key, state) = (payload?, key?, state?);
    let handler = options.positional().ok_or("run needs the name of a handler")?;
    let run = roles::RunOptions { handler, payload, key, state };
    let deployment = start(&load(options, &program.registry)?, program, "run", None)?;
    let exit = roles::run_job(&deployment, &run);
    log_writer::settle();
    exit
}

fn check(options: &mut Options, program: &Program) -> Result<Exit, String> {
    if options.flag("--reference") {
        options.finish()?;
        return Ok(answer(&config::reference()));
    }
    let as_json = options.flag("--json");
    let loaded = load(options, &program.registry)?;
    let text =
        if as_json { format!("{:#}\n", config::normalised(&loaded)) } else { config::summary(&loaded) };
    let said = answer(&text);
    match deploy(&loaded, program, None)?.1 {
        Some(Fitness::Fit(promise)) if !as_json => return Ok(answer(&format!("{promise}\n"))),
        Some(Fitness::Away(why)) => return Ok(ended(Err(format!("the backend cannot be reached: {why}")))),
        Some(Fitness::Fit(_) | Fitness::Unfit(_)) | None => {}
    }
    Ok(said)
}

/// `facts`: nothing is vetted, opened or started for it.
fn facts(options: &mut Options, program: &Program) -> Result<Exit, String> {
    let as_json = options.flag("--json");
    let loaded = load(options, &program.registry)?;
    let facts = Facts::of(&program.name, &program.version, &program.registry, &loaded);
    Ok(answer(&if as_json { format!("{:#}\n", facts.json()) } else { facts.text() }))
}

fn keygen(options: &mut Options) -> Result<Exit, String> {
    let output = options.value("--output")?.map(PathBuf::from);
    options.finish()?;
    let made = config::secret::keygen(output.as_deref());
    Ok(ended(made.map(|()| Exit::Done).map_err(|message| format!("keygen: {message}"))))
}

/// `token`: a new token, and below it its line of the token file.
fn token(options: &mut Options) -> Result<Exit, String> {
    let (scopes, handlers) = (options.value("--scopes")?, options.value("--handlers")?);
    let name = options.positional().ok_or("token needs the NAME that jobs belong to")?;
    options.finish()?;
    let (scopes, handlers) = (scopes.unwrap_or("submit,read".into()), handlers.unwrap_or("*".into()));
    let (token, line) =
        config::tokens::make(&name, &scopes, &handlers).map_err(|why| format!("token: {why}"))?;
    Ok(answer(&format!("{}\n{line}\n", *token)))
}

/// `journal`: looks at the directory of one.
fn journal(options: &mut Options) -> Result<Exit, String> {
    let secret_file = options.value("--secret-file")?.map(PathBuf::from);
    let drop_after = options.value("--drop-after")?;
    let words = (options.positional(), options.positional());
    options.finish()?;
    let (Some(what), Some(dir)) = words else {
        return Err("journal needs check, export or repair, and the DIR of a journal".into());
    };
    let question = match (what.as_str(), drop_after) {
        ("check", None) => roles::Question::Check,
        ("export", None) => roles::Question::Export,
        ("repair", Some(place)) => {
            let (segment, offset) =
                place.rsplit_once(':').map_or((None, &*place), |(segment, offset)| (Some(segment), offset));
            let segment = segment.map(|segment| segment.trim_end_matches(".log").parse()).transpose();
            let numbers = segment.ok().zip(offset.parse().ok());
            let (segment, offset) =
                numbers.ok_or_else(|| format!("--drop-after is SEGMENT:OFFSET or OFFSET, not {place}"))?;
            roles::Question::Repair { segment, offset }
        }
        ("repair", None) => return Err("repair needs --drop-after: where what is kept ends".into()),
        ("check" | "export", Some(_)) => return Err("--drop-after is repair's".into()),
        (other, _) => return Err(format!("journal does check, export and repair, not {other}")),
    };
    let done = roles::journal(Path::new(&dir), secret_file.as_deref(), &question);
    Ok(ended(done.map_err(|why| format!("journal: {why}"))))
}

/// `health`: asks a running service, the one of this configuration unless a URL is given, whether it is ready.
fn health(options: &mut Options, registry: &Registry) -> Result<Exit, String> {
    let token = options.value("--token-file")?.map(|file| console::read_token(&file)).transpose()?;
    let url = match options.value("--url")? {
        Some(url) => {
            options.finish()?;
            url
        }
        None => format!("http://{}", reachable(&load(options, registry)?.config.web.bind)?),
    };
    let mut client = console::Client::new(&url, token)?;
    client.patience = PATIENCE;
    let end = match client.ask("GET", "/readyz", &[], b"") {
        Ok(reply) if reply.status == 200 => Ok(Exit::Done),
        Ok(reply) => {
            let said = visible(&String::from_utf8_lossy(&reply.body));
            Err(format!("health: {url} is not ready: {said}"))
        }
        Err(Trouble { why, .. }) => Err(format!("health: {why}")),
    };
    Ok(ended(end))
}

/// Where a service that is bound to this address answers on its own host.
fn reachable(bind: &str) -> Result<String, String> {
    let mut address: SocketAddr = bind.parse().map_err(|_| format!("web.bind: {bind} is no address"))?;
    if address.port() == 0 {
        return Err("health: web.bind is any free port; say which with --url".into());
    }
    if address.ip().is_unspecified() {
        let (v4, v6) = (IpAddr::from(Ipv4Addr::LOCALHOST), IpAddr::from(Ipv6Addr::LOCALHOST));
        address.set_ip(if address.is_ipv4() { v4 } else { v6 });
    }
    Ok(address.to_string())
}

/// What `health` waits for a service.
const PATIENCE: Duration = Duration::from_secs(5);
