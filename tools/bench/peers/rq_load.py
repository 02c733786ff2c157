"""The callers of the RQ peer; see `closed_loop.py`. They wait as its documentation says: blocked on the result."""

import os

import closed_loop
from redis import Redis
from rq import Queue
from rq_tasks import echo

queue = Queue("bench", connection=Redis(unix_socket_path=os.environ["BENCH_REDIS_SOCKET"]))


def await_one():
    job = queue.enqueue(echo, closed_loop.PAYLOAD)
    result = job.latest_result(timeout=closed_loop.TIMEOUT_S)
    closed_loop.check(result and result.return_value)


def submit_one():
    queue.enqueue(echo, closed_loop.PAYLOAD)


closed_loop.run(await_one, submit_one)
