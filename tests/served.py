"""Starts real servers: each with a time limit, and with no process left behind."""

import contextlib
import http.client
import json
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor

from ranks import ROOT

LIMIT = 60  # seconds, of anything here
LIFE = 240  # seconds, of a server


class Served:
    """`python -m app serve` with a model and flags, and what it printed."""

    def __init__(self, model, **flags):
        self.port = free_port()
        flags = {"model": model, "port": self.port, "threads": 2, **flags}
        command = [sys.executable, "-m", "app", "serve"]
        self.process = subprocess.Popen(
            [*command, *(f"--{name}={value}" for name, value in flags.items())],
            env=os.environ | {"PYTHONPATH": str(ROOT), "CUDA_VISIBLE_DEVICES": ""},
            stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, start_new_session=True,
        )  # fmt: skip
        self._clock = threading.Timer(LIFE, self.process.kill)
        self._clock.daemon = True
        self._clock.start()
        self.line = self.process.stdout.readline()
        assert f":{self.port}; page at /" in self.line, self.stop()

    def ask(self, method, path, body=None, **headers):
        """One request, `_` in the names of headers for `-`; returns status, headers, body."""
        headers = {name.replace("_", "-"): value for name, value in headers.items()}
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=LIMIT)
        with contextlib.closing(connection):
            body = json.dumps(body) if isinstance(body, dict) else body
            connection.request(method, path, body, headers)
            response = connection.getresponse()
            return response.status, response.headers, response.read()

    def post(self, path, body):
        status, _, data = self.ask("POST", path, body)
        return status, json.loads(data)

    def get(self, path):
        status, _, data = self.ask("GET", path)
        return status, data.decode()

    def metric(self, names):
        """Returns the sum of the metrics that begin with a name, or with one of several."""
        lines = self.get("/metrics")[1].splitlines()
        return sum(float(line.split()[-1]) for line in lines if line.startswith(names))

    def connect(self):
        return socket.create_connection(("127.0.0.1", self.port), timeout=LIMIT)

    def in_flight(self, path, count, body):
        """Sends something slow from several clients; returns their futures once all has arrived."""
        before = self._arrived()
        clients = ThreadPoolExecutor(count)
        pending = [clients.submit(self.post, path, body) for _ in range(count)]
        clients.shutdown(wait=False)
        wait_for(lambda: self._arrived() == before + count)
        return pending

    def _arrived(self):
        """Returns how many predictions wait, are computed or were answered."""
        answered = 'scaleproof_requests_total{code="200",kind="predict"'
        names = ("scaleproof_queue_length", "scaleproof_batches_running", answered)
        return self.metric(names)

    def stop(self):
        """SIGTERM; returns the exit code and what was written to standard error."""
        self.process.send_signal(signal.SIGTERM)
        _, err = self.process.communicate(timeout=LIMIT)
        return self.process.returncode, err

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self._clock.cancel()
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self.process.pid, signal.SIGKILL)
        self.process.communicate()


def free_port():
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def wait_for(condition):
    patience = time.monotonic() + LIMIT
    while not condition():
        assert time.monotonic() < patience
        time.sleep(0.02)


def everything(client):
    """Returns all that is sent until the server closes."""
    return b"".join(iter(lambda: client.recv(4096), b""))
