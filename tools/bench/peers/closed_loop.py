"""Callers on threads, for the peers in Python: each calls, waits for the answer, and calls again.

    --mode await|submit --callers N --seconds S --warmup S      prints one JSON object
    --mode enqueue --jobs N                                     puts that many jobs there

`run` is given how one job is awaited and how one is submitted, both of which raise if it fails.
"""

import argparse
import json
import threading
import time

# A JSON object of 120 bytes, as `bench-load` sends it.
PAYLOAD = {"pad": "x" * 110}
# After this a caller gives a job up; generous, because the first one waits for the workers to start.
TIMEOUT_S = 20


def run(await_one, submit_one):
    arguments = parse_arguments()
    if arguments.mode == "enqueue":
        for _ in range(arguments.jobs):
            submit_one()
        print(json.dumps({"jobs": arguments.jobs}))
        return
    call = await_one if arguments.mode == "await" else submit_one
    call()
    print(json.dumps(measure(call, arguments)))


def parse_arguments():
    parser = argparse.ArgumentParser()
    parser.add_argument("--mode", choices=("await", "submit", "enqueue"), required=True)
    parser.add_argument("--callers", type=int, default=1)
    parser.add_argument("--seconds", type=float, default=3)
    parser.add_argument("--warmup", type=float, default=0)
    parser.add_argument("--jobs", type=int, default=0)
    return parser.parse_args()


def measure(call, arguments):
    begin = time.monotonic() + arguments.warmup
    end = begin + arguments.seconds
    callers = [Caller(call, begin, end) for _ in range(arguments.callers)]
    for caller in callers:
        caller.start()
    for caller in callers:
        caller.join()
    times = sorted(taken for caller in callers for taken in caller.times)
    return {
        "jobs": len(times),
        "jobs_per_second": len(times) / arguments.seconds,
        "p50_us": percentile_us(times, 50),
        "p99_us": percentile_us(times, 99),
        "errors": [error for caller in callers for error in caller.errors],
    }


class Caller(threading.Thread):
    """Counts what ended in the measured time; the job under way at its end is awaited, but does not count."""

    def __init__(self, call, begin, end):
        super().__init__(daemon=True)
        self.call, self.begin, self.end = call, begin, end
        self.times, self.errors = [], []

    def run(self):
        asked = time.monotonic()
        while asked < self.end:
            try:
                self.call()
            except Exception as error:
                self.errors.append(f"{type(error).__name__}: {error}")
                return
            answered = time.monotonic()
            if self.begin <= answered < self.end:
                self.times.append(answered - asked)
            asked = answered


def check(answer):
    if answer != PAYLOAD:
        raise ValueError(f"not the payload: {answer!r}")


def percentile_us(times, percent):
    return round(times[len(times) * percent // 100] * 1e6) if times else None
