"""Starts the processes of a parameter-server job on this machine: `horovodrun`'s counterpart.

    chief     one; the job ends when it does
    ps        servers; if one is lost, so are its weights: the job ends, to be started again
    worker    one that dies is started again, and takes up work where it is

    python -m app.launch.tfrun -np 2 -servers 1 -- <command of each>

All run the same command, told by TF_CONFIG what they are. Only the chief beats and leaves an
exit code, as it alone knows how the run goes.
"""

from __future__ import annotations

import argparse
import contextlib
import os
import socket
import subprocess
import sys
import time
from collections.abc import Sequence

from app.launch import private_network, processes
from app.launch.job import ENDED, EXIT_FILE, LOST, how
from app.parallel.cluster import PATIENCE, Cluster
from app.recovery import heartbeat

POLL = 0.2  # seconds
PAUSE = 1.0  # seconds before a worker is started again
Task = tuple[str, int]
CHIEF: Task = ("chief", 0)


def main(arguments: Sequence[str]) -> int:
    """Runs the job; returns 0 if its chief ended well."""
    parser = argparse.ArgumentParser(prog="tfrun")
    parser.add_argument("-np", type=int, required=True, help="workers")
    parser.add_argument("-servers", type=int, required=True)
    parser.add_argument("command", nargs=argparse.REMAINDER)
    options = parser.parse_args(arguments)
    processes.die_with_parent()
    private_network.enter()
    return Tasks(options.np, options.servers, options.command[1:]).run()


class Tasks:
    """The running processes, by task."""

    def __init__(self, workers: int, servers: int, command: Sequence[str]) -> None:
        self.command = command
        counts = {"chief": 1, "ps": servers, "worker": workers}
        ports = iter(free_ports(sum(counts.values())))
        self.cluster = Cluster(
            {job: tuple(f"127.0.0.1:{next(ports)}" for _ in range(n)) for job, n in counts.items()}
        )
        tasks = [(job, index) for job, count in counts.items() for index in range(count)]
        self.running = {task: self.start(task) for task in tasks}

    def run(self) -> int:
        """Watches them to the end, and leaves none."""
        while True:
            time.sleep(POLL)
            chief = self.running[CHIEF].poll()
            if chief:
                time.sleep(POLL)  # it may have lost a server whose end is seen only now
            if chief == 0 or self.is_broken():
                break
            if chief:
                code = chief if chief > 0 else 128 - chief
                line = f"Process 0 exit with status code {code}."  # as horovodrun says it
                print(line, file=sys.stderr, flush=True)
                break
        self.end()
        return int(chief != 0)

    def is_broken(self) -> bool:
        """Whether a server or a worker ended the job; starts workers again that were killed."""
        for task, process in self.running.items():
            status = process.poll()
            if status is None or task == CHIEF:
                continue
            if task[0] == "ps" or status > 0:  # a worker with an exit code would leave again
                self.tell(ENDED, task)
                return True
            self.tell(LOST, task, " and is started again")
            time.sleep(PAUSE)
            self.running[task] = self.start(task)
        return False

    def start(self, task: Task) -> subprocess.Popen[bytes]:
        """A process of the job."""
        env = {**os.environ, **self.cluster.environment(*task)}
        env[PATIENCE] = "60"  # they start together, and one that ends is seen here
        if task[0] != "chief":
            for name in (heartbeat.FOLDER, EXIT_FILE):
                env.pop(name, None)
        return subprocess.Popen(self.command, env=env, preexec_fn=processes.die_with_parent)

    def tell(self, prefix: str, task: Task, more: str = "") -> None:
        """What became of a server or a worker, for whoever watches the job."""
        process = self.running[task]
        name = {"ps": "parameter server", "worker": "worker"}[task[0]]
        line = f"{prefix}{name} {task[1]} (pid {process.pid}) {how(process.returncode)}{more}"
        print(line, file=sys.stderr, flush=True)

    def end(self) -> None:
        """Kills what is left: servers and workers hold nothing that is not elsewhere."""
        for process in self.running.values():
            with contextlib.suppress(ProcessLookupError):
                process.kill()
        for process in self.running.values():
            process.wait()


def free_ports(count: int) -> list[int]:
    """Ports of loopback that nobody has now."""
    with contextlib.ExitStack() as stack:
        probes = [stack.enter_context(socket.socket()) for _ in range(count)]
        for probe in probes:
            probe.bind(("127.0.0.1", 0))
        return [probe.getsockname()[1] for probe in probes]


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
