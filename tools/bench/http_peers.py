"""Peers of `run http` and its second load generator: tiny_http bare and behind nginx, and `wrk`."""

import contextlib
import tempfile
import time
from pathlib import Path

from common import (
    EXAMPLES,
    READY_TIMEOUT_S,
    Failed,
    Process,
    free_port,
    http,
    installed,
    printed,
    run_bounded,
    started,
)

# As `bench-load` sends it: a JSON object of 120 bytes.
BODY = '{"pad":"%s"}' % ("x" * 110)
# More than the most connections at a time, so that nginx never closes one to tiny_http.
KEPT = 256

NGINX_CONF = """\
daemon off;
worker_processes 1;
pid nginx.pid;
error_log error.log;
events {{ worker_connections 4096; }}
http {{
    access_log off;
    keepalive_requests 1000000000;
    client_body_temp_path body;
    proxy_temp_path proxy;
    fastcgi_temp_path fastcgi;
    uwsgi_temp_path uwsgi;
    scgi_temp_path scgi;
    upstream tiny_http {{
        server {upstream};
        keepalive {kept};
        keepalive_requests 1000000000;
    }}
    server {{
        listen 127.0.0.1:{port};
        location / {{
            proxy_pass http://tiny_http;
            proxy_http_version 1.1;
            proxy_set_header Connection "";
        }}
    }}
}}
"""

# `done` writes what `bench_load` prints, so that the two generators' answers are read by one function.
WRK_SCRIPT = """\
wrk.method = "POST"
wrk.headers["Content-Type"] = "application/json"
wrk.body = '%s'
local line = '{"requests":%%d,"requests_per_second":%%.1f,"p50_us":%%.1f,"p99_us":%%.1f,' ..
  '"errors":{"connect":%%d,"read":%%d,"write":%%d,"status":%%d,"timeout":%%d}}\\n'
function done(summary, latency)
  local errors = summary.errors
  local rate = summary.requests * 1e6 / summary.duration
  io.stderr:write(line:format(summary.requests, rate, latency:percentile(50), latency:percentile(99),
    errors.connect, errors.read, errors.write, errors.status, errors.timeout))
end
"""


def tiny_http():
    return started([EXAMPLES / "bench-tiny-http-echo"])


class Nginx(Process):
    """A front with one worker and kept connections, before a server that is already there."""

    def __init__(self, program, folder, upstream):
        port = free_port()
        configuration = folder / "nginx.conf"
        configuration.write_text(NGINX_CONF.format(upstream=upstream, port=port, kept=KEPT))
        super().__init__([program, "-p", f"{folder}/", "-e", folder / "error.log", "-c", configuration])
        self.url = f"http://127.0.0.1:{port}"
        try:
            self.wait_until_ready()
        except BaseException:
            self.close()
            raise
        self.note_children()

    def wait_until_ready(self):
        """Once it has passed on a request and the answer."""
        deadline = time.monotonic() + READY_TIMEOUT_S
        while self.process.poll() is None and time.monotonic() < deadline:
            with contextlib.suppress(OSError):
                if http(self.url, method="POST", body=BODY.encode()) == BODY.encode():
                    return
            time.sleep(0.01)
        raise Failed(f"nginx is not ready: {self.log_tail()}")


@contextlib.contextmanager
def nginx_and_tiny_http():
    """A tiny_http of its own, because connections that nginx keeps would hold threads of the bare one."""
    program = installed("nginx", "nginx-light")
    with tiny_http() as worker, tempfile.TemporaryDirectory(prefix="cofferdam-bench-") as folder:
        upstream = worker.url.removeprefix("http://")
        with contextlib.closing(Nginx(program, Path(folder), upstream)) as front:
            yield front


def wrk(url, connections, seconds):
    """One thread, whole seconds, no warm-up; what it counts as an error is told by kind."""
    program = installed("wrk", "wrk")
    seconds = max(1, round(seconds))
    with tempfile.NamedTemporaryFile("w", suffix=".lua") as script:
        script.write(WRK_SCRIPT % BODY)
        script.flush()
        command = [program, "-t1", f"-c{connections}", f"-d{seconds}s", "-s", script.name, url]
        run = printed(run_bounded(command, seconds + 20), "stderr")
    run["errors"] = {kind: count for kind, count in run["errors"].items() if count}
    return run
