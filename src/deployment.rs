//! What every process of a deployment starts from, and the one place that opens a backend. Nobody else asks which it is:
//! what differs is a field of [`Backend`], or a question answered here.

use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use crate::bell::Bell;
use crate::channel::keys::GroupSecret;
use crate::channel::{ChannelServer, ServerConfig};
use crate::clock::{Clock, millis};
use crate::config::secret::Secret;
use crate::config::{Config, Journal, Loaded, Platform, ProcessGroup, Program, Retain, WebAuth, tokens};
use crate::entropy::Entropy;
use crate::execution::program::{self, ProgramHandler, User};
use crate::execution::{Handlers, Outfit, Registry, WorkerStart};
use crate::handler::{HandlerSpec, OwnOptions};
use crate::journal::{self, Files, Log};
use crate::limits::BATCH_RECORDS;
use crate::memory::broker::Broker;
use crate::memory::{Keeping, MemoryBroker};
use crate::ndjson::LineIds;
use crate::observe::metrics::Counters;
use crate::ports::{Consumer, Fitness, Producer, Replies, Rules, Seat};
use crate::process::account::Account;
use crate::process::control_socket::Bundle;
use crate::process::program_vet;

/// The options that registered handlers bring along, for the config's defaults.
pub fn own_options(registry: &Registry) -> OwnOptions {
    registry.iter().map(|(name, (options, _))| (name.clone(), options.clone())).collect()
}

/// The user that a program runs as; `None`: ours.
fn user_of(program: &Program) -> Result<User, String> {
    let found = program.user.as_ref().map(Account::find).transpose()?;
    Ok(found.map(|account| (account.user, account.group)))
}

/// An open backend, as its ports.
#[derive(Clone)]
pub struct Backend {
    pub producer: Arc<dyn Producer>,
    pub replies: Arc<dyn Replies>,
    pub seat: Arc<dyn Seat>,
    pub consumers: Consumers,
    /// A call may wait for a network: nothing that others wait for may make it.
    pub calls_may_wait: bool,
    pub rekey: Rekey,
}

/// What is kept is signed with the first of these from now on, and no others are known: see [`Deployment::at_rest`]. A journal goes
/// on with the one of its start: a segment is of one key, or what follows in it would be taken for cut off.
pub type Rekey = Arc<dyn Fn(&[Secret]) + Send + Sync>;

/// Makes an executor of a group, by its index; the bell rings when a step would bring something.
pub type Consumers = Arc<dyn Fn(usize, Bell) -> Box<dyn Consumer> + Send + Sync>;

/// See the module.
#[derive(Clone)]
pub struct Deployment {
    pub config: Config,
    /// The normalised config as JSON text: what children are given.
    pub config_text: Arc<str>,
    pub registry: Registry,
    /// Those of its handlers that are programs.
    programs: Vec<Arc<ProgramHandler>>,
    /// Name, group and options of each handler.
    pub specs: Vec<HandlerSpec>,
    pub clock: Clock,
    /// What each process that runs handlers does first.
    pub worker_start: Option<WorkerStart>,
    /// The token file's text, where there is one.
    pub tokens: String,
}

impl Deployment {
    /// From a config that passed.
    pub fn new(loaded: &Loaded, registry: &Registry, clock: Clock) -> Deployment {
        Deployment::of(loaded.config.clone(), loaded.value.to_string().into(), registry, clock)
    }

    fn of(config: Config, config_text: Arc<str>, registry: &Registry, clock: Clock) -> Deployment {
        let groups = &config.runtime.platform.process_groups;
        let specs = config.handlers.iter().map(|(name, handler)| {
            let group = config.runtime.platform.groups_of(name).first().copied().unwrap_or(0);
            let named = &groups[group].follow_ups;
            let follow_ups = named.iter().all(|name| name != "*").then(|| Arc::from(&**named));
            HandlerSpec { follow_ups, ..HandlerSpec::new(&**name, group, handler.options.clone()) }
        });
        let (specs, mut registry) = (specs.collect(), registry.clone());
        let mut programs = Vec::new();
        for (name, handler) in &config.handlers {
            let Some(program) = &handler.program else { continue };
            let code = Arc::new(ProgramHandler::new(name, program.clone(), user_of(program)));
            programs.push(code.clone());
            registry.insert(name.clone(), (handler.options.clone(), code));
        }
        Deployment {
            specs,
            config,
            config_text,
            registry,
            programs,
            clock,
            worker_start: None,
            tokens: String::new(),
        }
    }

    /// The one that the supervisor has, made again from the normalised config.
    pub fn from_bundle(bundle: &Bundle, registry: &Registry) -> Result<Deployment, String> {
        let config = serde_json::from_str(&bundle.config).map_err(|error| error.to_string())?;
        let clock = Clock::System { offset: bundle.clock_offset };
        let deployment = Deployment::of(config, bundle.config.as_str().into(), registry, clock);
        Ok(Deployment { tokens: bundle.tokens.clone(), ..deployment })
    }

    /// The bundle of an executor of this group: its channel secret, and nothing that signs anything at rest.
    pub fn executor_bundle(&self, root: &Secret, group: usize) -> Bundle {
        self.bundle(group, vec![GroupSecret::derive(root, &self.groups()[group])], Path::new(""))
    }

    /// The user that executors of this group run as; `None`: ours.
    pub fn account(&self, group: &ProcessGroup) -> Result<Option<Account>, String> {
        let found = group.user.as_ref().map(Account::find).transpose();
        found.map_err(|why| format!("process group {}: user: {why}", group.name))
    }

    /// The bundle of a web process: the channel secrets of all groups, and what is signed with at rest, where that is
    /// used.
    pub fn web_bundle(&self, roots: &[Secret], private_dir: &Path) -> Bundle {
        Bundle { tokens: self.tokens.clone(), ..self.bundle(0, self.web_secrets(roots), private_dir) }
    }

    /// Its secrets.
    pub fn web_secrets(&self, roots: &[Secret]) -> Vec<GroupSecret> {
        let mut secrets = self.group_secrets(&roots[0]);
        let at_rest = self.at_rest(roots);
        secrets.extend(at_rest.iter().map(|secret| GroupSecret::from_bytes(*secret.expose())));
        secrets
    }

    /// What is signed with at rest ([`Secret::envelope`]), where that is used.
    pub fn at_rest(&self, roots: &[Secret]) -> Vec<Secret> {
        let is_used = self.keeps_at_rest() || self.signs_journal();
        roots.iter().filter(|_| is_used).map(Secret::envelope).collect()
    }

    /// The token file's text, if there is to be one; each handler that it names is known.
    pub fn read_tokens(&self) -> Result<String, String> {
        let WebAuth { mode, token_file, .. } = &self.config.web.auth;
        let Some(file) = token_file.as_ref().filter(|_| mode == "bearer") else { return Ok(String::new()) };
        let (text, tokens) = tokens::read(Path::new(file))?;
        let named = tokens.into_iter().filter_map(|token| Some((token.name, token.handlers?)));
        let is_known = |handler: &String| self.specs.iter().any(|spec| *spec.name == **handler);
        for (name, handlers) in named {
            if let Some(unknown) = handlers.iter().find(|handler| !is_known(handler)) {
                return Err(format!("{file}: the token {name} is for {unknown}, which is no known handler"));
            }
        }
        Ok(text)
    }

    /// The channel's secrets of all groups.
    pub fn group_secrets(&self, root: &Secret) -> Vec<GroupSecret> {
        self.groups().iter().map(|group| GroupSecret::derive(root, group)).collect()
    }

    /// The channel's listener: executors reach this backend through it. The bell rings when it should take a turn.
    pub fn channel(
        &self,
        secrets: Vec<GroupSecret>,
        backend: &Backend,
        counters: Arc<Counters>,
        bell: Bell,
    ) -> Result<ChannelServer, String> {
        let platform = self.platform();
        let (ipc, lane_state_max) = (platform.execution_ipc.clone(), platform.kv.lane_state_max_bytes);
        let processes = platform.process_groups.iter().map(|group| group.processes).collect();
        let config = ServerConfig { secrets, ipc, lane_state_max, processes };
        let consumers = backend.consumers.clone();
        ChannelServer::bind(config, counters, Box::new(move |group| consumers(group, bell.clone())))
    }

    fn bundle(&self, group: usize, secrets: Vec<GroupSecret>, private_dir: &Path) -> Bundle {
        let clock_offset = if let Clock::System { offset } = self.clock { offset } else { 0 };
        let (group, config) = (u16::try_from(group).unwrap_or(u16::MAX), self.config_text.to_string());
        let log_mark = u128::from_be_bytes(Entropy::system().bytes());
        let private_dir = private_dir.display().to_string();
        Bundle { group, clock_offset, log_mark, config, secrets, private_dir, tokens: String::new() }
    }

    pub fn platform(&self) -> &Platform {
        &self.config.runtime.platform
    }

    pub fn is_inline(&self) -> bool {
        self.platform().bootstrap.mode == "inline"
    }

    /// The names of the process groups.
    pub fn groups(&self) -> Vec<Arc<str>> {
        let groups = &self.platform().process_groups;
        groups.iter().map(|group| Arc::from(group.name.as_str())).collect()
    }

    /// True if jobs and states are where other processes, on any host, may run them.
    pub fn is_shared(&self) -> bool {
        self.platform().queue.backend != "memory"
    }

    /// True if jobs and states outlive every process of ours.
    pub fn jobs_survive_processes(&self) -> bool {
        self.is_shared() || self.journal().is_some()
    }

    /// The journal, if there is one.
    pub fn journal(&self) -> Option<&Journal> {
        self.platform().queue.journal.as_ref()
    }

    /// True if a journal is signed with what follows from the root secret, which then outlives this run.
    pub fn signs_journal(&self) -> bool {
        self.journal().is_some() && self.platform().execution_ipc.auth.secret_file.is_some()
    }

    /// True if something is kept where others may read and write: it is signed.
    pub fn keeps_at_rest(&self) -> bool {
        self.is_shared() || self.platform().kv.backend != "memory"
    }

    /// What the log should hear at the start of what the backends promise.
    pub fn promise(&self) -> Option<String> {
        let promise = match self.journal() {
            Some(journal) => journal.promise(),
            None if self.keeps_at_rest() => {
                "mixed backends: state changes are kept first, the terminal status after them".into()
            }
            None => "memory backends: jobs and state survive executors, and go with the web process".into(),
        };
        (!self.is_shared()).then_some(promise)
    }

    /// The root secrets, of which there is one at least: from their file, the one that is used first; or one for this run.
    pub fn root_secrets(&self) -> Result<Vec<Secret>, String> {
        let file = &self.platform().execution_ipc.auth.secret_file;
        let Some(file) = file else { return Ok(vec![Secret::generate()?]) };
        Secret::read_all(Path::new(file))
    }

    fn root_envelopes(&self) -> Result<Vec<Secret>, String> {
        Ok(self.root_secrets()?.iter().map(Secret::envelope).collect())
    }

    /// Opens the backend of this configuration; one that is away for now is no error. What is kept at rest is signed with
    /// the first of these envelopes ([`Secret::envelope`]), and all are known; none: they are made from the root secrets. A
    /// deployment inside this one has a prefix of its own, with a colon at its end.
    pub fn open(&self, envelopes: Vec<Secret>, sub_prefix: &str) -> Result<Backend, String> {
        match self.journal().filter(|_| sub_prefix.is_empty()) {
            Some(journal) => self.journaled(journal, envelopes).map_err(|why| format!("the journal: {why}")),
            None if self.keeps_at_rest() => self.open_at_rest(envelopes, sub_prefix),
            None => Ok(self.memory()),
        }
    }

    fn broker(&self) -> Broker {
        let rules = Rules::from_config(&self.config);
        Broker::new(rules, self.specs.clone(), self.workers(), Entropy::system())
    }

    /// What a journal has kept, and goes on to keep.
    fn journaled(&self, journal: &Journal, given: Vec<Secret>) -> Result<Backend, String> {
        let dir = Path::new(journal.dir());
        let files = Files::open(dir)?;
        let envelopes = if given.is_empty() && self.signs_journal() { self.root_envelopes()? } else { given };
        let keys = journal::keys(dir, &envelopes)?;
        let (log, image, cut) = Log::open(Box::new(files), keys, journal.segment_mb << 20)?;
        cut.iter().for_each(|cut| log::warn!("the journal: {cut}"));
        let mut broker = self.broker();
        if let Some(why) = LineIds::misplaced(&image, Rules::from_config(&self.config).keeps_lines()) {
            return Err(format!("{} holds {why}: choose another directory", dir.display()));
        }
        broker.keep_journal(image, self.clock.now())?;
        let interval = (journal.sync != "always").then(|| Duration::from_millis(journal.interval_ms));
        let keeping = Keeping { interval, is_inline: self.is_inline() };
        let kept = MemoryBroker::keep(broker, self.clock.clone(), self.groups(), log, keeping);
        let (broker, keeper) = kept.map_err(|error| format!("a thread: {error}"))?;
        Ok(Backend { seat: Arc::new(keeper), calls_may_wait: true, ..Deployment::backend(broker) })
    }

    fn memory(&self) -> Backend {
        Deployment::backend(MemoryBroker::new(self.broker(), self.clock.clone(), self.groups()))
    }

    fn backend(broker: MemoryBroker) -> Backend {
        let broker = Arc::new(broker);
        let (producer, replies, seat) = (broker.clone(), broker.clone(), broker.clone());
        let consumers = Arc::new(move |group, bell| Box::new(broker.consumer(group, bell)) as _);
        Backend { producer, replies, seat, consumers, calls_may_wait: false, rekey: Arc::new(|_| {}) }
    }

    /// Workers of one executor, by group.
    pub fn workers(&self) -> Vec<usize> {
        self.platform().process_groups.iter().map(|group| group.workers).collect()
    }

    /// The same for a batch: nobody reads its records but it itself, which needs all of those in flight; or with a journal, whenever
    /// it goes on, all that its output may lack.
    pub fn for_batch(&self, window: usize) -> Deployment {
        let mut deployment = self.clone();
        let reply = &mut deployment.config.runtime.platform.reply;
        let (records, bytes) = (window, 1 << 40);
        reply.retain = Retain { records, bytes, failed_records: records, failed_bytes: bytes };
        (reply.awaited_ttl_seconds, reply.result_ttl_seconds) = (24 * 3_600, 24 * 3_600);
        if self.journal().is_some() {
            const CENTURY: u64 = 36_500 * 24 * 3_600;
            reply.failed_ttl_seconds = CENTURY;
            (reply.retain.records, reply.retain.failed_records) = (0, BATCH_RECORDS);
        }
        deployment
    }

    /// Does what a process that runs handlers does first.
    pub fn start_workers(&self) -> Result<(), String> {
        let started = self.worker_start.as_ref().map_or(Ok(()), |start| start());
        started.map_err(|why| format!("on_worker_start: {why}"))?;
        program::keep(self.programs.clone()).map_err(|error| error.to_string())
    }

    /// Does what a process that ran handlers does last: asks its programs to end, and waits for them.
    pub fn end_workers(&self) {
        // Those that still run were told so already.
        let all = (0..self.platform().process_groups.len()).map(|group| self.stops_within_ms(group)).max();
        program::end(&self.programs, Duration::from_millis(all.unwrap_or(0)));
    }

    /// True if some handlers are programs.
    pub fn has_programs(&self) -> bool {
        !self.programs.is_empty()
    }

    /// How long the programs of a group may take to stop.
    pub fn stops_within_ms(&self, group: usize) -> u64 {
        let of_group = self.specs.iter().filter(|spec| spec.group == group);
        let programs = of_group.filter_map(|spec| self.config.handlers.get(&*spec.name)?.program.as_ref());
        programs.map(|program| program.stop_grace_ms + millis(program::ENDS_WITHIN)).max().unwrap_or(0)
    }

    /// What is wrong with the programs among the handlers of these groups, by handler.
    pub fn vet_programs(&self, runs: impl Fn(&str) -> bool) -> Vec<String> {
        let groups = &self.platform().process_groups;
        let vet = |spec: &HandlerSpec| {
            let program = self.config.handlers.get(&*spec.name)?.program.as_ref()?;
            let group = &groups[spec.group];
            let user = user_of(program).and_then(|user| match (&group.user, user) {
                (Some(_), Some(_)) => {
                    Err(format!("its executors run as another user already (process group {})", group.name))
                }
                _ => Ok(user),
            });
            let vetted =
                user.map_err(|why| format!("user: {why}")).and_then(|user| program_vet::vet(program, user));
            vetted.err().map(|why| format!("handlers.{}: {why}", spec.name))
        };
        self.specs.iter().filter(|spec| runs(&groups[spec.group].name)).filter_map(vet).collect()
    }

    /// What the executors of a group work with. Every process has the code of all handlers.
    pub fn outfit(&self, workers: usize, bell: Bell) -> Outfit {
        let with_code = |spec: &HandlerSpec| Some((spec.clone(), self.registry.get(&*spec.name)?.1.clone()));
        let handlers: Handlers = self.specs.iter().filter_map(with_code).collect();
        Outfit { workers, handlers, rules: Rules::from_config(&self.config), clock: self.clock.clone(), bell }
    }
}

#[cfg(not(feature = "redis"))]
impl Deployment {
    fn open_at_rest(&self, _: Vec<Secret>, _: &str) -> Result<Backend, String> {
        Err(crate::config::NO_REDIS.into())
    }

    /// What the server says of itself; `None` where none is used.
    pub fn fitness(&self, _: Option<&[Secret]>) -> Result<Option<Fitness>, String> {
        Ok(None)
    }

    /// Removes what a deployment inside this one has left behind.
    pub fn remove(&self, _sub_prefix: &str) {}

    /// Lets what a deployment inside this one has live on.
    pub fn renew(&self, _sub_prefix: &str) {}
}

#[cfg(feature = "redis")]
mod at_rest {
    use super::*;
    use crate::limits::SUB_LIVES;
    use crate::ports::BackendError;
    use crate::redis_backend::envelope::Signer;
    use crate::redis_backend::{ExternalState, Link, RedisBroker, Settings};

    impl Deployment {
        pub(super) fn open_at_rest(&self, given: Vec<Secret>, sub_prefix: &str) -> Result<Backend, String> {
            let envelopes = if given.is_empty() { self.root_envelopes()? } else { given };
            let rules = Rules::from_config(&self.config);
            // A batch bounds its records itself; others go by their time alone.
            let keep = (!sub_prefix.is_empty()).then_some(rules.retain.records);
            let (redis, prefix) = (self.platform().redis.clone(), self.prefix() + sub_prefix);
            let (handlers, clock) = (self.specs.clone(), self.clock.clone());
            let (groups, workers) = (self.groups(), self.workers());
            let settings = Settings { redis, prefix, rules, keep, handlers, groups, clock, workers };
            let broker = RedisBroker::new(settings, &envelopes.iter().collect::<Vec<_>>())?;
            if !self.is_shared() {
                return Ok(self.mixed(broker));
            }
            let seat = Arc::new(broker.sit().map_err(|error| format!("a thread: {error}"))?);
            let broker = Arc::new(broker);
            let (producer, replies) = (broker.clone(), broker.clone());
            let signs = broker.clone();
            let rekey = Arc::new(move |at_rest: &[Secret]| signs.rekey(at_rest));
            let consumers = Arc::new(move |group, bell| Box::new(broker.consumer(group, bell)) as _);
            Ok(Backend { producer, replies, seat, consumers, calls_may_wait: true, rekey })
        }

        /// The queue in this process, lane states and contexts in Redis.
        fn mixed(&self, store: RedisBroker) -> Backend {
            let memory = self.memory();
            let inner = memory.consumers.clone();
            let context_ttl = Rules::from_config(&self.config).context_ttl;
            let signs = store.clone();
            let rekey = Arc::new(move |at_rest: &[Secret]| signs.rekey(at_rest));
            let consumers = move |group, bell: Bell| -> Box<dyn Consumer> {
                let make = |own| inner(group, own);
                Box::new(ExternalState::start(make, Arc::new(store.clone()), context_ttl, bell))
            };
            Backend { consumers: Arc::new(consumers), rekey, ..memory }
        }

        fn prefix(&self) -> String {
            format!("{{{}}}:", self.platform().redis.key_prefix)
        }

        /// What the server says of itself, and whether it knows one of these secrets ([`Deployment::at_rest`]), or of those of the file. `None`
        /// where no server is used.
        pub fn fitness(&self, at_rest: Option<&[Secret]>) -> Result<Option<Fitness>, String> {
            if !self.keeps_at_rest() {
                return Ok(None);
            }
            let link = Link::new(&self.platform().redis)?;
            let fitness = link.vet();
            if !matches!(fitness, Fitness::Fit(_)) {
                return Ok(Some(fitness));
            }
            let read = at_rest.map_or_else(|| self.root_envelopes(), |_| Ok(Vec::new()))?;
            let known = at_rest.unwrap_or(&read).iter().collect::<Vec<_>>();
            let checks = Signer::new(&known, &self.prefix()).checks();
            let secret_file = &self.platform().execution_ipc.auth.secret_file;
            let secret_file = secret_file.as_deref().unwrap_or("this run");
            Ok(Some(match link.knows(&self.prefix(), &checks) {
                Ok(true) => fitness,
                Ok(false) => Fitness::Unfit(format!(
                    "its jobs are signed with another secret than that of {secret_file}"
                )),
                Err(error) => Fitness::Away(error.to_string()),
            }))
        }

        /// Removes what a deployment inside this one has left behind.
        pub fn remove(&self, sub_prefix: &str) {
            self.for_all_keys(sub_prefix, "the batch has left keys behind for a while", Link::remove_all);
        }

        /// Lets what a deployment inside this one has live on: all of it has a life, in case its process is killed.
        pub fn renew(&self, sub_prefix: &str) {
            let renew = |link: &Link, prefix: &str| link.renew_all(prefix, SUB_LIVES);
            self.for_all_keys(sub_prefix, "the batch could not renew its keys", renew);
        }

        /// Does something with all keys of a deployment inside this one; if that fails, so much is said.
        fn for_all_keys(
            &self,
            sub_prefix: &str,
            otherwise: &str,
            work: impl FnOnce(&Link, &str) -> Result<(), BackendError>,
        ) {
            if !self.is_shared() {
                return;
            }
            let prefix = self.prefix() + sub_prefix;
            let done = Link::new(&self.platform().redis)
                .and_then(|link| work(&link, &prefix).map_err(|error| error.to_string()));
            if let Err(error) = done {
                log::warn!("{otherwise}, which begin with {prefix}: {error}");
            }
        }
    }
}
