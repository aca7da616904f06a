"""Runs two sides by turns: while one computes, all processes of the other are stopped.

    parent      10 ->                10 ->
    ours        10 steps, seconds |  stopped
    theirs      stopped           |  10 steps, seconds

A side's processes are started once and stay warm. Each connects to a Unix socket, which a network
namespace does not hide; `child.py` is their end of it.
"""

from __future__ import annotations

import contextlib
import json
import os
import signal
import socket
import subprocess
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, TextIO

from app.launch import processes

END_SECONDS = 60  # for a side to exit when it is over
EXIT_SECONDS = 10  # for a process to exit whose socket is closed


class SideError(Exception):
    """A process of a side ended too early; says its last line of output, and where the log is."""


class Side:
    """The connected processes of one side, stopped.

    Attributes:
        facts: about each process, in the order of ranks (`child.serve`).
    """

    def __init__(
        self, lines: Sequence[TextIO], facts: Sequence[Mapping[str, Any]],
        started: Sequence[subprocess.Popen[bytes]], log: Path,
    ) -> None:  # fmt: skip
        self.lines, self.facts, self.started, self.log = lines, facts, started, log
        self.signal(signal.SIGSTOP)

    def run(self, steps: int) -> float:
        """Takes a number of steps; returns the seconds of the slowest process.

        Raises:
            SideError: a process has ended.
        """
        self.signal(signal.SIGCONT)
        try:
            for lines in self.lines:
                lines.write(f"{steps}\n")
                lines.flush()
            answers = [float(lines.readline()) for lines in self.lines]
        except (OSError, ValueError):
            _wait_for_any(self.started)  # its socket closes before it has printed why
            raise SideError(processes.last_line(self.log)) from None
        self.signal(signal.SIGSTOP)
        return max(answers)

    def signal(self, number: signal.Signals) -> None:
        """Sends a signal to all processes of the side."""
        for facts in self.facts:
            with contextlib.suppress(ProcessLookupError):
                os.kill(facts["pid"], number)


@contextlib.contextmanager
def side(
    commands: Sequence[Sequence[str]], size: int, variables: Mapping[str, str], log: Path
) -> Iterator[Side]:
    """Starts a side, and yields it when all its processes are ready; ends it afterwards.

    Args:
        commands: to start; the path of the socket is appended to each.
        size: number of processes that will connect.
        variables: of their environment.
        log: for their output.

    Raises:
        SideError: a process ended before it was ready.
    """
    with contextlib.ExitStack() as stack:
        path = f"{stack.enter_context(tempfile.TemporaryDirectory())}/turns"
        server = stack.enter_context(socket.socket(socket.AF_UNIX))
        server.bind(path)
        server.listen()
        output = stack.enter_context(log.open("w"))
        started = [
            processes.start([*command, path], variables, stdout=output, stderr=output)
            for command in commands
        ]
        stack.callback(_end, started)
        connections = [stack.enter_context(_accept(server, started, log)) for _ in range(size)]
        lines = [stack.enter_context(c.makefile("rw")) for c in connections]
        facts = [json.loads(each.readline()) for each in lines]
        order = sorted(range(size), key=lambda i: facts[i]["rank"])
        ready = Side([lines[i] for i in order], [facts[i] for i in order], started, log)
        # Called before the sockets are closed, so that all can exit.
        stack.callback(ready.signal, signal.SIGCONT)
        yield ready


def _accept(
    server: socket.socket, started: Sequence[subprocess.Popen[bytes]], log: Path
) -> socket.socket:
    server.settimeout(0.2)
    while True:
        with contextlib.suppress(TimeoutError):
            connection, _ = server.accept()
            connection.settimeout(None)
            return connection
        if any(process.poll() is not None for process in started):
            raise SideError(processes.last_line(log))


def _wait_for_any(started: Sequence[subprocess.Popen[bytes]]) -> None:
    """Waits until a process has ended, for EXIT_SECONDS at most."""
    end = time.monotonic() + EXIT_SECONDS
    while all(process.poll() is None for process in started) and time.monotonic() < end:
        time.sleep(0.02)


def _end(started: Sequence[subprocess.Popen[bytes]]) -> None:
    """Waits for processes whose sockets are closed, and kills those that do not exit."""
    end = time.monotonic() + END_SECONDS
    for process in started:
        try:
            process.wait(max(0, end - time.monotonic()))
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
