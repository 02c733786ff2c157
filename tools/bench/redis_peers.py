"""Celery, RQ and BullMQ: their workers and callers as processes, and what is measured of each. See `peers/`."""

import contextlib
import dataclasses
import json
import shutil
import subprocess
import time
from collections.abc import Callable
from pathlib import Path

from common import BENCH, ENVIRONMENT, Failed, Process, printed

PEERS = BENCH / "peers"
FEW, MANY = 1, 64
WARMUP_S = 1.2
# No warm-up here: each job counts, since each of its commands does.
COUNTED_S = 1.0
# Interpreters start, workers begin, the last job is awaited.
LOAD_TIMEOUT_S = 120
# Until the first job of a backlog is finished, and from then on: a peer that has not come to the end is judged
# by what it has done.
FIRST_S = 20
DRAIN_S = 20
POLL_S = 0.02


@dataclasses.dataclass
class Peer:
    """Workers that are started for a measurement, and callers that are one process."""

    name: str
    folder: Path | None
    # `None` if there is none.
    program: Path | None
    # In the folder: what the installed package has there, with its version in it.
    package: str
    # The command of each worker, without its program, and that of the callers.
    workers: list
    callers: list
    # How many jobs redis says are finished.
    finished: Callable
    submitters: int
    submissions: tuple = ("submit",)

    def absent(self):
        if self.folder is None:
            return "no --peers"
        if not any(self.folder.glob(self.package)):
            return f"not in {self.folder}"
        return None if self.program else "no program to run it"

    def version(self):
        package = next(self.folder.glob(self.package))
        if package.suffix == ".json":
            return json.loads(package.read_text())["version"]
        return package.name.removesuffix(".dist-info").rpartition("-")[2]

    def turn(self, redis, arguments):
        result = {}
        redis.empty()
        with self.working(redis):
            for callers in (FEW, MANY):
                run = self.load(redis, "await", callers, arguments.seconds, WARMUP_S)
                result[f"await_{callers}"] = run
            for callers in (FEW, MANY):
                redis.count_from_now()
                run = self.load(redis, "await", callers, COUNTED_S)
                result[f"commands_{callers}"] = redis.counted(run["jobs"])
        for mode in self.submissions:
            redis.empty()
            result[mode] = self.load(redis, mode, self.submitters, arguments.seconds, WARMUP_S)
        return result | self.backlog(redis, arguments.drain_peers)

    def backlog(self, redis, jobs):
        """Jobs without a worker, then what the workers do from the first finished job on."""
        redis.empty()
        before = redis.bytes_used()
        self.load(redis, "enqueue", jobs=jobs)
        waiting_bytes = (redis.bytes_used() - before) / jobs
        with self.working(redis):
            begun, first = self.wait_until_finished(redis, 1, FIRST_S)
            ended, last = self.wait_until_finished(redis, jobs, DRAIN_S)
            if last == first:
                raise Failed(f"{last} of {jobs} jobs were finished at the first look, and no more at the last")
            finished_bytes = (redis.bytes_used() - before - (jobs - last) * waiting_bytes) / last
        return {
            "drain": {"jobs": last, "jobs_per_second": (last - first) / (ended - begun)},
            "memory": {"waiting_bytes": waiting_bytes, "finished_bytes": finished_bytes},
        }

    def wait_until_finished(self, redis, jobs, seconds):
        """When so many were, or the time had passed, and how many were then."""
        deadline = time.monotonic() + seconds
        while (count := self.finished(redis)) < jobs and time.monotonic() < deadline:
            time.sleep(POLL_S)
        return time.monotonic(), count

    @contextlib.contextmanager
    def working(self, redis):
        with contextlib.ExitStack() as stack:
            for words in self.workers:
                worker = Process(self.command(words), env=self.environment(redis))
                stack.enter_context(contextlib.closing(worker))
            yield

    def load(self, redis, mode, callers=1, seconds=0.0, warmup=0.0, jobs=0):
        options = {"mode": mode, "callers": callers, "seconds": seconds, "warmup": warmup, "jobs": jobs}
        words = [str(word) for name, value in options.items() for word in (f"--{name}", value)]
        ended = subprocess.run(
            self.command([*self.callers, *words]),
            stdin=subprocess.DEVNULL,
            capture_output=True,
            timeout=LOAD_TIMEOUT_S + seconds,
            env=self.environment(redis),
        )
        run = printed(ended)
        if errors := run.pop("errors", None):
            raise Failed(f"{len(errors)} callers failed, the first with: {errors[0][:300]}")
        if not run["jobs"]:
            raise Failed(f"no job in {seconds} s with {callers} callers")
        return run

    def command(self, words):
        return [self.program, *words]

    def environment(self, redis):
        return ENVIRONMENT | {
            "BENCH_REDIS_SOCKET": str(redis.path),
            "BENCH_PEERS": str(self.folder),
            "RQ_REDIS_URL": f"unix://{redis.path}",
            "PYTHONPATH": str(PEERS),
            "PYTHONDONTWRITEBYTECODE": "1",
        }


def peers(folder):
    """As their documentations set them up, with what makes them faster where it costs no promise."""
    python = folder and folder / "venv" / "bin" / "python"
    node = shutil.which("node")
    celery = ["-m", "celery", "-A", "celery_app", "worker", "--pool", "prefork", "--concurrency", "2"]
    celery += ["--without-gossip", "--without-mingle", "--without-heartbeat", "--loglevel", "WARNING"]
    packages = "venv/lib/python3*/site-packages"
    return [
        Peer(
            name="celery",
            folder=folder,
            program=python,
            package=f"{packages}/celery-*.dist-info",
            workers=[celery],
            callers=[PEERS / "celery_load.py"],
            # Its results are the keys that expire.
            finished=lambda redis: redis.keys_that_expire(),
            # In one interpreter 64 threads submit more slowly than one.
            submitters=1,
        ),
        Peer(
            name="rq",
            folder=folder,
            program=python,
            package=f"{packages}/rq-*.dist-info",
            workers=[["-m", "rq.cli", "worker", "--quiet", "bench"]] * 2,
            callers=[PEERS / "rq_load.py"],
            finished=lambda redis: redis.command("ZCARD", "rq:finished:bench"),
            submitters=1,
        ),
        Peer(
            name="bullmq",
            folder=folder,
            program=node and Path(node),
            package="node_modules/bullmq/package.json",
            workers=[[PEERS / "bullmq.mjs", "worker"]],
            callers=[PEERS / "bullmq.mjs"],
            finished=lambda redis: redis.command("ZCARD", "bull:bench:completed"),
            submitters=MANY,
            submissions=("submit", "bulk"),
        ),
    ]
