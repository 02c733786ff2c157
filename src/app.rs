//! The embedder's door: registers handlers, and hands over to the command line.

use std::process::ExitCode;
use std::sync::Arc;

use crate::execution::{Handler, Registry, builtin};
use crate::handler::{HandlerOptions, is_handler_name};

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

    /// The command line, from the arguments to the exit code.
    pub fn main(self) -> ExitCode {
        crate::cli::main(&self.registry)
    }
}
