"""An executor with its group's secret and no manners: the peer, and what a compromised handler process may try.

    hostile.py executor ...      as `cofferdam_peer.py executor`, with commands more

    {"do": "auto", ...}                   answers every lease from now on, with this outcome
    {"do": "tiny_parts", "frames": N}     effects of seven bytes each that no outcome follows
    {"do": "connect", "count": N}         so many more connections of this group
    {"do": "first_messages", "ms": N, "count": N}   first messages alone, for so long, and until they are so many
    {"do": "others", "leases": N}         outcomes of leases that are not its own
"""

import os
import socket
import sys

sys.dont_write_bytecode = True

import cofferdam_peer as peer  # noqa: E402
from cofferdam_peer import now_ms, tell  # noqa: E402
from wire import EFFECTS, M2_SIZE, check_m2, make_m1, make_m3  # noqa: E402


class Liar(peer.Connection):
    """One that says what no honest executor would."""

    auto = None

    def on_lease(self, lease, body):
        super().on_lease(lease, body)
        self.answer_all()

    def answer_all(self):
        while Liar.auto and self.runs:
            self.answer({**Liar.auto, "lease": min(self.runs)})

    def answer(self, command):
        run = self.runs[command["lease"]]
        job = run.jobs[0]
        run.jobs[0] = {**job, "delivery": job["delivery"] + command.get("delivery_off", 0)}
        if "context_by_job" in command:
            command = {**command, "context": {job["id"]: command["context_by_job"]}}
        follow_ups = command.get("follow_ups", []) * command.get("times", 1)
        super().answer({**command, "follow_ups": follow_ups})

    def tiny_parts(self, frames):
        change = {"name": "a", "set": 0, "value": b""}
        body = EFFECTS.write({"state": [], "context": [change] * 65_000, "follow_ups": []})
        number, _ = self.sealer.numbers["part"]
        self.muted = True
        for _ in range(frames):
            self.socket.sendall(self.sealer.seal_raw(number, 1, body, now_ms()))

    def more_connections(self, count):
        """Each with all three messages; those that are still open afterwards count."""
        held = []
        for _ in range(count):
            try:
                one = socket.create_connection((self.args.host, self.args.port), timeout=2)
                m1 = make_m1(self.keys, self.args.index, now_ms(), os.urandom(32))
                one.sendall(m1)
                m2 = b""
                while len(m2) < M2_SIZE:
                    read = one.recv(M2_SIZE - len(m2))
                    if not read:
                        raise ConnectionResetError
                    m2 += read
                check_m2(self.keys, m1, m2, now_ms())
                one.sendall(make_m3(self.keys, m1, m2))
                held.append(one)
            except OSError:
                one.close()
        tell("connected", open=sum(map(is_open, held)))
        self.held = held

    def first_messages(self, ms, count):
        until, sent = now_ms() + ms, 0
        # Each that meets a full backlog costs a second.
        while now_ms() < until or sent < count and now_ms() < until + 30_000:
            try:
                with socket.create_connection((self.args.host, self.args.port), timeout=2) as one:
                    one.sendall(make_m1(self.keys, self.args.index, now_ms(), os.urandom(32)))
                    sent += 1
            except OSError:
                pass
        tell("sent", count=sent)

    def others(self, leases):
        others = [lease for lease in range(leases) if lease not in self.runs]
        for lease in others:
            self.send("outcome", lease, job="11" * 16, delivery=1, builds_on=0, outcome=peer.TOO_LATE)
        tell("sent", count=len(others))


def is_open(one):
    """True if B has not closed it within a moment."""
    one.settimeout(0.2)
    try:
        return one.recv(1) != b""
    except TimeoutError:
        return True
    except OSError:
        return False


class Hostile(peer.Executor):
    connection_type = Liar

    def obey(self, command):
        connection = self.connection
        match command["do"]:
            case "auto":
                Liar.auto = command
                tell("auto")
                connection.answer_all()
            case "tiny_parts":
                connection.tiny_parts(command["frames"])
            case "connect":
                connection.more_connections(command["count"])
            case "first_messages":
                connection.first_messages(command["ms"], command["count"])
            case "others":
                connection.others(command["leases"])
            case _:
                super().obey(command)


if __name__ == "__main__":
    sys.exit(peer.main(Hostile))
