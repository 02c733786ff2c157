//! What every process of a deployment starts from, and the one place that opens a backend.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use serde_json::{Value, json};

use crate::bell::Bell;
use crate::channel::keys::GroupSecret;
use crate::clock::Clock;
use crate::config::secret::Secret;
use crate::config::{Config, Loaded};
use crate::entropy::Entropy;
use crate::execution::{Crew, EngineThread, Engines, Handlers, Limits, Mirror, Registry};
use crate::handler::{HandlerOptions, HandlerSpec};
use crate::memory::MemoryBroker;
use crate::memory::broker::Broker;
use crate::ports::{BackendError, Consumer, KeyValue, Producer, Replies, Rules, Upkeep};
use crate::process::bundle::Bundle;
use crate::redis_backend::{
    Fitness, Link, RedisBroker, RedisUpkeep, Settings as RedisSettings, UNLIMITED, envelope_secret,
};

/// The options that registered handlers bring along, for the config's defaults.
pub fn own_options(registry: &Registry) -> BTreeMap<String, HandlerOptions> {
    registry.iter().map(|(name, (options, _))| (name.clone(), options.clone())).collect()
}

/// The broker of a deployment: where it is, is told by the config alone, and known here alone.
#[derive(Clone)]
pub enum Backend {
    Memory(MemoryBroker),
    Redis(RedisBroker),
}

impl Backend {
    pub fn producer(&self) -> Arc<dyn Producer> {
        match self {
            Backend::Memory(broker) => Arc::new(broker.clone()),
            Backend::Redis(broker) => Arc::new(broker.clone()),
        }
    }

    pub fn replies(&self) -> Arc<dyn Replies> {
        match self {
            Backend::Memory(broker) => Arc::new(broker.clone()),
            Backend::Redis(broker) => Arc::new(broker.clone()),
        }
    }

    /// What time does to the broker; `waiters` says how many callers wait in this process, for the others to see.
    pub fn upkeep(&self, waiters: impl Fn() -> u64 + Send + Sync + 'static) -> Arc<dyn Upkeep> {
        match self {
            Backend::Memory(broker) => Arc::new(broker.clone()),
            Backend::Redis(broker) => Arc::new(RedisUpkeep::new(broker.clone(), Box::new(waiters))),
        }
    }

    /// True if a call may wait for a network: then nothing that others wait for may make it.
    pub fn may_wait(&self) -> bool {
        match self {
            Backend::Memory(_) => false,
            Backend::Redis(_) => true,
        }
    }

    /// An executor of this group; `bell` rings when a step would bring something.
    pub fn consumer(
        &self,
        group: usize,
        workers: usize,
        bell: Bell,
    ) -> Result<Box<dyn Consumer>, BackendError> {
        match self {
            Backend::Memory(broker) => Ok(Box::new(broker.consumer(group, bell))),
            Backend::Redis(broker) => Ok(Box::new(broker.consumer(group, workers, bell)?)),
        }
    }
}

/// What every process of a deployment starts from.
#[derive(Clone)]
pub struct Setup {
    pub config: Config,
    /// The normalised config as JSON text: what children are given.
    pub config_text: Arc<str>,
    pub registry: Registry,
    /// Name, group and options of each handler.
    pub specs: Vec<HandlerSpec>,
    pub clock: Clock,
}

impl Setup {
    /// From a config that passed.
    pub fn new(loaded: &Loaded, registry: &Registry, clock: Clock) -> Setup {
        let config = loaded.config.clone();
        let groups = &config.runtime.platform.process_groups;
        let specs = config.handlers.iter().map(|(name, options)| HandlerSpec {
            name: Arc::from(name.as_str()),
            group: groups.iter().position(|group| group.runs(name)).unwrap_or(0),
            options: options.clone(),
        });
        let specs = specs.collect();
        let config_text = Arc::from(loaded.value.to_string());
        Setup { config, config_text, registry: registry.clone(), specs, clock }
    }

    /// The setup that the supervisor has, made again from the normalised config.
    ///
    /// # Errors
    /// The config is not what this binary understands.
    pub fn from_bundle(bundle: &Bundle, registry: &Registry) -> Result<Setup, String> {
        let value: serde_json::Value =
            serde_json::from_str(&bundle.config).map_err(|error| error.to_string())?;
        let config = serde_json::from_value(value.clone()).map_err(|error| error.to_string())?;
        let loaded = Loaded { config, value, origins: std::collections::BTreeMap::new() };
        Ok(Setup::new(&loaded, registry, Clock::System { offset: bundle.clock_offset }))
    }

    /// The bundle of a child of these groups: with their secrets, or with what jobs in Redis are signed with.
    pub fn bundle(&self, root: &Secret, groups: &[usize], place: &str) -> Result<Bundle, String> {
        let names = self.groups();
        let mut secrets = Vec::new();
        if !self.uses_redis() {
            secrets.extend(groups.iter().map(|group| GroupSecret::derive(root, &names[*group])));
        }
        if self.names_redis() {
            secrets.push(GroupSecret::from_bytes(*envelope_secret(root)?.expose()));
        }
        Ok(Bundle {
            group: groups.first().and_then(|group| u16::try_from(*group).ok()).unwrap_or(0),
            clock_offset: match self.clock {
                Clock::System { offset } => offset,
                Clock::Manual(_) => 0,
            },
            config: self.config_text.to_string(),
            secrets,
            place: place.to_owned(),
        })
    }

    /// The broker on Redis, whose secret is the last one. `inside` as in [`Setup::redis`].
    ///
    /// # Errors
    /// There is no secret, or no sense in the server's address.
    pub fn redis_of_bundle(&self, bundle: &mut Bundle, inside: &str) -> Result<RedisBroker, String> {
        self.redis(&Secret::new(*bundle.secret()?.expose())?, inside)
    }

    pub fn is_inline(&self) -> bool {
        self.config.runtime.platform.bootstrap.mode == "inline"
    }

    /// The names of the process groups.
    pub fn groups(&self) -> Vec<Arc<str>> {
        let groups = &self.config.runtime.platform.process_groups;
        groups.iter().map(|group| Arc::from(group.name.as_str())).collect()
    }

    /// True if jobs are kept in Redis.
    pub fn uses_redis(&self) -> bool {
        self.config.runtime.platform.queue.backend == "redis"
    }

    /// True if anything is kept in Redis.
    pub fn names_redis(&self) -> bool {
        self.uses_redis() || self.config.runtime.platform.kv.backend == "redis"
    }

    /// The root secret: from its file, or one for this run.
    pub fn root_secret(&self) -> Result<Secret, String> {
        match &self.config.runtime.platform.execution_ipc.auth.secret_file {
            Some(file) => Secret::read(std::path::Path::new(file)),
            None => Secret::generate(),
        }
    }

    /// A process that serves alone, or all of a deployment in one: with the root secret.
    pub fn backend(&self, inside: &str) -> Result<Backend, String> {
        match self.uses_redis() {
            true => self.redis(&self.envelope()?, inside).map(Backend::Redis),
            false => Ok(Backend::Memory(self.broker(Rules::from_config(&self.config)))),
        }
    }

    /// What the Redis server says of itself; `None` where none is used.
    pub fn fitness(&self) -> Result<Option<Fitness>, String> {
        let link = self.names_redis().then(|| Link::new(&self.config.runtime.platform.redis));
        Ok(link.transpose()?.map(|link| link.vet()))
    }

    /// What processes sign with in Redis, for one that serves alone.
    pub fn envelope(&self) -> Result<Secret, String> {
        envelope_secret(&self.root_secret()?)
    }

    /// The broker on Redis. `inside` names a deployment inside this one, with a colon at its end.
    pub fn redis(&self, envelope: &Secret, inside: &str) -> Result<RedisBroker, String> {
        let redis = self.config.runtime.platform.redis.clone();
        let mut rules = Rules::from_config(&self.config);
        if inside.is_empty() {
            rules.retain = UNLIMITED;
        }
        let settings = RedisSettings {
            prefix: format!("{{{}}}:{inside}", redis.key_prefix),
            redis,
            rules,
            handlers: self.specs.clone(),
            groups: self.groups(),
            clock: self.clock.clone(),
        };
        RedisBroker::new(settings, envelope)
    }

    /// A memory broker by these rules.
    pub fn broker(&self, rules: Rules) -> MemoryBroker {
        let groups = self.groups();
        let workers = self.config.runtime.platform.process_groups.iter().map(|group| group.workers).collect();
        let broker = Broker::new(rules, self.specs.clone(), workers, Entropy::system());
        MemoryBroker::new(broker, self.clock.clone(), groups)
    }

    /// The same for a batch: nobody reads its records but it itself, which needs all of those in flight.
    pub fn for_batch(&self, window: usize) -> Result<Setup, String> {
        let mut value: Value = serde_json::from_str(&self.config_text).map_err(|error| error.to_string())?;
        let reply = &mut value["runtime"]["platform"]["reply"];
        reply["retain"] = json!({ "records": window, "bytes": 1_u64 << 40 });
        for name in ["awaited_ttl_seconds", "result_ttl_seconds"] {
            reply[name] = (24 * 3_600).into();
        }
        let config_text = Arc::from(value.to_string());
        let config = serde_json::from_value(value).map_err(|error| error.to_string())?;
        Ok(Setup { config, config_text, ..self.clone() })
    }

    /// The handlers with their code, for a pool of workers. Every process has all of them.
    pub fn handlers(&self) -> Handlers {
        let with_code = |spec: &HandlerSpec| Some((spec.clone(), self.registry.get(&*spec.name)?.1.clone()));
        self.specs.iter().filter_map(with_code).collect()
    }

    pub fn execution_limits(&self) -> Limits {
        let platform = &self.config.runtime.platform;
        Limits {
            max_payload: platform.execution_ipc.max_payload_bytes,
            lane_state_max: platform.kv.lane_state_max_bytes,
            grace: Duration::from_millis(platform.lifecycle.graceful_timeout_ms),
            visibility: Duration::from_millis(platform.queue.visibility_timeout_ms),
        }
    }

    /// What the executors of a group run with.
    pub fn crew(&self, group: usize) -> Crew {
        Crew {
            workers: self.config.runtime.platform.process_groups[group].workers,
            handlers: self.handlers(),
            limits: self.execution_limits(),
            clock: self.clock.clone(),
        }
    }

    /// Where lane states and contexts are, if that is not where the queue is.
    pub fn mixed_store(&self, inside: &str) -> Result<Option<RedisBroker>, String> {
        if self.uses_redis() || !self.names_redis() {
            return Ok(None);
        }
        self.redis(&self.envelope()?, inside).map(Some)
    }

    /// An executor a group, on threads of this process. `inside` as in [`Setup::redis`].
    pub fn inline_executors(&self, backend: &Backend, inside: &str) -> Result<Engines, String> {
        let mut engines = Vec::new();
        let store = self.mixed_store(inside)?.map(|store| Arc::new(store) as Arc<dyn KeyValue>);
        let context_ttl = Duration::from_secs(self.config.runtime.platform.kv.context_ttl_seconds);
        for (index, group) in self.config.runtime.platform.process_groups.iter().enumerate() {
            // In memory nothing else may look after time; on Redis each step does.
            let upkeep = (!backend.may_wait()).then(|| backend.upkeep(|| 0));
            let store = store.clone();
            let connect = |bell| {
                let consumer = backend.consumer(index, group.workers, bell);
                Ok(Mirror::new(consumer.map_err(|error| error.to_string())?, store, context_ttl))
            };
            let executor = EngineThread::start(self.crew(index), connect, upkeep, Bell::silent());
            engines.push(executor.map_err(|error| format!("group {}: {error}", group.name))?);
        }
        // In Redis what is queued stays queued.
        Ok(Engines { engines, drain: backend.may_wait() })
    }
}
