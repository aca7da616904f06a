"""Runs two sides by turns: while one computes, all processes of the other are stopped.

    parent      10 ->                10 ->
    ours        10 steps, seconds |  stopped
    theirs      stopped           |  10 steps, seconds

A side's processes are started once and stay warm. Each listens on a Unix socket, which a network
namespace does not hide; `child.py` is its end of it.
"""

import contextlib
import json
import os
import signal
import subprocess
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from multiprocessing.connection import Client, Connection
from pathlib import Path

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
        self, children: Sequence[Connection], started: Sequence[subprocess.Popen[bytes]], log: Path
    ) -> None:
        self.children, self.started, self.log = children, started, log
        self.facts = [json.loads(child.recv_bytes()) for child in children]
        self.signal(signal.SIGSTOP)

    def run(self, steps: int) -> float:
        """Takes a number of steps; returns the seconds of the slowest process.

        Raises:
            SideError: a process has ended.
        """
        self.signal(signal.SIGCONT)
        try:
            for child in self.children:
                child.send_bytes(json.dumps(steps).encode())
            seconds = [json.loads(child.recv_bytes()) for child in self.children]
        except (OSError, EOFError):
            _wait_for_any(self.started)  # its socket closes before it has printed why
            raise SideError(processes.last_line(self.log)) from None
        self.signal(signal.SIGSTOP)
        return float(max(seconds))

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
        commands: to start; the folder of the sockets is appended to each.
        size: number of ranks that they start.
        variables: of their environment.
        log: for their output.

    Raises:
        SideError: a process ended before it was ready.
    """
    with contextlib.ExitStack() as stack:
        folder = stack.enter_context(tempfile.TemporaryDirectory())
        output = stack.enter_context(log.open("w"))
        started = [
            processes.start([*command, folder], variables, stdout=output, stderr=output)
            for command in commands
        ]
        stack.callback(_end, started)
        paths = [f"{folder}/{rank}" for rank in range(size)]
        children = [stack.enter_context(_connect(path, started, log)) for path in paths]
        ready = Side(children, started, log)
        # Called before the sockets are closed, so that all can exit.
        stack.callback(ready.signal, signal.SIGCONT)
        yield ready


def _connect(path: str, started: Sequence[subprocess.Popen[bytes]], log: Path) -> Connection:
    while all(process.poll() is None for process in started):
        with contextlib.suppress(FileNotFoundError, ConnectionRefusedError):  # not ready yet
            return Client(path)
        time.sleep(0.1)
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
