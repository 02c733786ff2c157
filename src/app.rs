//! The handler registry, and the one place that wires ports to backends.

use std::collections::BTreeMap;
use std::process::ExitCode;
use std::sync::Arc;
use std::time::Duration;

use crate::clock::Clock;
use crate::config::{Config, Loaded};
use crate::entropy::Entropy;
use crate::execution::{InlineExecutor, Limits, builtin};
use crate::handler::{Handler, HandlerOptions, HandlerSpec, Handlers, Registry, is_handler_name};
use crate::memory::MemoryBroker;
use crate::memory::broker::Broker;
use crate::ports::Rules;

/// A binary with handlers: register them, then call [`App::main`].
pub struct App {
    registry: Registry,
}

impl Default for App {
    fn default() -> App {
        App::new()
    }
}

impl App {
    /// With the built-in handlers `echo` and `sleep`.
    pub fn new() -> App {
        App { registry: builtin::registry() }
    }

    /// Registers a handler; a second one of the same name takes its place.
    ///
    /// # Panics
    /// If the name is not 1 to 64 of `a-z A-Z 0-9 _ -`.
    #[must_use]
    pub fn handler(self, name: &str, handler: impl Handler + 'static) -> App {
        self.handler_with(name, handler.options(), handler)
    }

    /// Registers a handler with options of its own, which the config may override.
    ///
    /// # Panics
    /// As [`App::handler`].
    #[must_use]
    pub fn handler_with(
        mut self,
        name: &str,
        options: HandlerOptions,
        handler: impl Handler + 'static,
    ) -> App {
        assert!(is_handler_name(name), "a handler's name is 1 to 64 of a-z, A-Z, 0-9, _ and -: {name:?}");
        self.registry.insert(name.to_owned(), (options, Arc::new(handler)));
        self
    }

    /// The command line of CONTRACT 1, from the arguments to the exit code.
    pub fn main(self) -> ExitCode {
        crate::cli::main(&self.registry)
    }
}

/// The options that registered handlers bring along, for the config's defaults.
#[doc(hidden)]
pub fn own_options(registry: &Registry) -> BTreeMap<String, HandlerOptions> {
    registry.iter().map(|(name, (options, _))| (name.clone(), options.clone())).collect()
}

/// What every process of a deployment starts from.
#[doc(hidden)]
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

    pub fn is_inline(&self) -> bool {
        self.config.runtime.platform.bootstrap.mode == "inline"
    }

    /// The names of the process groups.
    pub fn groups(&self) -> Vec<Arc<str>> {
        let groups = &self.config.runtime.platform.process_groups;
        groups.iter().map(|group| Arc::from(group.name.as_str())).collect()
    }

    /// A memory broker by the config's rules.
    pub fn broker(&self) -> MemoryBroker {
        self.broker_with(|_| {})
    }

    /// The same with the rules changed by `adjust`.
    pub fn broker_with(&self, adjust: impl FnOnce(&mut Rules)) -> MemoryBroker {
        let mut rules = Rules::from_config(&self.config);
        adjust(&mut rules);
        let groups = self.groups();
        let workers = self.config.runtime.platform.process_groups.iter().map(|group| group.workers).collect();
        let broker = Broker::new(rules, self.specs.clone(), workers, Entropy::system());
        MemoryBroker::new(broker, self.clock.clone(), groups)
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

    /// An executor a group, on threads of this process.
    pub fn inline_executors(&self, broker: &MemoryBroker) -> Result<Vec<InlineExecutor>, String> {
        let mut executors = Vec::new();
        for (index, group) in self.config.runtime.platform.process_groups.iter().enumerate() {
            let (handlers, limits, clock) = (self.handlers(), self.execution_limits(), self.clock.clone());
            executors.push(
                InlineExecutor::start(broker.clone(), index, group.workers, handlers, limits, clock)
                    .map_err(|error| format!("group {}: its threads cannot be made: {error}", group.name))?,
            );
        }
        Ok(executors)
    }
}
