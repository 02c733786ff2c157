//! The memory backend: one broker value, with time as an argument, behind one lock.
//!
//! [`broker::Broker`] decides; [`MemoryBroker`] is the thin shell that locks it, reads the clock, and rings
//! the bells of those who should look. What it keeps goes with its process, unless [`Keeper`] writes a journal of it.

pub mod broker;
mod commands;
mod deliver;
mod ending;
mod entry;
mod facts;
mod idempotency;
mod invariants;
mod keeper;
mod kv;
mod leases;
mod records;
mod shared;
mod timers;
mod view;

pub use keeper::Keeper;
pub use shared::{Keeping, MemoryBroker};
