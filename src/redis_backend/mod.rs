//! The Redis backend: the broker is Redis, any number of web processes on any number of hosts, each for its own executors.
//!
//! Every change is one script (`scripts/*.lua`), so it takes hold as a whole; every call is safe to repeat. Jobs,
//! outcomes and maps are signed at rest ([`envelope`]). Time is the server's.

mod books;
mod broker;
mod call;
mod connection;
pub mod envelope;
mod external_state;
mod forgeries;
mod kv;
mod listener;
mod producer;
mod seat;
mod server;
mod sum;
mod sums;
mod turn;
pub mod vet;

pub use broker::{RedisBroker, RedisConsumer};
pub use connection::Link;
pub use external_state::ExternalState;
pub use seat::RedisSeat;
pub use server::Settings;
