"""A real `redis-server` for one measurement, in a folder of its own: what it tells of itself, and `redis-benchmark`.

It listens on a Unix socket, and on a loopback port for what is measured beside `redis-benchmark`.
"""

import contextlib
import csv
import re
import socket
import tempfile
import time
from pathlib import Path

from common import READY_TIMEOUT_S, Failed, Process, free_port, installed, run_bounded, tail

ANSWER_TIMEOUT_S = 20
# What this module sends to count; older servers do not tell the subcommand.
OWN_COMMANDS = {"config", "config|resetstat"}
SCRIPTS = {"eval", "evalsha", "eval_ro", "evalsha_ro", "fcall", "fcall_ro"}
# Clients of `redis-benchmark`, and about how many commands they send in a second, because it takes no time limit.
SETS_PER_SECOND = {1: 25_000, 32: 60_000}
SET_CLIENTS = tuple(SETS_PER_SECOND)


@contextlib.contextmanager
def redis_server(*options, parent=None):
    """Nothing survives it: no snapshots, and an append-only file only if the options ask for one."""
    program = installed("redis-server", "redis-server")
    with tempfile.TemporaryDirectory(prefix="cofferdam-bench-", dir=parent) as folder:
        path, port = Path(folder) / "redis.sock", free_port()
        command = [program, "--unixsocket", str(path), "--unixsocketperm", "700"]
        command += ["--bind", "127.0.0.1", "--port", str(port)]
        command += ["--dir", folder, "--save", "", "--daemonize", "no", "--loglevel", "warning", *options]
        with contextlib.closing(Process(command)) as process, contextlib.closing(connect(process, path)) as redis:
            redis.port = port
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
    """One connection, over the socket; a reply is an int, bytes, None or a list of these."""

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
            if command not in OWN_COMMANDS:
                calls[command] = int(re.search(r"calls=(\d+)", facts)[1])
        reads = int(self.info("stats")["total_reads_processed"])
        return {
            "calls": sum(calls.values()) / jobs,
            "scripts": sum(count for command, count in calls.items() if command in SCRIPTS) / jobs,
            "reads": reads / jobs,
            "by_command": {command: round(count / jobs, 4) for command, count in sorted(calls.items())},
        }


def set_commands(redis, seconds):
    """Its SET of a payload as long as a job's, for about these seconds each, over TCP as it is used by default."""
    program = installed("redis-benchmark", "redis-tools")
    result = {}
    for clients in SET_CLIENTS:
        redis.empty()
        requests = int(seconds * SETS_PER_SECOND[clients])
        command = [program, "-h", "127.0.0.1", "-p", str(redis.port), "-t", "set", "-d", "120", "-c", str(clients)]
        ended = run_bounded([*command, "-n", str(requests), "--csv"], ANSWER_TIMEOUT_S + 10 * seconds)
        if ended.returncode != 0:
            raise Failed(f"redis-benchmark ended with {ended.returncode}: {tail(ended.stderr)}")
        facts = next(csv.DictReader(ended.stdout.decode().splitlines()))
        result[f"set_{clients}"] = {
            "jobs_per_second": float(facts["rps"]),
            "p50_us": float(facts["p50_latency_ms"]) * 1000,
            "p99_us": float(facts["p99_latency_ms"]) * 1000,
        }
    return result
