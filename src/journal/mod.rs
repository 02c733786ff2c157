//! The journal: what the memory backend knows, written down so that it outlives its process and its host.
//!
//! Pure: [`facts`] (what is written), [`frame`] (how it is signed and found again), [`image`] (what the facts of a directory come
//! to). With I/O: [`disk`] (files behind a trait, which a test replaces), [`log`] (segments over a disk). The format
//! is docs/journal.md. Who writes when, and who waits for what, is [`crate::memory`]'s.

pub mod disk;
pub mod facts;
pub mod frame;
pub mod image;
mod key;
pub mod log;
pub mod scan;

pub use disk::{Disk, Files};
pub use image::Image;
pub use key::{keys, known_keys};
pub use log::{Failure, Log};
