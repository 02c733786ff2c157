//! The embedder's door: registers handlers, and hands over to the command line.

use std::process::ExitCode;
use std::sync::Arc;

use crate::cli::Program;
use crate::execution::{Handler, builtin};
use crate::handler::{HandlerOptions, is_handler_name};

/// A binary with handlers: register them, then call [`App::main`].
pub struct App(Program);

impl Default for App {
    fn default() -> App {
        App::new()
    }
}

impl App {
    /// With the built-in handlers `echo` and `sleep`.
    pub fn new() -> App {
        App(Program {
            registry: builtin::registry(),
            worker_start: None,
            name: env!("CARGO_PKG_NAME").into(),
            version: env!("CARGO_PKG_VERSION").into(),
        })
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
        assert!(
            is_handler_name(name),
            "a handler's name is 1 to 64 of a-z, A-Z, 0-9, _ and -, and not retry or cancel: {name:?}"
        );
        self.0.registry.insert(name.to_owned(), (options, Arc::new(handler)));
        self
    }

    /// What `--help` and `--version` call this binary.
    #[must_use]
    pub fn about(mut self, name: &str, version: &str) -> App {
        (self.0.name, self.0.version) = (name.into(), version.into());
        self
    }

    /// Runs once in each process that runs handlers, before its first job: the place for a pool of connections or a model.
    /// After an error the process ends, with that as its last words. [`main`](App::main) itself runs in the supervisor and in web
    /// as well, see docs/embedding.md.
    #[must_use]
    pub fn on_worker_start(mut self, start: impl Fn() -> Result<(), String> + Send + Sync + 'static) -> App {
        self.0.worker_start = Some(Arc::new(start));
        self
    }

    /// The command line, from the arguments to the exit code.
    pub fn main(self) -> ExitCode {
        crate::cli::main(&self.0)
    }
}
