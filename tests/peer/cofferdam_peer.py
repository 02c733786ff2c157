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
    AHEAD_MS, B_TO_E, DRAINING, E_TO_B, EFFECTS, HANDSHAKE_MS, KNOWN, M2_SIZE, NEED_STATE, OUTCOME, OVERHEAD, RUN_ENDED,
    STATELESS, WHOLE, Keys, Opener, Refused, Sealer, check_m2, group_secret, make_m1, make_m3,
)  # fmt: skip

WRITE_S, STDIN = 10, 0
BACKOFF_MS, BACKOFF_MOST_MS = 10, 1_000
ENDS_THE_LEASE = ("retry", "crashed", "timed_out")


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
        self.unanswered = {}  # (lease, job) -> lane
        self.draining, self.muted = False, False
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
        if state is not None and body["state"] != WHOLE:
            raise Refused("malformed")
        if body["state"] == WHOLE:
            self.lanes[run.lane] = [body["version"], state or {}]
        if body["state"] == KNOWN and self.lanes.get(run.lane, [None])[0] != body["version"]:
            tell("need_state", lease=lease)
            self.over(lease, NEED_STATE)
            return
        self.runs[lease] = run
        _, entries = self.lanes.get(run.lane, (0, {})) if not run.stateless else (0, {})
        tell(
            "lease", lease=lease, handler=run.handler, state=("stateless", "known", "whole")[body["state"]],
            version=body["version"], entries={name: shown(value) for name, value in entries.items()},
            jobs=[{**job, "payload": shown(job["payload"]["data"]), "media": job["payload"]["media"],
                   "context": {n: shown(v) for n, v in contexts.get(job["trace"], {}).items()}} for job in run.jobs],
        )  # fmt: skip

    def on_committed(self, lease, body):
        self.unanswered.pop((lease, body["job"]), None)
        tell("committed", lease=lease, **body)

    def on_fenced(self, lease, body):
        lane = self.unanswered.pop((lease, body["job"]), None)
        if lease in self.runs:
            lane = self.runs[lease].lane
            self.over(lease)
        self.lanes.pop(lane, None)
        tell("fenced", lease=lease, **body)

    def on_cancel(self, lease, body):
        run = self.runs.get(lease)
        if run and run.jobs[0]["id"] == body["job"]:
            # The cancelled job may have been about to change the state that is kept here; it has not.
            self.over(lease, RUN_ENDED)
        elif run:
            run.jobs = [job for job in run.jobs if job["id"] != body["job"]]
        tell("cancel", lease=lease, **body)

    def on_drain(self, _lease, _body):
        self.draining = True
        tell("drain")

    # -- what the handler says

    def over(self, lease, reason=None):
        """This lease is over, and so there is room for one more."""
        self.runs.pop(lease, None)
        if reason is not None:
            self.send("release", lease, reason=reason)
        if not self.draining and self.args.room:
            self.send("room", leases=1)

    def answer(self, command):
        """One outcome, for the running job of a lease, with its parts before it."""
        lease, verdict = command["lease"], command["verdict"]
        run = self.runs[lease]
        job, lane = run.jobs.pop(0), self.lanes.get(run.lane)
        body = {"job": job["id"], "delivery": job["delivery"], "builds_on": 0 if run.stateless else lane[0]}
        body["verdict"] = {"is": verdict, "code": command.get("code"), "detail": command.get("detail", "")}
        parts = []
        if verdict == "succeeded":
            effects = self.effects(command)
            body["verdict"]["payload"] = {"media": "application/json", "data": given(command["result"])}
            body["verdict"]["effects"] = effects
            if len(OUTCOME.write(body)) + OVERHEAD > self.max_frame:
                parts = list(split(effects, self.max_frame - OVERHEAD))
                body["verdict"]["effects"] = dict.fromkeys(effects, ())
            if effects["state"]:
                lane[0] = job["fence"]
                apply(lane[1], effects["state"])
            apply(run.contexts.setdefault(job["trace"], {}), effects["context"])
        for part in parts:
            self.send("part", lease, **part)
        self.unanswered[lease, job["id"]] = run.lane
        self.send("outcome", lease, **body)
        tell("answered", lease=lease, job=job["id"], parts=len(parts), builds_on=body["builds_on"])
        if not run.jobs or verdict in ENDS_THE_LEASE:
            self.over(lease)
        elif self.draining:
            self.over(lease, DRAINING)

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
        """Sends one frame that B must refuse."""
        stale = self.args.ttl_s * 1_000 + 1
        ping = lambda body=b"", at=0, number=0x01: self.sealer.seal_raw(number, 0, body, now_ms() + at)
        if which == "skipped":
            self.sealer.sequence += 1
        made = {
            "replayed": lambda: ping() * 2,
            "skipped": ping,
            "stale": lambda: ping(at=-stale),
            "early": lambda: ping(at=AHEAD_MS + 60_000),
            "trailing": lambda: ping(b"\0"),
            "kind": lambda: ping(number=0x15),
            "direction": lambda: ping(number=0x81),
            "altered": lambda: ping()[:-40] + b"\xff" + ping()[-39:],
            "oversized": lambda: (self.max_frame + 1).to_bytes(4, "big"),
            "cut_off": lambda: ping()[:-1],
            "short": lambda: (OVERHEAD - 1).to_bytes(4, "big"),
        }[which]()
        self.muted = True
        self.socket.sendall(made)
        if which == "cut_off":
            self.socket.shutdown(socket.SHUT_WR)


class Executor:
    """The peer's loop: one connection after the other, and commands in between."""

    def __init__(self, args):
        with open(args.secret_file, encoding="ascii") as file:
            root = bytes.fromhex(file.read().strip())
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
        self.connection = connection = Connection(self.args, self.keys)
        with connection.socket, selectors.DefaultSelector() as selector:
            connection.shake_hands()
            connection.tick()
            if self.args.room:
                connection.send("room", leases=self.args.room)
            selector.register(connection.socket, selectors.EVENT_READ, connection.receive)
            selector.register(STDIN, selectors.EVENT_READ, self.read_commands)
            while True:
                waits_ms = connection.waits_ms()
                for key, _ in selector.select(None if waits_ms is None else waits_ms / 1_000):
                    key.data()
                connection.tick()
                if connection.opener.sequence:
                    self.backoff = BACKOFF_MS

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
            case "release":
                connection.over(command["lease"], command["reason"])
            case "room":
                connection.send("room", leases=command["leases"])
            case "late":
                verdict = {"is": "failed", "code": "handler_failed", "detail": "too late"}
                connection.send(
                    "outcome", command["lease"], job=command["job"], delivery=1, builds_on=0, verdict=verdict
                )
            case "report":
                connection.send("report", workers=command["workers"])
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


def main():
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
    executor.add_argument("--room", type=int, default=0, help="leases at a time")
    executor.add_argument("--again", action="store_true", help="connect again when cut")
    args = parser.parse_args()
    return check_vectors(args.file) if args.mode == "vectors" else Executor(args).run()


if __name__ == "__main__":
    sys.exit(main())
