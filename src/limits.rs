//! Every bound that is not a setting, with its reason. Units are in the names.

use std::time::Duration;

/// Deliveries of a job that its record tells of.
pub const PAST_ATTEMPTS: usize = 8;

/// Jobs of one lease at most. Measured: a run of 32 hides the round trip of a serial lane; more only makes
/// what a lost executor repeats longer.
pub const RUN_JOBS: usize = 32;

/// A job whose executor was lost so often while the job may have been running is delivered to an executor that has nothing
/// else meanwhile: if it kills its process, nobody else feels it a third time.
pub const LOSSES_TO_BE_ALONE: u32 = 2;

/// A lease is over so long after its running job's timeout, however often its executor says that it lives: longer than an
/// executor may be silent (four heartbeats) with the defaults, since one that is stopped tells of a timeout afterwards.
pub const LEASE_GRACE: Duration = Duration::from_secs(10);

/// A lane is left to the executor that knows its state for this long, then anyone takes it: sending the
/// state costs more than a short wait, and a stopped executor must not hold a lane.
pub const LANE_AFFINITY: Duration = Duration::from_millis(20);

/// Jobs may be delayed so far into the future, by callers and by other jobs: a delayed job holds its lane.
pub const DELAY_MAX: Duration = Duration::from_secs(7 * 24 * 3600);

/// Payload bytes of all queued jobs of callers: 10,000 jobs (the default capacity) of 25 KiB. Follow-ups may have as many jobs
/// and bytes again: neither keeps the other out, and what was accepted from callers can end.
pub const QUEUED_BYTES: usize = 256 << 20;

/// Request bodies that are being read, over all connections.
pub const BODY_BYTES: usize = 64 << 20;

/// Answers that were not read yet, over all connections; beyond it the one that has taken nothing for longest is closed.
pub const UNREAD_BYTES: usize = 64 << 20;
/// The head of a batch's answer leaves with its first result, or after this: some proxies lose a short answer whose head comes
/// by itself.
pub const BATCH_HEAD_WAITS: Duration = Duration::from_millis(20);

/// Ends waiting for one subscriber. Beyond it the subscriber is told to look at its records instead.
pub const INBOX_ENDS: usize = 65_536;

/// A result that travels with its end in the Redis inbox; a larger one is read from its record, so that an inbox
/// whose reader has stopped holds 256 MiB at most.
pub const INBOX_RESULT_BYTES: usize = 4_096;
const _: () = assert!(INBOX_ENDS * INBOX_RESULT_BYTES <= 256 << 20);
/// Ends of one entry of that inbox at most: a step's commits ring together.
pub const ENDS_AN_ENTRY: usize = 16;

/// A process of the Redis profile is taken for alive this long after its last word; each looks once a second.
pub const PROCESS_LIVES: Duration = Duration::from_secs(5);

/// What a batch has in Redis goes after this time if its process is killed; one that lives renews it three times meanwhile.
pub const SUB_LIVES: Duration = Duration::from_secs(3_600);

/// Revoked leases waiting to be told to one executor, before it counts as lost.
/// Every job of a lease for each of the most workers that a group may have.
pub const REVOKED_LEASES: usize = RUN_JOBS * 4_096;

/// An ordering key, an idempotency key, a media type.
pub const ORDERING_KEY_BYTES: usize = 256;
/// Visible ASCII, 1 to this many.
pub const IDEMPOTENCY_KEY_BYTES: usize = 255;
/// RFC 6838 allows 127 for each half; one with parameters fits here.
pub const MEDIA_TYPE_BYTES: usize = 256;
/// A `tracestate`, all its lines together: what W3C Trace Context (level 1, 3.3.1.5) has everybody carry at least.
pub const TRACESTATE_BYTES: usize = 512;
/// Its members (3.3.1.1).
pub const TRACESTATE_MEMBERS: usize = 32;

/// Jobs that have ended and whose spans are still to be exported: some 16 MB of them, beyond which they are dropped.
pub const TRACED_ENDS: usize = 16_384;

/// Names inside a state or context map.
pub const MAP_NAME_BYTES: usize = 1_024;
/// A whole trace context.
pub const CONTEXT_BYTES: usize = 1 << 20;
/// The backoff of a job whose follow-ups find no room doubles so often at most.
pub const PUT_OFF_DOUBLINGS: u32 = 5;
/// What a handler says went wrong; the rest is cut off. A program's report and its last words fit.
pub const ERROR_DETAIL_BYTES: usize = 6_144;
/// What a handler says of how far it is, as JSON; whoever looks at the job has the last of it.
pub const PROGRESS_BYTES: usize = 1_024;
/// That is told to the broker this often at most while the job runs, and once more with its end.
pub const PROGRESS_EVERY: Duration = Duration::from_secs(1);
/// The last of what a program wrote to standard error.
pub const WORDS_BYTES: usize = 4_096;
/// Follow-up jobs of one outcome: a fan-out wider than this is a batch.
pub const FOLLOW_UPS: usize = 1_000;
/// Their payloads together, each counted with [`FOLLOW_UP_OVERHEAD_BYTES`]: one of the largest
/// `max_payload_bytes` fits.
pub const FOLLOW_UPS_BYTES: usize = 65 << 20;
/// Effects of one outcome as they are held ([`crate::job::Effects::held_bytes`]), where a lane's state has so many at most.
pub fn effects_bytes(lane_state_max: usize) -> usize {
    2 * (lane_state_max + CONTEXT_BYTES) + FOLLOW_UPS_BYTES
}
/// A change of a map, beside its key and value.
pub const CHANGE_BYTES: usize = 64;
/// What a follow-up has beside its payload at most: handler, key, media type, delay, lengths.
pub const FOLLOW_UP_OVERHEAD_BYTES: usize = 1_024;

/// Everything beside the payload in a frame fits in this, with every other field at its limit:
/// 64 of frame, 256 each of handler, key and media type, 6,144 of error detail, ids, and room to spare.
pub const FRAME_OVERHEAD_BYTES: usize = 65_536;
const _: () = assert!(FRAME_OVERHEAD_BYTES > 64 + 4 * 256 + ERROR_DETAIL_BYTES + MAP_NAME_BYTES + 1_024);
// So do those of all jobs of a lease: key, media type, owner and the rest, and what came with the trace.
const _: () = assert!(FRAME_OVERHEAD_BYTES > RUN_JOBS * (3 * 256 + 128 + TRACESTATE_BYTES));

/// Connections on the channel that have not sent a valid first message, and those between it and the
/// third: a flood of strangers cannot evict an executor.
pub const UNPROVEN_CONNECTIONS: usize = 16;
/// From accept to the third message, and from connect to the second.
pub const HANDSHAKE_TIMEOUT: Duration = Duration::from_secs(2);
/// Accepts a turn, on the channel and on the public listener: the loop must come round to those it has.
pub const ACCEPTS_A_TURN: usize = 64;
/// Bytes of one read; a process has one buffer of them for all its connections of a kind.
pub const READ_BYTES: usize = 64 << 10;
/// Bytes read from one connection in one turn.
pub const READ_A_TURN_BYTES: usize = 256 << 10;

/// Lines of one `/v1/batch` request in flight.
pub const BATCH_LINES: usize = 256;
/// Lines of the `batch` command in flight: enough to keep runs of [`RUN_JOBS`] full on some lanes.
pub const BATCH_COMMAND_LINES: usize = 4_096;
const _: () = assert!(BATCH_LINES > RUN_JOBS && BATCH_COMMAND_LINES > BATCH_LINES);
/// With a journal, the output is on the disk but for so many lines at most, where each further line is submitted: those in
/// flight, and as many since the last sync. A journal relies on the process that wrote it having had no larger number.
pub const BATCH_LINES_BEHIND: u64 = 2 * BATCH_COMMAND_LINES as u64;
/// Records that a journal of a batch keeps: see `batch::resume`.
pub const BATCH_RECORDS: usize = 2 * BATCH_LINES_BEHIND as usize;

/// A request target; browsers and proxies stop at about this length too.
pub const TARGET_BYTES: usize = 8 << 10;
/// Private connections to the routes that render: four for anyone, two more for readiness and metrics.
pub const INNER_CONNECTIONS: usize = 4;
/// One for `/readyz` and one for `/metrics`, so that neither waits for the other.
pub const INNER_RESERVED: usize = 2;
/// Requests waiting for a private connection, then 503 `overloaded`.
pub const INNER_QUEUE: usize = 256;
/// Whoever waits for a route that renders is told to come again.
pub const INNER_TIMEOUT: Duration = Duration::from_secs(30);
/// Longer than any call of a backend that is slow: an answer that has not come by then never will.
pub const INNER_HANGS: Duration = Duration::from_secs(300);

/// A secret of two lines has 130 bytes; passwords may be longer.
pub const SECRET_FILE_BYTES: usize = 4_096;
/// Some 10,000 lines of a token file with names and lists of handlers; it fits into a child's bundle.
pub const TOKEN_FILE_BYTES: usize = 2 << 20;
/// Of a config file.
pub const CONFIG_FILE_BYTES: u64 = 16 << 20;
/// The value of an `Authorization` header; ours have 54 bytes.
pub const AUTHORIZATION_BYTES: usize = 128;
/// Requests without a valid token that an address may make in a second, and at once; beyond it they are 429, not 401.
pub const UNAUTHORIZED_A_SECOND: u32 = 10;
/// Addresses whose requests without a valid token are counted; beyond it all are forgotten.
pub const UNAUTHORIZED_ADDRESSES: usize = 4_096;

/// The body of a request that asks for none: it is read and dropped.
pub const UNASKED_BODY_BYTES: usize = 4 << 10;

/// Who may listen to `/v1/events` at once.
pub const LISTENERS: u64 = 16;

/// Lanes of one answer.
pub const LIST_LANES: usize = 100;

/// Records of one list answer.
pub const LIST_RECORDS: usize = 1_000;
/// The log buffer between the threads and the one writer: some 4,000 lines.
pub const LOG_LINES: usize = 4_096;
/// And so many bytes of them: a child may write long lines.
pub const LOG_BYTES: u64 = 4 << 20;
/// The public listener's backlog: while web is replaced the kernel keeps this many connections.
pub const LISTEN_BACKLOG: i32 = 4_096;
