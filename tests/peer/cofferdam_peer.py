"""The executor's end of the channel a second time, from docs/protocol.md alone; Python's standard library only.

    cofferdam_peer.py vectors FILE      checks this implementation against the document's test vectors
    cofferdam_peer.py executor ...      joins a running service as an executor of one group

The executor is driven from outside, one JSON object a line. It keeps the connection by itself (handshake, heartbeat,
back-off, lanes' states, parts); what a handler would decide comes in as commands, and what happens goes out as events.
"""

import argparse
import json
import os
import random
import selectors
import socket
import sys
import time

# Importing must leave nothing in the source tree.
sys.dont_write_bytecode = True

from vectors import check_vectors  # noqa: E402
from wire import (  # noqa: E402
    AHEAD_MS, B_TO_E, E_TO_B, EFFECTS, HANDSHAKE_MS, KNOWN, M2_SIZE, OUTCOME, OVERHEAD, STATELESS, WHOLE, Cursor, Keys,
    Media, Opener, Refused, Sealer, check_m2, counted_bytes, group_secret, make_m1, make_m3, parts_bound,
)  # fmt: skip

WRITE_S, STDIN = 10, 0
BACKOFF_MS, BACKOFF_MOST_MS = 10, 1_000
BY_ITS_BACKOFF = 0
ENDS_THE_LEASE = ("retry", "crashed", "timed_out")
EMPTY, NO_PAYLOAD = {"state": [], "context": [], "follow_ups": []}, {"media": "a/b", "data": b""}
TOO_LATE = {"is": "failed", "code": "handler_failed", "detail": "too late"}


def now_ms():
    return time.clock_gettime_ns(time.CLOCK_MONOTONIC) // 1_000_000


def tell(event, **fields):
    print(json.dumps({"event": event, **fields}), flush=True)


def shown(value):
    """Bytes as text; long ones, and those that are no text, by their length."""
    try:
        return value.decode() if len(value) <= 4_096 else {"length": len(value)}
    except UnicodeDecodeError:
        return {"length": len(value)}


def given(value):
    """The bytes of a command's value: a text, or so many times `x`."""
    return b"x" * value["fill"] if isinstance(value, dict) else value.encode()


def changes(wanted):
    """A command's names and values as changes; a name with null is removed."""
    for name, value in wanted.items():
        yield {"name": name, "set": int(value is not None), "value": b"" if value is None else given(value)}


def apply(entries, wanted):
    for change in wanted:
        if change["set"]:
            entries[change["name"]] = change["value"]
        else:
            entries.pop(change["name"], None)


def split(effects, room):
    """Effects in pieces whose encodings have at most `room` bytes each, in order."""
    piece, size = {name: [] for name in effects}, len(EFFECTS.write({name: [] for name in effects}))
    empty = size
    for name, items in effects.items():
        for item in items:
            item_size = len(EFFECTS.fields[name].item.write(item))
            if size + item_size > room:
                yield piece
                piece, size = {name: [] for name in effects}, empty
            piece[name].append(item)
            size += item_size
    yield piece


class Run:
    """The jobs of one lease that are still to be answered; the first of them is running."""

    def __init__(self, body, contexts):
        self.handler, self.jobs, self.contexts = body["handler"], list(body["jobs"]), contexts
        self.stateless, key = body["state"] == STATELESS, self.jobs[0]["key"]
        self.lane = (self.handler, key["keyed"], key["key"])


class Connection:
    """One connection from the first byte on, and all that must be forgotten with it."""

    def __init__(self, args, keys):
        self.args, self.keys = args, keys
        self.lanes = {}  # lane -> [version, entries], as of the last outcome
        self.states = {}  # lease -> (entries or None, contexts), until its Lease is there
        self.runs = {}
        self.answered = {}  # lease -> lane, while a Fenced may come
        self.level = args.room  # what Room says while nothing else is wanted
        self.drain_due, self.ask_again = False, False  # a Room 0 is unanswered; another one is to follow it
        self.settling, self.ending, self.muted = False, False, False
        self.read_bytes = 0
        self.socket = socket.create_connection((args.host, args.port), timeout=HANDSHAKE_MS / 1_000)
        self.socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)

    def shake_hands(self):
        deadline = now_ms() + HANDSHAKE_MS
        self.m1 = make_m1(self.keys, self.args.index, now_ms(), os.urandom(32))
        self.socket.sendall(self.m1)
        m2 = b""
        while len(m2) < M2_SIZE:
            self.socket.settimeout(max(deadline - now_ms(), 1) / 1_000)
            try:
                read = self.socket.recv(M2_SIZE + 1 - len(m2))
            except TimeoutError:
                raise Refused("handshake_timeout") from None
            if not read:
                raise Refused("handshake_failed")
            m2 += read
            self.read_bytes += len(read)
        if len(m2) > M2_SIZE:
            raise Refused("malformed")
        boot_id, self.max_frame, self.max_leases = check_m2(self.keys, self.m1, m2, now_ms())
        self.socket.sendall(make_m3(self.keys, self.m1, m2))
        self.socket.settimeout(WRITE_S)
        session = self.keys.session(self.m1, m2)
        self.sealer = Sealer(session.e2b, E_TO_B)
        self.opener = Opener(session.b2e, B_TO_E, self.max_frame, self.args.ttl_s * 1_000)
        self.heard, self.ping_at = now_ms(), now_ms()
        tell("up", boot_id=boot_id.hex(), max_frame=self.max_frame, max_leases=self.max_leases)

    def send(self, name, lease=0, **body):
        self.socket.sendall(self.sealer.seal(name, lease, body, now_ms()))

    def say_room(self, level):
        """Room; 0 only once the one before has its Drain, which does not say which of them it answers."""
        if level == 0 and self.drain_due:
            self.ask_again = True
            return
        self.drain_due, self.ask_again = level == 0, False
        self.send("room", level=level)

    def said_more(self):
        """What was said behind a Room 0 has its own."""
        if self.ending or (self.level == 0 and self.drain_due):
            self.say_room(0)

    # -- time

    def waits_ms(self):
        """Until `tick` has something to do; None: never. A muted one waits for B to close."""
        if self.muted:
            return None
        return max(min(self.silent_at(), self.ping_at) - now_ms(), 0)

    def silent_at(self):
        return self.heard + self.args.heartbeat_ms * 7 // 2

    def tick(self):
        if self.muted:
            return
        if now_ms() >= self.silent_at():
            raise Refused("silence")
        if now_ms() >= self.ping_at:
            self.ping_at = now_ms() + self.args.heartbeat_ms
            self.send("ping")

    # -- what B says

    def receive(self):
        read = self.socket.recv(1 << 16)
        if not read:
            raise Refused("malformed" if self.opener.buffer else "end of file")
        self.opener.buffer += read
        while frame := self.opener.next(now_ms()):
            self.heard = now_ms()
            name, lease, body = frame
            getattr(self, "on_" + name)(lease, body)

    def on_pong(self, _lease, _body):
        tell("pong")

    def on_state(self, lease, body):
        lane, contexts = self.states.setdefault(lease, (None, {}))
        if body["is_context"]:
            into = contexts.setdefault(body["trace"], {})
        else:
            into = {} if lane is None else lane
            self.states[lease] = (into, contexts)
        into.update((entry["name"], entry["value"]) for entry in body["entries"])

    def on_lease(self, lease, body):
        state, contexts = self.states.pop(lease, (None, {}))
        run = Run(body, contexts)
        if state and body["state"] != WHOLE:
            raise Refused("malformed")
        if body["state"] == WHOLE:
            self.lanes[run.lane] = [body["version"], state or {}]
        if body["state"] == KNOWN and body["version"] == 0:
            self.lanes[run.lane] = [0, {}]
        if body["state"] == KNOWN and self.lanes.get(run.lane, [None])[0] != body["version"]:
            tell("need_state", lease=lease)
            self.release(lease)
            return
        if self.ending:
            self.release(lease)
            return
        self.runs[lease] = run
        _, entries = self.lanes.get(run.lane, (0, {})) if not run.stateless else (0, {})
        tell(
            "lease", lease=lease, handler=run.handler, state=("stateless", "known", "whole")[body["state"]],
            version=body["version"], entries={name: shown(value) for name, value in entries.items()},
            jobs=[{**job, "payload": shown(job["payload"]["data"]), "media": job["payload"]["media"],
                   "context": {n: shown(v) for n, v in contexts.get(job["trace"], {}).items()}} for job in run.jobs],
        )  # fmt: skip

    def on_fenced(self, lease, body):
        run = self.runs.pop(lease, None)
        self.lanes.pop(run.lane if run else self.answered.get(lease), None)
        tell("fenced", lease=lease, **body)

    def on_cancel(self, lease, body):
        run = self.runs.get(lease)
        if run and run.jobs[0]["id"] == body["job"]:
            # The cancelled job may have been about to change the state that is kept here; it has not.
            self.release(lease)
        elif run:
            run.jobs = [job for job in run.jobs if job["id"] != body["job"]]
        tell("cancel", lease=lease, **body)

    def on_drain(self, _lease, _body):
        self.drain_due = False
        if self.ask_again:
            self.say_room(0)
        elif self.settling:
            self.settling = False
            # All that was said is in the books; what was not has been called Fenced before this.
            self.answered.clear()
            tell("settled")
            if self.level:
                self.say_room(self.level)
        elif not self.ending:
            tell("drain")

    # -- what the handler says

    def release(self, lease):
        self.runs.pop(lease, None)
        self.send("release", lease)
        self.said_more()

    def settle(self):
        """Room 0 behind all that was said, and the old level once it has its Drain."""
        self.settling = True
        self.say_room(0)

    def end(self):
        """No lease more; what runs is still answered."""
        self.ending, self.level = True, 0
        self.say_room(0)

    def has_ended(self):
        return self.ending and not self.runs and not self.drain_due

    def answer(self, command):
        """One outcome, for the running job of a lease, with its parts before it."""
        lease, outcome = command["lease"], command["outcome"]
        run = self.runs[lease]
        job, lane = run.jobs.pop(0), self.lanes.get(run.lane)
        body = {"job": job["id"], "delivery": job["delivery"], "builds_on": 0 if run.stateless else lane[0]}
        body["outcome"] = {"is": outcome, "code": command.get("code"), "detail": command.get("detail", "")}
        body["outcome"]["after_ms"] = command.get("after_ms", BY_ITS_BACKOFF)
        parts, media = [], None
        if outcome == "succeeded":
            effects = self.effects(command)
            media = command.get("media", "application/json")
            body["outcome"]["payload"] = {"media": media, "data": given(command["result"])}
            media = Media().read(Cursor(Media().write(media)))  # as B reads it
            body["outcome"]["effects"] = effects
            if len(OUTCOME.write(body)) + OVERHEAD > self.max_frame:
                parts = list(split(effects, self.max_frame - OVERHEAD))
                assert sum(map(counted_bytes, parts)) <= self.parts_bound()
                body["outcome"]["effects"] = dict.fromkeys(effects, ())
            if effects["state"]:
                lane[0] = job["fence"]
                apply(lane[1], effects["state"])
            apply(run.contexts.setdefault(job["trace"], {}), effects["context"])
        for part in parts:
            self.send("part", lease, **part)
        self.answered[lease] = run.lane
        self.send("outcome", lease, **body)
        tell("answered", lease=lease, job=job["id"], parts=len(parts), builds_on=body["builds_on"], media=media)
        if not run.jobs or outcome in ENDS_THE_LEASE:
            self.runs.pop(lease)
            self.said_more()
        elif self.ending:
            self.release(lease)
        else:
            self.said_more()

    def parts_bound(self):
        return parts_bound(self.args.lane_state_max, self.max_frame)

    @staticmethod
    def effects(command):
        follow_ups = [
            {
                "handler": it["handler"],
                "key": {"keyed": int("key" in it), "key": it.get("key", "")},
                "delay_ms": it.get("delay_ms", 0),
                "payload": {"media": "application/json", "data": given(it["payload"])},
            }
            for it in command.get("follow_ups", ())
        ]
        state, context = (list(changes(command.get(name, {}))) for name in ("state", "context"))
        return {"state": state, "context": context, "follow_ups": follow_ups}

    # -- what a liar says

    def fault(self, which):
        """Sends what B must refuse: one frame, or one behind others that are honest."""
        if which == "deaf":
            return self.never_read()
        stale = self.args.ttl_s * 1_000 + 1
        ping = lambda body=b"", at=0, number=0x01: self.sealer.seal_raw(number, 0, body, now_ms() + at)
        frame = lambda name, lease, **body: self.sealer.seal(name, lease, body, now_ms())
        part = lambda lease, effects=EMPTY: frame("part", lease, **effects)
        outcome = lambda lease: frame("outcome", lease, job="11" * 16, delivery=1, builds_on=0, outcome=TOO_LATE)
        follow_up = {"handler": "", "key": {"keyed": 0, "key": ""}, "delay_ms": 0, "payload": NO_PAYLOAD}
        full = {**EMPTY, "follow_ups": [follow_up] * 1_000}
        too_many = 1 + self.parts_bound() // counted_bytes(full)
        if which == "skipped":
            self.sealer.sequence += 1
        made = {
            "replayed": lambda: ping() * 2,
            "skipped": ping,
            "stale": lambda: ping(at=-stale),
            "early": lambda: ping(at=AHEAD_MS + 60_000),
            "trailing": lambda: ping(b"\0"),
            "kind": lambda: ping(number=0x16),
            "direction": lambda: ping(number=0x81),
            "report": lambda: ping(number=0x13),
            "part_release": lambda: part(1) + frame("release", 1),
            "part_progress": lambda: part(1) + frame("progress", 1, job="11" * 16, progress="1"),
            "part_of_another": lambda: part(1) + part(2),
            "outcome_of_another": lambda: part(1) + outcome(2),
            "parts_beyond": lambda: b"".join(part(1, full) for _ in range(too_many)),
            "altered": lambda: ping()[:-40] + b"\xff" + ping()[-39:],
            "oversized": lambda: (self.max_frame + 1).to_bytes(4, "big"),
            "cut_off": lambda: ping()[:-1],
            "short": lambda: (OVERHEAD - 1).to_bytes(4, "big"),
        }[which]()
        self.muted = True
        self.socket.sendall(made)
        if which == "cut_off":
            self.socket.shutdown(socket.SHUT_WR)

    def never_read(self):
        """Pings until B closes, whose Pongs nobody takes."""
        self.muted = True
        while True:
            self.socket.sendall(b"".join(self.sealer.seal("ping", 0, {}, now_ms()) for _ in range(1_024)))


class Executor:
    """The peer's loop: one connection after the other, and commands in between."""

    connection_type = Connection

    def __init__(self, args):
        with open(args.secret_file, encoding="ascii") as file:
            root = bytes.fromhex(file.readline().strip())
        self.args, self.keys = args, Keys(group_secret(root, args.group))
        self.input, self.backoff, self.connection = b"", BACKOFF_MS, None

    def run(self):
        while True:
            try:
                self.one_connection()
            except (Refused, OSError) as error:
                why = str(error) if isinstance(error, Refused) else type(error).__name__
                tell("closed", why=why, bytes=self.connection.read_bytes if self.connection else 0)
            if not self.args.again:
                return 0
            time.sleep(random.uniform(self.backoff / 2, self.backoff) / 1_000)
            self.backoff = min(self.backoff * 2, BACKOFF_MOST_MS)

    def one_connection(self):
        self.connection = connection = self.connection_type(self.args, self.keys)
        with connection.socket, selectors.DefaultSelector() as selector:
            connection.shake_hands()
            connection.tick()
            if self.args.room:
                connection.say_room(self.args.room)
            selector.register(connection.socket, selectors.EVENT_READ, connection.receive)
            selector.register(STDIN, selectors.EVENT_READ, self.read_commands)
            while True:
                waits_ms = connection.waits_ms()
                for key, _ in selector.select(None if waits_ms is None else waits_ms / 1_000):
                    key.data()
                connection.tick()
                if connection.opener.sequence:
                    self.backoff = BACKOFF_MS
                if connection.has_ended():
                    tell("ended")
                    sys.exit(0)

    def read_commands(self):
        read = os.read(STDIN, 1 << 16)
        if not read:
            sys.exit(0)
        *lines, self.input = (self.input + read).split(b"\n")
        for line in lines:
            self.obey(json.loads(line))

    def obey(self, command):
        connection = self.connection
        match command["do"]:
            case "answer":
                connection.answer(command)
            case "settle":
                connection.settle()
            case "progress":
                connection.send("progress", command["lease"], job=command["job"], progress=command["progress"])
            case "release":
                connection.release(command["lease"])
            case "room":
                connection.level = command["level"]
                connection.say_room(command["level"])
            case "end":
                connection.end()
            case "late":
                connection.send(
                    "outcome", command["lease"], job=command["job"], delivery=1, builds_on=0, outcome=TOO_LATE
                )
            case "forget":
                connection.lanes.clear()
            case "mute":
                connection.muted = True
            case "fault":
                connection.fault(command["which"])
            case "cut":
                raise Refused("cut")
            case "replay_m1":
                with socket.create_connection((self.args.host, self.args.port), timeout=WRITE_S) as other:
                    other.sendall(connection.m1)
                    tell("replayed", bytes=len(other.recv(M2_SIZE)))


def main(executor_type=Executor):
    parser = argparse.ArgumentParser()
    modes = parser.add_subparsers(dest="mode", required=True)
    modes.add_parser("vectors").add_argument("file")
    executor = modes.add_parser("executor")
    executor.add_argument("--host", default="127.0.0.1")
    executor.add_argument("--port", type=int, required=True)
    executor.add_argument("--secret-file", required=True)
    executor.add_argument("--group", required=True, help="chooses the secret")
    executor.add_argument("--index", type=int, required=True, help="what M1 says")
    executor.add_argument("--heartbeat-ms", type=int, required=True)
    executor.add_argument("--ttl-s", type=int, default=30)
    executor.add_argument("--room", type=int, default=0, help="leases at a time, from the beginning")
    executor.add_argument("--lane-state-max", type=int, default=64 << 20)
    executor.add_argument("--again", action="store_true", help="connect again when cut")
    args = parser.parse_args()
    return check_vectors(args.file) if args.mode == "vectors" else executor_type(args).run()


if __name__ == "__main__":
    sys.exit(main())
