"""The Celery peer: what its worker and its callers share. `BENCH_REDIS_SOCKET` is the path of Redis's socket."""

import os

from celery import Celery

REDIS = f"redis+socket://{os.environ['BENCH_REDIS_SOCKET']}"

app = Celery("bench", broker=REDIS, backend=REDIS)


@app.task(name="echo")
def echo(payload):
    return payload
