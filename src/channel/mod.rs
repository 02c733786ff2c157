//! The signed local channel: executors reach the broker through it, strangers get nothing.
//!
//! The pure half: [`keys`], [`frame`], [`handshake`], [`messages`], and the two ends, [`BrokerEnd`] and
//! [`ExecutorEnd`], which take bytes and time and give bytes. The half with sockets: [`ChannelServer`] and
//! [`ChannelClient`], each driven by its process's one event loop. docs/protocol.md says all of it in enough
//! detail for a second implementation.

mod broker_end;
mod client;
mod executor_end;
pub mod frame;
pub mod handshake;
pub mod keys;
pub mod messages;
mod outbox;
mod reject;
mod server;

pub use broker_end::{Admission, BrokerEnd};
pub use client::ChannelClient;
pub use executor_end::ExecutorEnd;
pub use reject::Reject;
pub use server::{ChannelServer, ServerConfig};
