//! The channel over real sockets, at a running service: strangers get no byte and a bounded time, liars who know the
//! secret are refused by name and counted, and all the while the service serves.
//!
//! The channel's port is chosen here: the kernel would tell it only to root, because the processes of a service are
//! not dumpable.

use std::io::{BufRead, BufReader, Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::process::{Child, ChildStdout};
use std::sync::Arc;
use std::thread::sleep;
use std::time::{Duration, Instant};

use cofferdam::HandlerOptions;
use cofferdam::bell::Bell;
use cofferdam::channel::handshake::Initiator;
use cofferdam::channel::keys::GroupSecret;
use cofferdam::channel::messages::ToBroker;
use cofferdam::channel::{ChannelClient, ChannelServer, Reject, ServerConfig};
use cofferdam::clock::{Clock, Timestamp, monotonic_millis};
use cofferdam::config::Ipc;
use cofferdam::config::secret::Secret;
use cofferdam::entropy::Entropy;
use cofferdam::handler::HandlerSpec;
use cofferdam::job::{Effects, FollowUp, JobId, JobStatus, Outcome, Payload, Version};
use cofferdam::memory::MemoryBroker;
use cofferdam::memory::broker::Broker;
use cofferdam::observe::metrics::Counters;
use cofferdam::ports::{Commit, Consumer, Producer, Requests, Rules, Submitted, Viewer};
use mio::{Events, Poll, Token};
use serde_json::json;

use jobs::plain;
use program::{DEADLINE, Folder, cofferdam, command};
use stopwatch::Stopwatch;
use strangers::{Peer, said_until_closed, stranger};
use wire::Forged;

#[path = "support/jobs.rs"]
mod jobs;
#[path = "support/program.rs"]
mod program;
#[path = "support/stopwatch.rs"]
mod stopwatch;
#[path = "support/strangers.rs"]
mod strangers;
#[path = "support/wire.rs"]
mod wire;

/// 2 s from accept, up to 100 ms until the loop looks, and what a loaded machine needs.
const CLOSED_WITHIN: Duration = Duration::from_secs(3);
/// What is refused is so long before that.
const AT_ONCE: Duration = Duration::from_millis(1_500);
const PAUSE: Duration = Duration::from_millis(10);
const ROOT: [u8; 4] = [0x0f, 0x1e, 0x2d, 0x3c];

/// A running service; dropping it ends it.
struct Service {
    child: Child,
    /// Kept open: a closed one would be another story.
    _stdout: BufReader<ChildStdout>,
    http: SocketAddr,
    channel: SocketAddr,
    _folder: Folder,
}

impl Service {
    fn start() -> Service {
        // Somebody may take a free port between our look and the service's bind.
        (0..5).find_map(|_| Service::try_start()).expect("a service starts")
    }

    fn try_start() -> Option<Service> {
        let folder = Folder::new();
        let hex: String = ROOT.repeat(8).iter().map(|byte| format!("{byte:02x}")).collect();
        let secret = folder.file("secret", hex);
        let mode = std::os::unix::fs::PermissionsExt::from_mode(0o600);
        std::fs::set_permissions(&secret, mode).expect("our own file");
        let free = TcpListener::bind("127.0.0.1:0").and_then(|free| free.local_addr()).expect("a free port");
        let ipc = "runtime.platform.execution_ipc";
        let settings = [
            "web.bind=127.0.0.1:0".to_owned(),
            "runtime.platform.lifecycle.graceful_timeout_ms=100".to_owned(),
            "observability.log=json".to_owned(),
            format!("{ipc}.bind_port={}", free.port()),
            format!("{ipc}.auth.secret_mode=static"),
            format!("{ipc}.auth.secret_file={}", secret.display()),
        ];
        let arguments = settings.iter().flat_map(|setting| ["--set", setting]);
        let mut child =
            command(&cofferdam(), ["serve"].into_iter().chain(arguments)).spawn().expect("the binary runs");
        let mut stderr = child.stderr.take().expect("a pipe");
        std::thread::spawn(move || std::io::copy(&mut stderr, &mut std::io::sink()));
        let mut stdout = BufReader::new(child.stdout.take().expect("a pipe"));
        let mut line = String::new();
        stdout.read_line(&mut line).expect("text");
        let http = line.strip_prefix("ready http://").and_then(|line| line.split(' ').next());
        let Some(http) = http.map(|http| http.parse().expect("an address")) else {
            let _ = child.kill();
            let _ = child.wait();
            return None;
        };
        Some(Service { child, _stdout: stdout, http, channel: free, _folder: folder })
    }

    fn connect(&self) -> TcpStream {
        strangers::connect(self.channel)
    }

    /// One request on a connection of its own; the whole answer.
    fn request(&self, head: &str, body: &str) -> String {
        let mut stream = TcpStream::connect(self.http).expect("the service listens");
        stream.set_read_timeout(Some(DEADLINE)).expect("a socket");
        let length = body.len();
        let request = format!(
            "{head} HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\nContent-Type: application/json\r\n\
             Content-Length: {length}\r\n\r\n{body}"
        );
        stream.write_all(request.as_bytes()).expect("it reads");
        let mut answer = String::new();
        stream.read_to_string(&mut answer).expect("it answers");
        answer
    }

    #[track_caller]
    fn serves(&self) {
        let answer = self.request("POST /v1/jobs/echo", "{\"n\":1}");
        assert!(answer.starts_with("HTTP/1.1 200") && answer.ends_with("{\"n\":1}"), "{answer}");
    }

    /// From one page: what is counted meanwhile may be nearly as fast as pages are.
    fn all_rejected(&self) -> Vec<(Reject, u64)> {
        let metrics = self.request("GET /metrics", "");
        let rejected = |reason: Reject| {
            let series = format!("cofferdam_ipc_rejected_total{{reason=\"{}\"}} ", reason.as_str());
            let value = metrics.lines().find_map(|line| line.strip_prefix(&series));
            let value = value.and_then(|value| value.trim().parse().ok());
            (reason, value.unwrap_or_else(|| panic!("{series}: {metrics}")))
        };
        Reject::ALL.map(rejected).to_vec()
    }

    /// So many more refusals of this reason than before, and none of another.
    #[track_caller]
    fn has_counted(&self, before: &[(Reject, u64)], more: &[(Reject, u64)]) {
        let added = |reason| more.iter().filter(|(of, _)| *of == reason).map(|(_, more)| more).sum::<u64>();
        let expected: Vec<_> =
            before.iter().map(|(reason, count)| (*reason, count + added(*reason))).collect();
        // The socket is closed before the count is there to be read.
        let end = Instant::now() + DEADLINE / 4;
        while self.all_rejected() != expected {
            assert!(Instant::now() < end, "{:?} instead of {expected:?}", self.all_rejected());
            sleep(PAUSE);
        }
    }

    fn secret(&self) -> GroupSecret {
        let root: [u8; 32] = ROOT.repeat(8).try_into().expect("32 bytes");
        GroupSecret::derive(&Secret::new(root).expect("a secret"), "execution")
    }

    fn initiator(&self, time_ms: u64) -> Initiator {
        strangers::initiator(&self.secret(), time_ms)
    }

    /// A connection that has its M2.
    fn proven(&self) -> Peer {
        Peer::proven(self.channel, &self.secret())
    }

    /// A connection that is up, as its first pong shows.
    fn up(&self) -> Peer {
        Peer::up(self.channel, &self.secret())
    }
}

impl Drop for Service {
    fn drop(&mut self) {
        if let Some(pid) = rustix::process::Pid::from_raw(self.child.id() as i32) {
            let _ = rustix::process::kill_process(pid, rustix::process::Signal::TERM);
        }
        let end = Instant::now() + Duration::from_secs(10);
        while matches!(self.child.try_wait(), Ok(None)) {
            if Instant::now() > end {
                let _ = self.child.kill();
            }
            sleep(PAUSE);
        }
    }
}

#[test]
fn c1_strangers_are_closed_in_time_without_a_byte_and_the_service_serves() {
    let service = Service::start();
    let before = service.all_rejected();
    let cases: [(&str, Vec<u8>, Reject); 8] = [
        ("silence", Vec::new(), Reject::HandshakeTimeout),
        ("half a message", b"CFD2\x02\x01\0\0".to_vec(), Reject::HandshakeTimeout),
        ("garbage", (0..4_096_u32).map(|at| (at * 31 % 251) as u8).collect(), Reject::Malformed),
        ("an HTTP request", b"GET / HTTP/1.1\r\nHost: localhost\r\n\r\n".to_vec(), Reject::Malformed),
        ("a huge length", [0xFF; 4].to_vec(), Reject::Malformed),
        ("zeros behind the magic", [&b"CFD2\x02\x01"[..], &[0; 74]].concat(), Reject::BadSignature),
        ("another version", [&b"CFD2\x01\x01"[..], &[0; 74]].concat(), Reject::BadVersion),
        ("the first protocol", [&b"CFD1\x01\x01"[..], &[0; 74]].concat(), Reject::Malformed),
    ];
    std::thread::scope(|scope| {
        for (name, bytes, reason) in &cases {
            let service = &service;
            scope.spawn(move || {
                let kept = stranger(service.channel, bytes);
                let limit = if *reason == Reject::HandshakeTimeout { CLOSED_WITHIN } else { AT_ONCE };
                assert!(kept < limit, "{name} was kept for {kept:?}");
            });
        }
        service.serves();
    });
    let counted: Vec<(Reject, u64)> = cases.iter().map(|(.., reason)| (*reason, 1)).collect();
    service.has_counted(&before, &counted);
    service.serves();
}

#[test]
fn c1_bytes_that_trickle_do_not_prolong_a_handshake() {
    let service = Service::start();
    let before = service.all_rejected();
    let mut stream = service.connect();
    let started = Stopwatch::start();
    let m1 = *service.initiator(monotonic_millis()).m1();
    let mut writer = stream.try_clone().expect("a socket");
    let trickle = std::thread::spawn(move || {
        // Waiting is what this stranger does; it ends when it is closed.
        m1.chunks(1)
            .take_while(|byte| writer.write_all(byte).map(|()| sleep(Duration::from_secs(1))).is_ok())
            .count()
    });
    assert_eq!(said_until_closed(&mut stream), b"");
    assert!(started.elapsed() < CLOSED_WITHIN, "kept for {:?}", started.elapsed());
    service.has_counted(&before, &[(Reject::HandshakeTimeout, 1)]);
    assert!(trickle.join().expect("no panic") < 10);
}

#[test]
fn c1_a_hundred_half_open_connections_cost_sixteen_places_and_no_executor() {
    let service = Service::start();
    let before = service.all_rejected();
    let mut executor = service.up();
    let started = Stopwatch::start();
    let mut strangers: Vec<TcpStream> = (0..100).map(|_| service.connect()).collect();
    service.serves();
    for stream in &mut strangers {
        assert_eq!(said_until_closed(stream), b"");
    }
    assert!(started.elapsed() < CLOSED_WITHIN + Duration::from_secs(1), "kept for {:?}", started.elapsed());
    service.has_counted(&before, &[(Reject::TooManyConnections, 84), (Reject::HandshakeTimeout, 16)]);
    service.serves();
    // The executor's connection was never in their way.
    let (kind, body) = ToBroker::Ping.encode();
    let mut bytes = Vec::new();
    executor.session.sealer.seal(kind, 0, &body, monotonic_millis(), &mut bytes);
    executor.stream.write_all(&bytes).expect("it reads");
    executor.stream.read_exact(&mut [0; wire::OVERHEAD]).expect("a pong");
}

#[test]
fn c1_a_hangup_in_the_handshake_is_a_failed_handshake() {
    let service = Service::start();
    let before = service.all_rejected();
    drop(service.connect());
    drop(service.proven());
    service.has_counted(&before, &[(Reject::HandshakeFailed, 2)]);
}

#[test]
fn c1_a_seventeenth_peer_between_the_messages_is_refused_and_the_sixteen_are_not() {
    let service = Service::start();
    let before = service.all_rejected();
    let mut peers: Vec<Peer> = (0..16).map(|_| service.proven()).collect();
    let mut late = service.connect();
    late.write_all(service.initiator(monotonic_millis()).m1()).expect("it reads");
    assert_eq!(said_until_closed(&mut late), b"");
    service.has_counted(&before, &[(Reject::TooManyConnections, 1)]);
    let m3 = peers[0].m3;
    peers[0].stream.write_all(&m3).expect("it reads");
    service.serves();
}

#[test]
fn c2_a_replayed_or_stale_first_message_is_refused_and_counted() {
    let service = Service::start();
    let before = service.all_rejected();
    let peer = service.up();
    for (m1, reason) in [
        (peer.m1, Reject::ReplayedNonce),
        (*service.initiator(monotonic_millis() - 6_000).m1(), Reject::ExpiredTimestamp),
        (*service.initiator(monotonic_millis() + 60_000).m1(), Reject::ExpiredTimestamp),
    ] {
        assert!(stranger(service.channel, &m1) < AT_ONCE, "{reason:?}");
    }
    service.has_counted(&before, &[(Reject::ReplayedNonce, 1), (Reject::ExpiredTimestamp, 2)]);
    let mut peer = service.proven();
    peer.m3[39] ^= 1;
    let m3 = peer.m3;
    peer.stream.write_all(&m3).expect("it reads");
    assert_eq!(peer.said_until_closed(), b"");
    let counted = [(Reject::ReplayedNonce, 1), (Reject::ExpiredTimestamp, 2), (Reject::BadSignature, 1)];
    service.has_counted(&before, &counted);
    service.serves();
}

#[test]
fn c5_each_refused_frame_closes_its_connection_without_an_answer_and_is_counted() {
    let service = Service::start();
    let before = service.all_rejected();
    // The first ping had sequence 0.
    let now = monotonic_millis();
    let next = || Forged { kind: 0x01, sequence: 1, time_ms: now, ..Forged::default() };
    let signed = |frame: Forged| move |peer: &Peer| frame.sealed(&peer.to_broker);
    type Bytes<'a> = Box<dyn Fn(&Peer) -> Vec<u8> + 'a>;
    let cases: Vec<(Bytes, Reject)> = vec![
        (Box::new(|peer| next().sealed(&peer.to_executor)), Reject::BadSignature),
        (Box::new(signed(Forged { sequence: 0, ..next() })), Reject::ReplayedNonce),
        (Box::new(signed(Forged { sequence: 2, ..next() })), Reject::ReplayedNonce),
        (Box::new(signed(Forged { time_ms: now - 31_000, ..next() })), Reject::ExpiredTimestamp),
        (Box::new(signed(Forged { time_ms: now + 60_000, ..next() })), Reject::ExpiredTimestamp),
        (Box::new(signed(Forged { flags: 1, ..next() })), Reject::Malformed),
        (Box::new(signed(Forged { body: vec![0], ..next() })), Reject::Malformed),
        (Box::new(signed(Forged { kind: 0x91, ..next() })), Reject::UnknownKind),
        (Box::new(|_| vec![0xFF; 4]), Reject::Oversized),
        (Box::new(|peer| (peer.session.max_frame + 1).to_be_bytes().to_vec()), Reject::Oversized),
        (Box::new(|_| vec![0, 0, 0, 59]), Reject::Malformed),
    ];
    let mut counted = Vec::new();
    for (bytes, reason) in cases {
        let mut peer = service.up();
        let bytes = bytes(&peer);
        peer.stream.write_all(&bytes).expect("it reads");
        assert_eq!(peer.said_until_closed(), b"", "{reason:?}");
        counted.push((reason, 1));
        service.has_counted(&before, &counted);
        service.serves();
    }
}

#[test]
fn c2_an_end_of_file_inside_a_frame_is_malformed_and_one_between_frames_is_not() {
    let service = Service::start();
    let before = service.all_rejected();
    drop(service.up());
    let mut peer = service.up();
    let frame = Forged { kind: 0x01, sequence: 1, time_ms: monotonic_millis(), ..Forged::default() };
    peer.stream.write_all(&frame.sealed(&peer.to_broker)[..40]).expect("it reads");
    drop(peer);
    service.has_counted(&before, &[(Reject::Malformed, 1)]);
}

/// Both ends with their sockets in this process: what an executor may commit, a server's bounds must take.
#[test]
fn as_many_and_as_large_follow_ups_as_a_handler_may_submit_are_committed() {
    const PAYLOAD: usize = 8_192;
    let spec = HandlerSpec::new("free", 0, HandlerOptions::default());
    let rules = Rules {
        capacity: 10_000,
        visibility: Duration::from_secs(30),
        max_deliveries: 3,
        retry: cofferdam::handler::Retry { base_ms: 200, max_ms: 2000 },
        result_ttl: Duration::from_secs(600),
        awaited_ttl: Duration::from_secs(30),
        context_ttl: Duration::from_secs(60),
        lane_state_max: 1_024,
        max_payload: PAYLOAD,
        grace: Duration::from_secs(1),
        ..Rules::default()
    };
    let clock = Clock::manual(Timestamp(1_700_000_000_000_000));
    let broker = Broker::new(rules, vec![spec], vec![64], Entropy::Seeded(1));
    let broker = MemoryBroker::new(broker, clock, vec![Arc::from("a")]);
    let auth = json!({
        "mode": "hmac", "kdf": "hkdf_sha256", "secret_mode": "generated", "ttl_seconds": 30, "nonce_cache_size": 16,
    });
    let ipc = json!({
        "transport": "tcp_local",
        "bind_host": "127.0.0.1", "bind_port": 0, "max_payload_bytes": PAYLOAD, "auth": auth, "heartbeat_ms": 2_000,
    });
    let ipc: Ipc = serde_json::from_value(ipc).expect("all of it");
    let secret = || GroupSecret::from_bytes([5; 32]);
    let config = ServerConfig { secrets: vec![secret()], ipc, lane_state_max: 1_024, processes: vec![1] };
    let consumers = broker.clone();
    let connect = move |group| Box::new(consumers.consumer(group, Bell::silent())) as Box<dyn Consumer>;
    let mut server =
        ChannelServer::bind(config, Arc::new(Counters::default()), Box::new(connect)).expect("a port");
    let (mut poll, mut events) = (Poll::new().expect("a poll"), Events::with_capacity(16));
    server.register(poll.registry(), Token(0)).expect("it is registered");
    let mut client = ChannelClient::new(secret(), 0, 30_000, 2_000, Token(1));
    client.set_address(server.address().expect("an address"), monotonic_millis());

    let job = plain(JobId([1; 16]), "free");
    assert_eq!(broker.submit(vec![job]).expect("the broker is there"), [Submitted::New]);
    let follow_up = FollowUp {
        handler: "free".into(),
        ordering_key: None,
        delay: Duration::ZERO,
        payload: Payload::octets(vec![7; PAYLOAD]),
    };
    let count = cofferdam::limits::FOLLOW_UPS;
    let effects = Effects { follow_ups: vec![follow_up; count], ..Effects::default() };
    let (mut requests, mut has_said) = (Requests::default(), false);
    let (mut next_link, mut room, end) = (100, 1, Instant::now() + DEADLINE);
    // Without room it is settled once all that was said is in the books; nothing was fenced before.
    while !has_said || !client.is_settled() {
        assert!(Instant::now() < end, "the drain was not answered");
        let now_ms = monotonic_millis();
        client.tick(poll.registry(), now_ms);
        has_said |= !requests.is_empty();
        let step = client.step(std::mem::take(&mut requests), room).expect("the connection stays");
        assert!(step.fenced.is_empty(), "{:?}", step.fenced);
        for lease in step.leases {
            room = 0;
            let job = &lease.jobs[0];
            let outcome = Outcome::Succeeded(Payload::json(*b"1"), effects.clone());
            let (lease, delivery) = (lease.id, job.delivery);
            let (job, builds_on) = (job.spec.id, Version::default());
            requests.commits.push(Commit { lease, job, delivery, builds_on, outcome });
        }
        client.flush(now_ms);
        server.turn(poll.registry(), &mut next_link, now_ms);
        poll.poll(&mut events, Some(Duration::from_millis(1))).expect("a poll");
        for event in &events {
            match event.token() {
                Token(0) => server.on_connect(),
                Token(1) => client.on_event(event, now_ms),
                Token(token) => server.on_event(token, event, now_ms),
            }
        }
    }
    let record = broker.record(&Viewer::anonymous(), JobId([1; 16])).expect("the broker is there");
    assert_eq!(record.map(|record| record.status), Some(JobStatus::Succeeded));
    assert_eq!(broker.stats().expect("the broker is there").handlers[0].queued, count);
}
