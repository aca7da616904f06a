"""Starts the processes of a parameter-server job on this machine, as `horovodrun` starts ranks.

    chief     one; the job ends when it does
    ps        the servers; with one its weights are lost: the job ends, to be started again
    worker    one that dies is started again, and takes up work where the others are

    python -m app.launch.tfrun <workers> <servers> <command of each> ...

All run the same command; TF_CONFIG says what each is. Only the chief writes heartbeats and an exit
code, as only it knows how the run goes.
"""

import contextlib
import os
import socket
import subprocess
import sys
import time
from collections.abc import Sequence

from app.launch import private_network, processes
from app.launch.job import EXIT_FILE, describe_exit
from app.launch.output import ENDED, LOST
from app.parallel.cluster import PATIENCE, Cluster
from app.recovery import heartbeat

POLL_SECONDS = 0.2
PAUSE_SECONDS = 1.0  # before a worker is started again
Task = tuple[str, int]
CHIEF: Task = ("chief", 0)


def main(workers: str, servers: str, *command: str) -> int:
    """Runs the job; returns 0 if its chief ended well."""
    processes.die_with_parent()
    private_network.enter()
    return Tasks(int(workers), int(servers), command).run()


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
        """Watches the processes until the job ends, and leaves none; returns 0 if the chief did."""
        while True:
            time.sleep(POLL_SECONDS)
            chief = self.running[CHIEF].poll()
            if chief:
                time.sleep(POLL_SECONDS)  # a server that it lost may be seen to have ended only now
            if chief == 0 or self.is_broken():
                break
            if chief:
                code = chief if chief > 0 else 128 - chief
                line = f"Process 0 exit with status code {code}."  # as horovodrun prints it
                print(line, file=sys.stderr, flush=True)
                break
        # What is left holds nothing that is not in the checkpoints.
        for process in self.running.values():
            process.kill()
        for process in self.running.values():
            process.wait()
        return int(chief != 0)

    def is_broken(self) -> bool:
        """Starts killed workers again; returns whether a server or a worker ended the job."""
        for task, process in self.running.items():
            status = process.poll()
            if status is None or task == CHIEF:
                continue
            if task[0] == "ps" or status > 0:  # a worker with an exit code would exit again
                self.report(ENDED, task)
                return True
            self.report(LOST, task, " and is started again")
            time.sleep(PAUSE_SECONDS)
            self.running[task] = self.start(task)
        return False

    def start(self, task: Task) -> subprocess.Popen[bytes]:
        """Starts the process of a task."""
        env = {**os.environ, **self.cluster.environment(*task)}
        env[PATIENCE] = "60"  # they start together, and `run` notices one that ends
        if task[0] != "chief":
            for name in (heartbeat.FOLDER, EXIT_FILE):
                env.pop(name, None)
        return subprocess.Popen(processes.bound(self.command), env=env)

    def report(self, prefix: str, task: Task, more: str = "") -> None:
        """Prints how a server or a worker ended, for the supervisor of the job."""
        process = self.running[task]
        name = {"ps": "parameter server", "worker": "worker"}[task[0]]
        exit = describe_exit(process.returncode)
        line = f"{prefix}{name} {task[1]} (pid {process.pid}) {exit}{more}"
        print(line, file=sys.stderr, flush=True)


def free_ports(count: int) -> list[int]:
    """Returns ports of loopback that are free now."""
    with contextlib.ExitStack() as stack:
        probes = [stack.enter_context(socket.socket()) for _ in range(count)]
        for probe in probes:
            probe.bind(("127.0.0.1", 0))
        return [probe.getsockname()[1] for probe in probes]


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
