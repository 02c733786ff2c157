//! One function for each decoder that meets bytes from outside: what must hold for every input, and inputs that are
//! valid. The seeded test and the libFuzzer targets in tools/fuzz share them.
//!
//! Where a decoder is private its function stands beside it in `src`; all others are here.

#![allow(dead_code, reason = "each user of this folder has its own way to run the targets")]

mod channel;
mod config;
mod control;
mod ends;
mod gate;
mod journal;
mod web;
#[path = "../wire.rs"]
mod wire;

use std::path::PathBuf;

use cofferdam::entropy::Entropy;

/// A decoder under any bytes.
pub struct Target {
    pub name: &'static str,
    /// Panics if a property does not hold.
    pub run: fn(&[u8]),
    /// Inputs that go deep, for mutations to begin with.
    pub valid: fn() -> Vec<Vec<u8>>,
}

pub const TARGETS: &[Target] = &[
    Target { name: "head", run: web::head, valid: web::heads },
    Target { name: "chunked", run: web::chunked, valid: web::chunked_bodies },
    Target { name: "routes", run: web::routes, valid: web::heads },
    Target { name: "ordering_key", run: web::ordering_key, valid: web::keyed_payloads },
    Target { name: "names", run: web::names, valid: web::some_names },
    Target { name: "submission", run: gate::submission, valid: gate::submissions },
    Target { name: "gate", run: gate::gate, valid: gate::conversations },
    Target { name: "inner_answer", run: web::inner_answer, valid: web::answers },
    Target { name: "handshake", run: channel::handshake, valid: channel::handshakes },
    Target { name: "frame", run: channel::frame, valid: channel::frames },
    Target { name: "messages", run: channel::messages, valid: channel::bodies },
    Target { name: "broker_end", run: ends::broker_end, valid: ends::to_broker_scripts },
    Target { name: "executor_end", run: ends::executor_end, valid: ends::to_executor_scripts },
    Target { name: "control", run: control::control, valid: control::messages },
    Target { name: "bundle", run: cofferdam::process::control_socket::fuzz_bundle, valid: control::bundles },
    Target { name: "config", run: config::config, valid: config::configs },
    Target { name: "secret", run: config::secret, valid: config::secrets },
    Target { name: "journal_facts", run: journal::facts, valid: journal::some_facts },
    Target { name: "journal_segment", run: journal::segment, valid: journal::segments },
    Target { name: "lines", run: web::lines, valid: web::line_inputs },
];

/// Runs one target.
pub fn run(name: &str, bytes: &[u8]) {
    (find(name).run)(bytes);
}

/// Puts the valid inputs into the corpus folder that libFuzzer was given, so that it begins with them.
pub fn fill_corpus(name: &str) {
    let Some(folder) = std::env::args().skip(1).map(PathBuf::from).find(|path| path.is_dir()) else { return };
    for (index, input) in (find(name).valid)().into_iter().enumerate() {
        std::fs::write(folder.join(format!("valid-{index}")), input).expect("the corpus can be written");
    }
}

pub fn find(name: &str) -> &'static Target {
    TARGETS.iter().find(|target| target.name == name).unwrap_or_else(|| panic!("there is no target {name}"))
}

fn texts(list: &[&str]) -> Vec<Vec<u8>> {
    list.iter().map(|text| text.as_bytes().to_vec()).collect()
}

/// Sizes of pieces for an input: they follow from its bytes, so that a finding repeats.
fn pieces(bytes: &[u8]) -> Entropy {
    Entropy::Seeded(
        bytes.iter().fold(bytes.len() as u64, |sum, byte| {
            (sum ^ u64::from(*byte)).wrapping_mul(0x0000_0100_0000_01B3)
        }),
    )
}

/// One byte, a few, or any number up to `most`.
fn piece(entropy: &mut Entropy, most: usize) -> usize {
    let limit = [1, 9, most][entropy.up_to(2) as usize].min(most);
    1 + entropy.up_to(limit.saturating_sub(1) as u64) as usize
}

/// Reads an input as a script: a program of small steps instead of the bytes of a wire.
struct Script<'a>(&'a [u8]);

impl<'a> Script<'a> {
    fn array<const N: usize>(&mut self) -> Option<[u8; N]> {
        let (field, rest) = self.0.split_first_chunk()?;
        self.0 = rest;
        Some(*field)
    }

    fn u8(&mut self) -> Option<u8> {
        self.array().map(|[byte]| byte)
    }

    /// A length in two bytes, and as much of it as there is.
    fn bytes(&mut self) -> Option<&'a [u8]> {
        let length = usize::from(u16::from_be_bytes(self.array()?));
        let (field, rest) = self.0.split_at(length.min(self.0.len()));
        self.0 = rest;
        Some(field)
    }
}

/// The same the other way round.
fn put_bytes(out: &mut Vec<u8>, bytes: &[u8]) {
    out.extend_from_slice(&u16::try_from(bytes.len()).expect("a script's fields are short").to_be_bytes());
    out.extend_from_slice(bytes);
}
