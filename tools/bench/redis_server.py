"""A real `redis-server` for one measurement: on a Unix socket in a folder of its own, and what it tells of itself."""

import contextlib
import re
import shutil
import socket
import tempfile
import time
from pathlib import Path

from common import READY_TIMEOUT_S, Failed, Process

ANSWER_TIMEOUT_S = 20
# Those that this module sends itself.
OWN_COMMANDS = {"config", "flushall", "info", "ping", "zcard"}
SCRIPTS = {"eval", "evalsha", "eval_ro", "evalsha_ro", "fcall", "fcall_ro"}


@contextlib.contextmanager
def redis_server(*options):
    """Nothing survives it: no snapshots, and an append-only file only if the options ask for one."""
    program = shutil.which("redis-server")
    if program is None:
        raise Failed("there is no redis-server in PATH")
    with tempfile.TemporaryDirectory(prefix="cofferdam-bench-") as folder:
        path = Path(folder) / "redis.sock"
        command = [program, "--port", "0", "--unixsocket", str(path), "--unixsocketperm", "700"]
        command += ["--dir", folder, "--save", "", "--daemonize", "no", "--loglevel", "warning", *options]
        with contextlib.closing(Process(command)) as process, contextlib.closing(connect(process, path)) as redis:
            yield redis


def connect(process, path):
    deadline = time.monotonic() + READY_TIMEOUT_S
    while process.process.poll() is None and time.monotonic() < deadline:
        with contextlib.suppress(OSError):
            redis = Redis(path)
            redis.command("PING")
            return redis
        time.sleep(0.01)
    raise Failed(f"redis-server is not ready: {process.log_tail()}")


class Redis:
    """One connection; a reply is an int, bytes, None or a list of these."""

    def __init__(self, path):
        self.path = path
        self.socket = socket.socket(socket.AF_UNIX)
        try:
            self.socket.settimeout(ANSWER_TIMEOUT_S)
            self.socket.connect(str(path))
        except OSError:
            self.socket.close()
            raise
        self.stream = self.socket.makefile("rb")

    def command(self, *words):
        request = [f"*{len(words)}\r\n".encode()]
        for word in (str(word).encode() for word in words):
            request.append(b"$%d\r\n%b\r\n" % (len(word), word))
        self.socket.sendall(b"".join(request))
        return self.reply()

    def reply(self):
        line = self.stream.readline()
        kind, rest = line[:1], line[1:-2]
        if kind == b"+":
            return rest
        if kind == b":":
            return int(rest)
        if kind == b"$":
            return None if rest == b"-1" else self.stream.read(int(rest) + 2)[:-2]
        if kind == b"*":
            return [self.reply() for _ in range(int(rest))]
        raise Failed(f"redis-server: {line.decode(errors='replace').strip() or 'it has hung up'}")

    def close(self):
        self.stream.close()
        self.socket.close()

    def empty(self):
        self.command("FLUSHALL", "SYNC")

    def info(self, section):
        lines = self.command("INFO", section).decode().splitlines()
        return dict(line.split(":", 1) for line in lines if ":" in line)

    def version(self):
        return self.info("server")["redis_version"]

    def bytes_used(self):
        """Without the buffers of whoever is connected."""
        memory = self.info("memory")
        return int(memory["used_memory"]) - int(memory["mem_clients_normal"])

    def keys_that_expire(self):
        found = re.search(r"expires=(\d+)", self.info("keyspace").get("db0", ""))
        return int(found[1]) if found else 0

    def count_from_now(self):
        self.command("CONFIG", "RESETSTAT")

    def counted(self, jobs):
        """Since `count_from_now`, a job: calls of each command, those inside of scripts too, and socket reads."""
        calls = {}
        for name, facts in self.info("commandstats").items():
            command = name.removeprefix("cmdstat_")
            if command.split("|")[0] not in OWN_COMMANDS:
                calls[command] = int(re.search(r"calls=(\d+)", facts)[1])
        reads = int(self.info("stats")["total_reads_processed"])
        return {
            "calls": sum(calls.values()) / jobs,
            "scripts": sum(count for command, count in calls.items() if command in SCRIPTS) / jobs,
            "reads": reads / jobs,
            "by_command": {command: round(count / jobs, 4) for command, count in sorted(calls.items())},
        }
