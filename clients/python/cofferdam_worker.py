"""Cofferdam from Python: handlers as functions, and a client. One file, standard library only.

A worker program::

    from cofferdam_worker import Retry, handler, main

    @handler
    def resize(job):
        if job.delivery == 1:
            raise Retry("not yet", after=2.0)
        return {"width": job.payload["width"] * 2}

    main()

with ``{"handlers": {"resize": {"command": ["python3", "resize.py"], "mode": "worker"}}}`` in the configuration. What it prints
goes to the log with the job's id.

A caller::

    from cofferdam_worker import Client

    client = Client("http://127.0.0.1:8080")
    print(client.call("resize", {"width": 2}))
"""

import base64
import http.client
import json
import math
import os
import sys
import time
import traceback
import urllib.parse
import uuid

__all__ = ["Client", "Fail", "Failed", "Job", "Retry", "handler", "main"]


class Fail(Exception):
    """It cannot be done: the job fails at once."""


class Retry(Exception):
    """Try again later: after ``after`` seconds, or after the service's own backoff."""

    def __init__(self, why, after=None):
        super().__init__(why)
        self.after = after


class Changes(dict):
    """A lane's state, or a trace's context: texts by name. What is changed takes effect when the job succeeds."""

    def __init__(self, entries):
        super().__init__(entries)
        self._before = dict(self)

    def changed(self):
        return {key: value for key, value in self.items() if self._before.get(key) != value}

    def removed(self):
        return [key for key in self._before if key not in self]


class Job:
    """What a handler is called with.

    id, delivery (1 is the first), fence (grows with every delivery of the deployment), handler, key (the ordering key or None),
    trace (a W3C traceparent), tracestate (what came with it, or None), deadline (Unix time in seconds), media_type, payload (a JSON value, or bytes),
    state (texts by name; None unless the handler is ordered), context (texts by name, shared by the jobs of a trace).
    """

    def __init__(self, question):
        self.id, self.delivery, self.fence = question["id"], question["delivery"], question["fence"]
        self.handler, self.key, self.trace = question["handler"], question["key"], question["trace"]
        self.tracestate = question["tracestate"]
        self.deadline = question["deadline_ms"] / 1000
        self.media_type = question["media_type"]
        if "payload" in question:
            self.payload = question["payload"]
        else:
            self.payload = base64.b64decode(question["payload_base64"])
        self.state = Changes(question["state"]) if "state" in question else None
        self.context = Changes(question["context"])
        self._submits = []

    def submit(self, handler, payload, key=None, delay=0.0):
        """Submits a job of the same trace when this one succeeds; the delay is in seconds, at most 7 days."""
        self._submits.append({"handler": handler, "payload": payload, "key": key, "delay_ms": round(delay * 1000)})

    def progress(self, value):
        """Says how far it is, as a JSON value of at most 1 KiB: the job's record has the last of that while it runs."""
        _say({"id": self.id, "progress": value})

    def _answer(self, result):
        answer = {"id": self.id}
        if isinstance(result, (bytes, bytearray)):
            answer.update(ok_base64=base64.b64encode(result).decode(), media_type="application/octet-stream")
        else:
            answer["ok"] = result
        if self.state is not None:
            answer.update(set=self.state.changed(), remove=self.state.removed())
        answer.update(context_set=self.context.changed(), submit=self._submits)
        return {name: value for name, value in answer.items() if value or name in ("id", "ok", "ok_base64")}


_handlers = {}
# Whatever prints to standard output must not stand between the lines.
_lines = None
_encode = json.JSONEncoder(allow_nan=False, separators=(",", ":")).encode


def _say(line):
    _lines.write(_encode(line).encode() + b"\n")
    _lines.flush()


def handler(function):
    """Makes a function a handler, by its name. It returns a JSON value, or bytes."""
    _handlers[function.__name__] = function
    return function


def _do(job):
    only = next(iter(_handlers.values())) if len(_handlers) == 1 else None
    function = _handlers.get(job.handler, only)
    if function is None:
        return {"id": job.id, "error": f"this worker has no handler {job.handler}"}
    try:
        return job._answer(function(job))
    except Retry as retry:
        answer = {"id": job.id, "error": str(retry), "retry": True}
        if retry.after is not None:
            answer["retry_after_ms"] = max(1, round(retry.after * 1000))
        return answer
    except Fail as fail:
        return {"id": job.id, "error": str(fail)}
    except Exception as error:  # noqa: BLE001: a handler may raise anything
        traceback.print_exc()
        return {"id": job.id, "error": f"{type(error).__name__}: {error}"}


def main():
    """Does jobs until there are no more."""
    global _lines
    _lines = os.fdopen(os.dup(1), "wb")
    os.dup2(2, 1)
    for line in sys.stdin.buffer:
        # The line begins with {"id":"…". A job that Python cannot read or write, as one nested too deep or a number too long, fails
        # by that id: with an end of this process it would come again, and end the next one.
        job_id, what = line[7:39].decode(), "its line cannot be read"
        try:
            job = Job(json.loads(line))
            what = "its result is no JSON"
            answer = _do(job)
            sys.stdout.flush()
            _say(answer)
        except Exception as error:  # noqa: BLE001: whatever it is, the next job is another
            traceback.print_exc()
            _say({"id": job_id, "error": f"{what}: {error}"})


class Failed(Exception):
    """The service's answer is a problem document: status, code, detail, job (its id, if there is one)."""

    def __init__(self, status, problem, job=None, retry_after=None):
        super().__init__(f"{problem.get('code', status)}: {problem.get('detail', '')}")
        self.status, self.code, self.detail = status, problem.get("code"), problem.get("detail")
        self.job, self.retry_after, self.problem = job, retry_after, problem


def _connector(url):
    """What makes connections to this URL. Its text is not repeated in errors: a password may stand in it."""
    parts = urllib.parse.urlsplit(url)
    if parts.scheme not in ("http", "https") or not parts.hostname:
        raise ValueError("the URL of a service is http://HOST:PORT or https://HOST")
    if parts.username is not None or parts.password is not None:
        raise ValueError("the URL of a service names no user: give a token")
    if parts.path not in ("", "/") or parts.query or parts.fragment:
        raise ValueError("the URL of a service has nothing behind its host and port")
    kind = http.client.HTTPSConnection if parts.scheme == "https" else http.client.HTTPConnection
    host, port = parts.hostname, parts.port
    return lambda: kind(host, port, timeout=120)


# How long it waits before it asks again where the answer, or its absence, does not say.
_PAUSE_SECONDS = 0.5


class Client:
    """A caller of ``http://HOST:PORT`` or ``https://HOST``.

    ``patience`` is for how many seconds it asks again where the answer is "later" (429, 503, a proxy's 502), or the connection is lost
    or refused, as while the service is upgraded. It does so only where that cannot run a job twice: questions, submissions (they
    have an idempotency key), and all that was not accepted.
    """

    def __init__(self, url="http://127.0.0.1:8080", token=None, patience=30.0):
        self._connect = _connector(url)
        self._token, self._patience = token, patience

    def _request(self, method, path, body=None, headers=None, latest=math.inf):
        headers = dict(headers or {})
        if self._token:
            headers["Authorization"] = f"Bearer {self._token}"
        until = None
        while True:
            try:
                answer, data = self._exchange(method, path, body, headers)
                if answer.status < 300:
                    return answer, data
                failure = self._failed(answer, data)
                is_later, wait = answer.status in (429, 502, 503), failure.retry_after
                # The service says when to come again; what does not may be another's word about a job that was accepted.
                is_unaccepted = failure.job is None and wait is not None
            except (ConnectionError, http.client.IncompleteRead) as lost:
                failure, is_later, wait = lost, True, None
                is_unaccepted = isinstance(lost, ConnectionRefusedError)
            # To ask for something changes nothing, and with an idempotency key a job never runs twice.
            is_safe = method == "GET" or "Idempotency-Key" in headers or is_unaccepted
            wait, now = wait or _PAUSE_SECONDS, time.monotonic()
            # From the first such answer: the request itself may have waited long before it.
            until = now + self._patience if until is None else until
            if not (is_later and is_safe) or now + wait >= min(until, latest):
                raise failure
            time.sleep(wait)

    def _exchange(self, method, path, body, headers):
        connection = self._connect()
        try:
            connection.request(method, path, body, headers)
            answer = connection.getresponse()
            return answer, answer.read()
        finally:
            connection.close()

    @staticmethod
    def _failed(answer, data):
        try:
            problem = json.loads(data)
        except ValueError:
            problem = None
        if not isinstance(problem, dict):
            # A proxy's own answer.
            problem = {"detail": data.decode(errors="replace")}
        wait = answer.headers.get("Retry-After", "")
        return Failed(answer.status, problem, answer.headers.get("Cofferdam-Job-Id"), float(wait) if wait.isdigit() else None)

    @staticmethod
    def _encoded(payload):
        if isinstance(payload, (bytes, bytearray)):
            return bytes(payload), "application/octet-stream"
        return json.dumps(payload).encode(), "application/json"

    @staticmethod
    def _decoded(answer, data):
        return json.loads(data) if "json" in answer.headers.get("Content-Type", "") else data

    def _post(self, handler, payload, key, idempotency_key, delay, headers):
        body, headers["Content-Type"] = self._encoded(payload)[0], self._encoded(payload)[1]
        headers["Idempotency-Key"] = idempotency_key or uuid.uuid4().hex
        if key is not None:
            # http.client writes headers in Latin-1; the service reads UTF-8.
            headers["Ordering-Key"] = key.encode().decode("latin-1")
        query = f"?delay_ms={round(delay * 1000)}" if delay else ""
        return self._request("POST", f"/v1/jobs/{handler}{query}", body, headers)

    def call(self, handler, payload=None, key=None, idempotency_key=None, delay=0.0):
        """Submits a job and waits for its result: a JSON value, or bytes."""
        return self._decoded(*self._post(handler, payload, key, idempotency_key, delay, {}))

    def submit(self, handler, payload=None, key=None, idempotency_key=None, delay=0.0):
        """Submits a job; its id."""
        answer = self._post(handler, payload, key, idempotency_key, delay, {"Prefer": "respond-async"})
        return json.loads(answer[1])["id"]

    def record(self, job, wait=0):
        """A job's record; with ``wait``, once it has ended or so many seconds are over."""
        return self._record(job, wait, math.inf)

    def _record(self, job, wait, latest):
        query = f"?wait={wait}" if wait else ""
        return json.loads(self._request("GET", f"/v1/jobs/{job}{query}", latest=latest)[1])

    def wait(self, job, timeout=None):
        """The record of a job that has ended."""
        until = math.inf if timeout is None else time.monotonic() + timeout
        while True:
            record = self._record(job, max(1, round(min(10, until - time.monotonic()))), until)
            if record["status"] not in ("queued", "running"):
                return record
            if time.monotonic() >= until:
                raise TimeoutError(f"{job} is {record['status']}")

    def retry(self, job):
        """A job that did not succeed gets a new life; its record."""
        return json.loads(self._request("POST", f"/v1/jobs/{job}/retry")[1])

    def cancel(self, job):
        """Cancels a job; its record."""
        return json.loads(self._request("DELETE", f"/v1/jobs/{job}")[1])

    def batch(self, handler, payloads):
        """The results of many jobs, in order; one that failed is its problem document."""
        lines = b"".join(self._encoded(payload)[0] + b"\n" for payload in payloads)
        data = self._request("POST", f"/v1/batch/{handler}", lines)[1]
        return [json.loads(line) for line in data.splitlines()]
