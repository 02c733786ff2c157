"""What the scripts here share: processes and their end, HTTP, the load generator, and tables."""

import argparse
import contextlib
import dataclasses
import datetime
import json
import os
import platform
import re
import resource
import select
import shutil
import signal
import socket
import statistics
import subprocess
import sys
import tempfile
import time
import urllib.request
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
BENCH = ROOT / "tools" / "bench"
TARGET = Path(os.environ.get("CARGO_TARGET_DIR", ROOT / "target"))
RELEASE = TARGET / "release"
COFFERDAM = Path(os.environ.get("BENCH_BINARY", RELEASE / "cofferdam"))
EXAMPLES = RELEASE / "examples"

READY_TIMEOUT_S = 20
STOP_TIMEOUT_S = 20
# Settings of whoever calls this are not to be measured.
ENVIRONMENT = {name: value for name, value in os.environ.items() if not name.startswith("COFFERDAM_")}
FREE_PORT = ("--set", "web.bind=127.0.0.1:0")


class Failed(Exception):
    """A measurement that could not be made, or that came out wrong."""


def progress(text):
    """Not into a file that takes the tables."""
    if sys.stderr.isatty():
        print(text, file=sys.stderr, flush=True)


def bounded(kind, least, most):
    def convert(text):
        value = kind(text)
        if not least <= value <= most:
            raise argparse.ArgumentTypeError(f"expected {least} to {most}")
        return value

    return convert


def raise_descriptor_limit():
    """For the servers, which inherit it; the hard limit is left as it is."""
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))


def machine():
    model = "unknown"
    with contextlib.suppress(OSError):
        found = re.search(r"^model name\s*:\s*(.+)$", Path("/proc/cpuinfo").read_text(), re.MULTILINE)
        model = found[1] if found else model
    return {
        "date": datetime.datetime.now(datetime.timezone.utc).isoformat(timespec="seconds"),
        "cores": len(os.sched_getaffinity(0)),
        "model": model,
        "kernel": platform.release(),
        "python": platform.python_version(),
        "load_average": os.getloadavg()[0],
    }


def print_machine(facts):
    print(
        f"{facts['date']}  {facts['cores']} cores  {facts['model']}  Linux {facts['kernel']}  "
        f"Python {facts['python']}  load {facts['load_average']:.2f}"
    )


def installed(program, package):
    """Where it is; servers may stand in a folder that is in the search path of root only."""
    found = shutil.which(program) or shutil.which(program, path="/usr/sbin:/sbin")
    if found is None:
        raise Failed(f"{program} is not installed (Debian: apt-get install {package})")
    return found


def filesystem_of(folder):
    mounts = [line.split()[1:3] for line in Path("/proc/mounts").read_text().splitlines()]
    around = [mount for mount in mounts if folder.is_relative_to(mount[0])]
    return max(around, key=lambda mount: len(mount[0]), default=(None, "unknown"))[1]


# --- load and HTTP ---------------------------------------------------------------------------------


def bench_load(options, seconds):
    return printed(run_bounded([EXAMPLES / "bench-load", *options], seconds + 20))


def submit(url, handler, body):
    answer = http(f"{url}/v1/jobs/{handler}", method="POST", body=body, headers={"Prefer": "respond-async"})
    return json.loads(answer)["id"]


def stats(url):
    return json.loads(http(f"{url}/v1/stats"))


def http(url, method="GET", body=None, headers=None):
    request = urllib.request.Request(url, data=body, method=method, headers=headers or {})
    with urllib.request.urlopen(request, timeout=10) as answer:
        return answer.read()


def wait_for(what, is_so):
    deadline = time.monotonic() + STOP_TIMEOUT_S
    while not is_so():
        if time.monotonic() > deadline:
            raise Failed(f"not within {STOP_TIMEOUT_S} s: {what}")
        time.sleep(0.02)


# --- processes ------------------------------------------------------------------------------------


class Process:
    """A process that runs until it is ended, and all that it has started."""

    def __init__(self, command, **options):
        self.name = Path(command[0]).name
        self.log = tempfile.TemporaryFile()
        options = {"stdout": self.log, "env": ENVIRONMENT, **options}
        # Its own session, so that an interrupt at the terminal reaches this script only, which ends it then.
        self.process = subprocess.Popen(
            command, stdin=subprocess.DEVNULL, stderr=self.log, start_new_session=True, **options
        )
        self.pid = self.process.pid
        self.children = {}

    def note_children(self):
        """Who they are, before they lose the parent that shows them."""
        if self.process.poll() is None:
            self.children |= {pid: birth_of(pid) for pid in descendants(self.pid)}

    def log_tail(self):
        self.log.seek(0)
        return tail(self.log.read())

    def close(self):
        """Ends what is still there."""
        self.note_children()
        end_process(self.process)
        self.log.close()
        for pid in wait_until_gone(self.children):
            print(f"{self.name}: process {pid} outlived its parent and is killed", file=sys.stderr)
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)


class Server(Process):
    """One that prints `ready URL pid=PID`."""

    def __init__(self, command, patience_s=READY_TIMEOUT_S):
        begun = time.monotonic()
        super().__init__(command, stdout=subprocess.PIPE)
        try:
            self.url = self.wait_until_ready(begun, patience_s)
        except BaseException:
            self.close()
            raise
        self.ready_ms = (time.monotonic() - begun) * 1000
        self.note_children()

    def wait_until_ready(self, begun, patience_s):
        line = b""
        while not line.endswith(b"\n"):
            left = begun + patience_s - time.monotonic()
            if left <= 0 or not select.select([self.process.stdout], [], [], left)[0]:
                raise Failed(f"{self.name}: no ready line in {patience_s} s: {self.log_tail()}")
            part = os.read(self.process.stdout.fileno(), 4096)
            if not part:
                raise Failed(f"{self.name} ended before it was ready: {self.log_tail()}")
            line += part
        found = re.fullmatch(r"ready (http://\S+) pid=(\d+)\n", line.decode(errors="replace"))
        if not found or int(found[2]) != self.pid:
            raise Failed(f"{self.name}: not a ready line of process {self.pid}: {line!r}")
        return found[1]

    def close(self):
        super().close()
        self.process.stdout.close()


@contextlib.contextmanager
def started(command, **patience):
    if not Path(command[0]).is_file():
        raise Failed(f"{command[0]} is not built")
    with contextlib.closing(Server(command, **patience)) as server:
        yield server


def serve(*options, binary=COFFERDAM, **patience):
    return started([binary, "serve", *FREE_PORT, *options], **patience)


def free_port():
    """Free at this moment, for a server that cannot be told to take any."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def end_well(server):
    """SIGTERM; it must stop with 0 and leave nobody. Returns the milliseconds until the last had ended."""
    server.note_children()
    begun = time.monotonic()
    server.process.send_signal(signal.SIGTERM)
    try:
        code = server.process.wait(STOP_TIMEOUT_S)
    except subprocess.TimeoutExpired:
        raise Failed(f"{server.name} did not stop in {STOP_TIMEOUT_S} s: {server.log_tail()}") from None
    left = wait_until_gone(server.children)
    taken = (time.monotonic() - begun) * 1000
    if code != 0:
        raise Failed(f"{server.name} stopped with {code}, not 0: {server.log_tail()}")
    if left:
        raise Failed(f"{server.name} left processes behind: {left}")
    return taken


def end_process(process):
    if process.poll() is None:
        process.terminate()
        try:
            process.wait(STOP_TIMEOUT_S)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait(STOP_TIMEOUT_S)


def wait_until_gone(births):
    """Which of these processes are still there after two seconds; a number that was used again is not."""
    deadline = time.monotonic() + 2
    while True:
        left = [pid for pid, birth in births.items() if birth is not None and birth_of(pid) == birth]
        if not left or time.monotonic() > deadline:
            return left
        time.sleep(0.002)


def run_bounded(command, seconds, **streams):
    """A process that ends by itself; `run` kills it if it does not."""
    streams = {"stdin": subprocess.DEVNULL, "stdout": subprocess.PIPE, **streams}
    if not Path(command[0]).is_file():
        raise Failed(f"{command[0]} is not built")
    return subprocess.run(command, stderr=subprocess.PIPE, timeout=seconds, env=ENVIRONMENT, **streams)


def printed(ended, stream="stdout"):
    """The JSON of a process that has ended well."""
    if ended.returncode != 0:
        raise Failed(f"{Path(ended.args[0]).name} ended with {ended.returncode}: {tail(ended.stderr)}")
    return json.loads(getattr(ended, stream))


def descendants(pid):
    """Children, their children and so on, in the order of their numbers."""
    parents = {}
    for entry in os.listdir("/proc"):
        if entry.isdigit():
            with contextlib.suppress(OSError):
                parents[int(entry)] = int(stat_fields(int(entry))[1])
    family = {pid}
    while True:
        more = {child for child, parent in parents.items() if parent in family} - family
        if not more:
            return sorted(family - {pid})
        family |= more


def birth_of(pid):
    """When the process started, by the kernel's clock; `None` if it has ended, reaped or not."""
    try:
        fields = stat_fields(pid)
        return None if fields[0] == "Z" else fields[19]
    except OSError:
        return None


def stat_fields(pid):
    """The fields behind the name, which may hold anything: state, parent, …"""
    return proc_text(pid, "stat").rpartition(") ")[2].split()


def command_of(pid):
    words = proc_text(pid, "cmdline").split("\0")
    return " ".join([Path(words[0]).name, *words[1:3]]).strip()[:40]


def proc_text(pid, name):
    return Path(f"/proc/{pid}/{name}").read_text(errors="replace")


# --- aims -----------------------------------------------------------------------------------------


@dataclasses.dataclass
class Aim:
    """A figure, what is accepted of it, and what is aimed at where that is more."""

    text: str
    # `None` if it was not measured.
    value: float | None
    # "at most" or "at least".
    bound: str
    accepted: float
    aim: float | None = None

    def verdict(self):
        if self.value is None:
            return "not measured"
        if self.aim is not None and self.reaches(self.aim):
            return "aim met"
        return "met" if self.reaches(self.accepted) else "missed"

    def reaches(self, wanted):
        return self.value <= wanted if self.bound == "at most" else self.value >= wanted

    def facts(self):
        return dataclasses.asdict(self) | {"verdict": self.verdict()}


def print_aims(aims):
    rows = [
        [aim.text, decimal(aim.value), f"{aim.bound} {aim.accepted:g}"]
        + ["" if aim.aim is None else f"{aim.aim:g}", aim.verdict()]
        for aim in aims
    ]
    table(["", "measured", "accepted", "aim", ""], rows)


def quotient(value, other):
    """`None` if one of the two was not measured."""
    return None if value is None or not other else value / other


# --- text -----------------------------------------------------------------------------------------


def number(value):
    return "-" if value is None else f"{value:,.0f}"


def decimal(value):
    return "-" if value is None else f"{value:,.2f}"


def tail(log):
    lines = log.decode(errors="replace").strip().splitlines()
    return " | ".join(lines[-5:]) or "it said nothing"


def table(headings, rows):
    texts = [[str(cell) for cell in row] for row in [headings, *rows]]
    widths = [max(len(row[column]) for row in texts) for column in range(len(headings))]
    for row in texts:
        print("  ".join(cell.ljust(width) for cell, width in zip(row, widths)).rstrip())
    sys.stdout.flush()


def median_of(values):
    known = [value for value in values if value is not None]
    return statistics.median(known) if known else None


def medians(runs):
    """Of each figure of each measurement, over the rounds that have it."""
    result = {}
    for measurement in {name: None for run in runs for name in run}:
        facts = [run[measurement] for run in runs if measurement in run]
        numbers = {name for fact in facts for name, value in fact.items() if isinstance(value, (int, float))}
        result[measurement] = {name: median_of(fact.get(name) for fact in facts) for name in sorted(numbers)}
    return result
