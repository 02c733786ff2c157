//! The Redis backend: the broker is Redis, any number of executors on any number of hosts.
//!
//! Every change is one script (`scripts/*.lua`), so it takes hold as a whole; every call is safe to repeat. Jobs,
//! outcomes and maps are signed at rest ([`envelope`]). Time is the server's.

mod broker;
mod connection;
mod consumer;
pub mod envelope;
mod kv;
mod producer;
mod replies;
mod upkeep;
pub mod vet;

pub use broker::{RedisBroker, Settings, UNLIMITED};
pub use connection::Link;
pub use envelope::envelope_secret;
pub use upkeep::RedisUpkeep;
pub use vet::Fitness;
