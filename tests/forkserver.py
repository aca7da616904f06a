"""Forks the processes of jobs from one that has imported what they need: see forks.py.

Run by its path, with the modules to import; reads jobs from standard input, a line each, and
answers with the exit codes of their ranks.
"""

from __future__ import annotations

import contextlib
import faulthandler
import gc
import importlib
import json
import os
import pickle
import signal
import sys
import time
from pathlib import Path
from typing import Any

HERE = Path(__file__).parent
SETTLING = 5  # seconds that ranks have to end when another has failed


def serve(modules: list[str]) -> None:
    """Imports, then runs jobs to the end of standard input."""
    from app.cli import loading
    from app.launch import private_network, processes

    processes.die_with_parent()
    private_network.enter()
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # what a library prints is no answer
    for module in modules:
        loading.tensorflow() if module == "tensorflow" else importlib.import_module(module)
    threads = os.listdir("/proc/self/task")
    assert len(threads) == 1, f"a process of {len(threads)} threads cannot be forked"
    gc.freeze()  # a collection would write to every page that is shared
    while line := sys.stdin.readline():
        print(json.dumps(run(json.loads(line))), file=answers, flush=True)


def run(job: dict[str, Any]) -> list[int]:
    """Forks a job's ranks and waits for them; returns their exit codes, -9 of one killed."""
    meeting, variables = rendezvous(job["np"]) if job["np"] > 1 else (None, {})
    ranks = [fork(job, rank, variables) for rank in range(job["np"])]
    codes: dict[int, int] = {}
    end = time.monotonic() + job["limit"] + 1  # when they have written their stacks
    while len(codes) < len(ranks) and time.monotonic() < end:
        if job["ends_with_first"] and ranks[0] in codes:
            break
        time.sleep(0.005)
        for pid in set(ranks) - codes.keys():
            ended, status = os.waitpid(pid, os.WNOHANG)
            if ended:
                codes[pid] = os.waitstatus_to_exitcode(status)
                end = min(end, time.monotonic() + SETTLING) if codes[pid] else end
    for pid in filter(None, [*ranks, meeting]):
        with contextlib.suppress(ProcessLookupError):
            os.killpg(pid, signal.SIGKILL)  # and what a rank has started
        if pid not in codes:
            codes[pid] = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
    return [codes[pid] for pid in ranks]


def rendezvous(np: int) -> tuple[int, dict[str, str]]:
    """Forks what Horovod's ranks meet at, on loopback; returns its pid, and what they must know."""
    from horovod.runner.common.util.hosts import get_host_assignments, parse_hosts
    from horovod.runner.http.http_server import RendezvousServer

    from app.launch import horovodrun

    reader, writer = os.pipe()
    server, pid = os.getpid(), os.fork()
    if not pid:
        lead_group(server)
        horovodrun.listen_on_loopback()
        server = RendezvousServer()
        port = server.start()
        server.init(get_host_assignments(parse_hosts(f"localhost:{np}"), np))
        os.write(writer, str(port).encode())
        signal.pause()
    os.close(writer)
    port = os.read(reader, 10).decode()
    os.close(reader)
    return pid, {
        "HOROVOD_GLOO_RENDEZVOUS_ADDR": "127.0.0.1", "HOROVOD_GLOO_RENDEZVOUS_PORT": port,
        "HOROVOD_CONTROLLER": "gloo", "HOROVOD_CPU_OPERATIONS": "gloo",
        "HOROVOD_GLOO_IFACE": "lo", "HOROVOD_HOSTNAME": "localhost",
        "HOROVOD_CROSS_RANK": "0", "HOROVOD_CROSS_SIZE": "1",
        "HOROVOD_SIZE": str(np), "HOROVOD_LOCAL_SIZE": str(np),
    }  # fmt: skip


def fork(job: dict[str, Any], rank: int, variables: dict[str, str]) -> int:
    """Forks a rank; returns its pid in the server, and never in the rank."""
    from app.launch import private_network

    server, pid = os.getpid(), os.fork()
    if pid:
        return pid
    lead_group(server)
    place = f"{job['folder']}/{rank}"
    for number, name in enumerate([os.devnull, f"{place}.out", f"{place}.err"]):
        os.dup2(os.open(name, os.O_WRONLY | os.O_CREAT if number else os.O_RDONLY), number)
    own = {"HOROVOD_RANK": str(rank), "HOROVOD_LOCAL_RANK": str(rank)} if variables else {}
    inside = {n: v for n, v in os.environ.items() if n == private_network.ADDRESSES}
    os.environ.clear()
    os.environ.update(job["variables"] | inside | variables | own)
    os.chdir(job["cwd"])
    sys.path[0] = job["cwd"]  # as of `python -m`
    faulthandler.dump_traceback_later(job["limit"])
    module, name = job["target"].split(":")
    arguments = pickle.loads(Path(job["folder"], "arguments").read_bytes())
    sys.argv = [module, *map(str, arguments[0] if module == "app.__main__" else ())]
    value = getattr(importlib.import_module(module), name)(*arguments)
    Path(f"{place}.pickle").write_bytes(pickle.dumps(value))
    sys.exit(value if module == "app.__main__" else 0)


def lead_group(server: int) -> None:
    """Makes this process the first of a session, which ends with the server, if it has not yet."""
    from app.launch.die_with_parent import die_with

    os.setsid()
    die_with(server)


if __name__ == "__main__":
    folders = [HERE, *(path for path in sorted(HERE.iterdir()) if path.is_dir())]  # of tests
    # The first is a rank's own.
    sys.path[:1] = [str(HERE.parent), str(HERE.parent), *map(str, folders)]
    serve(sys.argv[1:])
