"""The peer of `journal`: one `beanstalkd` with a write-ahead log in a folder, and callers that put jobs into it.

The callers are one thread over all of its connections. Each connection puts one job, waits for the answer, and puts the
next: no pipelining, as `bench-load` does. The thread's share of a core is told, because an interpreter may be the limit.
"""

import contextlib
import re
import selectors
import socket
import statistics
import time

from common import READY_TIMEOUT_S, Failed, Process, free_port, installed, run_bounded

# As `bench-load` sends it: a JSON object of 120 bytes.
BODY = b'{"pad":"%s"}' % (b"x" * 110)
PUT = b"put 0 0 60 %d\r\n%b\r\n" % (len(BODY), BODY)
INSERTED = re.compile(rb"INSERTED \d+\r\n")
ANSWER_TIMEOUT_S = 20


def version():
    return run_bounded([installed("beanstalkd", "beanstalkd"), "-v"], 10).stdout.decode().strip()


@contextlib.contextmanager
def beanstalkd(folder, sync_ms):
    """Its port. With 0 it syncs each write, else at most once in so many milliseconds."""
    port = free_port()
    command = [installed("beanstalkd", "beanstalkd"), "-l", "127.0.0.1", "-p", str(port)]
    with contextlib.closing(Process([*command, "-b", str(folder), "-f", str(sync_ms)])) as process:
        wait_until_it_listens(process, port)
        yield port
        if process.process.poll() is not None:
            raise Failed(f"beanstalkd has ended: {process.log_tail()}")


def wait_until_it_listens(process, port):
    deadline = time.monotonic() + READY_TIMEOUT_S
    while process.process.poll() is None and time.monotonic() < deadline:
        with contextlib.suppress(OSError):
            connect(port).close()
            return
        time.sleep(0.01)
    raise Failed(f"beanstalkd is not ready: {process.log_tail()}")


def connect(port):
    connection = socket.create_connection(("127.0.0.1", port), timeout=ANSWER_TIMEOUT_S)
    connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    return connection


def puts(port, connections, seconds, warmup):
    """Rate and times of puts, once warmed up."""
    with contextlib.ExitStack() as stack:
        selector = stack.enter_context(selectors.EpollSelector())
        for _ in range(connections):
            connection = stack.enter_context(connect(port))
            selector.register(connection, selectors.EVENT_READ, connection)
        asked = {}
        for key in selector.get_map().values():
            asked[key.data] = time.perf_counter()
            key.data.sendall(PUT)
        run_for(selector, asked, warmup)
        begun, used = time.perf_counter(), time.thread_time()
        times = run_for(selector, asked, seconds)
        elapsed, used = time.perf_counter() - begun, time.thread_time() - used
    if not times:
        raise Failed(f"no put in {seconds} s on {connections} connections")
    return {
        "jobs": len(times),
        "jobs_per_second": len(times) / elapsed,
        "p50_us": statistics.median(times) * 1e6,
        "p99_us": sorted(times)[len(times) * 99 // 100] * 1e6,
        "client_core": used / elapsed,
    }


def run_for(selector, asked, seconds):
    """How long each put took that was answered in this time; `asked` says when the others were."""
    times, clock = [], time.perf_counter
    end = last = clock()
    end += seconds
    while (now := clock()) < end:
        ready = selector.select(min(end - now, 1))
        if not ready and now > last + ANSWER_TIMEOUT_S:
            raise Failed(f"beanstalkd has not answered for {ANSWER_TIMEOUT_S} s")
        for key, _ in ready:
            connection = key.data
            answer = connection.recv(256)
            if not INSERTED.fullmatch(answer):
                raise Failed(f"beanstalkd: {answer[:80]!r}")
            last = clock()
            times.append(last - asked[connection])
            asked[connection] = last
            connection.sendall(PUT)
    return times
