"""The callers of the Celery peer; see `closed_loop.py`."""

import closed_loop
from celery_app import echo


def await_one():
    closed_loop.check(echo.delay(closed_loop.PAYLOAD).get(timeout=closed_loop.TIMEOUT_S))


def submit_one():
    echo.delay(closed_loop.PAYLOAD)


closed_loop.run(await_one, submit_one)
