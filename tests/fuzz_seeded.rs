//! Every decoder that meets bytes from outside, with many inputs from a printed seed: half of them noise, half of them
//! valid inputs that were changed.
//!
//! `COFFERDAM_SEED` replays a run; `COFFERDAM_FUZZ` says how many inputs. tools/fuzz searches the same targets by
//! coverage.

use std::time::{SystemTime, UNIX_EPOCH};

use cofferdam::entropy::Entropy;

#[path = "support/fuzz/mod.rs"]
mod fuzz;

const INPUTS: u64 = 200_000;
/// Noise is at most this long: what matters happens at the beginning of an input.
const NOISE_BYTES: u64 = 60;

/// Says how to replay an input that breaks a property.
struct TellSeed {
    seed: u64,
    input: u64,
}

impl Drop for TellSeed {
    fn drop(&mut self) {
        if std::thread::panicking() {
            eprintln!("input {} of COFFERDAM_SEED={}", self.input, self.seed);
        }
    }
}

fn number(name: &str) -> Option<u64> {
    std::env::var(name).ok().map(|text| text.parse().unwrap_or_else(|_| panic!("{name} is a number")))
}

fn holds_for_any_input(name: &str) {
    let new = || SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default().as_nanos() as u64;
    let seed = number("COFFERDAM_SEED").unwrap_or_else(new);
    println!("COFFERDAM_SEED={seed}");
    let target = fuzz::find(name);
    let valid = (target.valid)();
    valid.iter().for_each(|input| (target.run)(input));
    let mut entropy = Entropy::Seeded(seed);
    let mut told = TellSeed { seed, input: 0 };
    for input in 0..number("COFFERDAM_FUZZ").unwrap_or(INPUTS) {
        told.input = input;
        let bytes = if input % 2 == 0 { noise(&mut entropy) } else { changed(&mut entropy, &valid) };
        (target.run)(&bytes);
    }
}

fn below(entropy: &mut Entropy, end: usize) -> usize {
    entropy.up_to(end.saturating_sub(1) as u64) as usize
}

fn noise(entropy: &mut Entropy) -> Vec<u8> {
    let length = entropy.up_to(NOISE_BYTES);
    (0..length).map(|_| entropy.bytes::<1>()[0]).collect()
}

/// A valid input after one to four changes, such as a peer or a broken wire would make.
fn changed(entropy: &mut Entropy, valid: &[Vec<u8>]) -> Vec<u8> {
    let mut bytes = valid[below(entropy, valid.len())].clone();
    for _ in 0..=entropy.up_to(3) {
        let at = below(entropy, bytes.len());
        match entropy.up_to(6) {
            _ if bytes.is_empty() => bytes.push(entropy.bytes::<1>()[0]),
            0 => bytes[at] ^= 1 << entropy.up_to(7),
            1 => bytes[at] = [0, 1, 0x7F, 0x80, 0xFF, b'\r', b'\n', b' '][below(entropy, 8)],
            2 => bytes.truncate(at),
            3 => bytes.insert(at, entropy.bytes::<1>()[0]),
            4 => drop(bytes.remove(at)),
            5 => {
                // A piece comes twice: a field, a header, a chunk.
                let end = (at + 1 + below(entropy, 40)).min(bytes.len());
                let piece = bytes[at..end].to_vec();
                bytes.splice(at..at, piece);
            }
            _ => {
                // The head of one, the tail of another.
                let other = &valid[below(entropy, valid.len())];
                bytes.truncate(at);
                bytes.extend_from_slice(&other[at.min(other.len())..]);
            }
        }
    }
    bytes
}

/// One test a target, so that they run side by side and each has its own outcome.
macro_rules! targets {
    ($($test:ident: $name:literal,)*) => {
        $(#[test]
        fn $test() {
            holds_for_any_input($name);
        })*

        #[test]
        fn every_target_is_run() {
            let names: Vec<&str> = fuzz::TARGETS.iter().map(|target| target.name).collect();
            assert_eq!(names, [$($name),*]);
        }
    };
}

targets! {
    a_request_head_is_read_or_refused_the_same_in_any_segmentation: "head",
    a_chunked_body_is_read_or_refused_the_same_in_any_segmentation: "chunked",
    a_route_follows_from_method_and_path_and_foreign_hosts_do_not_pass: "routes",
    an_ordering_key_is_the_scalar_that_a_json_parser_finds: "ordering_key",
    ids_traces_and_types_are_written_as_they_were_read: "names",
    a_submission_is_accepted_within_its_limits_or_its_caller_refused: "submission",
    a_connection_has_the_same_jobs_and_answers_in_any_segmentation: "gate",
    an_inner_answer_is_whole_or_not_yet_there: "inner_answer",
    handshake_messages_are_refused_for_the_first_field_that_is_wrong: "handshake",
    only_sealed_frames_in_their_order_open_and_a_failure_stays: "frame",
    bodies_of_frames_are_encoded_as_they_were_decoded: "messages",
    a_consumer_hears_what_the_page_says_whatever_an_executor_says: "broker_end",
    an_executor_gets_whole_leases_and_says_what_it_was_told_whatever_a_broker_says: "executor_end",
    control_messages_are_written_as_they_were_read: "control",
    a_bundle_is_written_as_it_was_read: "bundle",
    a_config_that_passes_comes_to_the_same_again: "config",
    a_secret_is_one_or_two_lines_of_64_hex_digits: "secret",
    facts_of_a_journal_are_written_as_they_were_read: "journal_facts",
    a_frame_of_a_journal_opens_where_it_was_sealed_or_nowhere: "journal_segment",
    lines_are_the_same_whatever_the_buffer: "lines",
}
