"""Tries an all-reduce over NP ranks that are started as for training: is it right, and how fast?

A rank runs `python -m app doctor` too, with an environment variable that makes it one (`RANK`).
"""

import contextlib
import io
import json
import os
import re
import shlex
import sys
import time
from collections.abc import Sequence

from app.errors import UsageError
from app.launch import processes
from app.launch.job import Job
from app.launch.launcher import Start, ranks
from app.launch.supervisor import POLL_SECONDS
from app.parallel.topology import bus_bandwidth
from app.tools.diagnosis.finding import Finding, ok, problem, warning
from app.tools.diagnosis.installed import REBUILD

RANK = "SCALEPROOF_TRIAL"  # environment variable
COMMAND = (sys.executable, "-m", "app", "doctor")
SECONDS = 300  # the import of TensorFlow was seen to take 40 on a busy machine
ERRORS = re.compile(r"error|horovodrun:", re.IGNORECASE)


def is_rank() -> bool:
    """Returns whether this process is a rank of the trial."""
    return bool(os.environ.get(RANK))


def all_reduce(start: Start, command: Sequence[str] = COMMAND, limit: float = SECONDS) -> Finding:
    """Starts the ranks, examines their result, and ends what is left of them.

    Args:
        start: how ranks are started, as for training.
        command: what a rank runs.
        limit: seconds for all of it.
    """
    np = start.processes
    if np == 1:
        return ok("all-reduce", "1 process has no other to sum with (NP=1)")
    processes.adopt_orphans()
    variables = {RANK: "1"}
    output = io.StringIO()
    with contextlib.redirect_stdout(output), contextlib.redirect_stderr(output):
        try:
            launcher = ranks(start, variables)
        except UsageError as error:
            fix = "do what it says, and run doctor again"
            return warning("all-reduce", f"not tried: {error}", fix)
        job = Job(command, launcher, variables)
    try:
        end = time.monotonic() + limit
        while not job.has_ended() and time.monotonic() < end:
            time.sleep(POLL_SECONDS)
        is_done = job.process.poll() == 0
        cause = job.end().reason if job.has_ended() else _timeout(job, limit)
    finally:
        job.kill()
    lines = output.getvalue().splitlines()
    results = [json.loads(line) for line in lines if line.startswith('{"ranks"')]
    if is_done and results:
        return examine(np, results[-1])
    last = [line.strip() for line in lines if ERRORS.search(line)][-1:]
    found = "; ".join([cause, *last] if cause else last) or "the ranks exited without a result"
    by_hand = shlex.join(["env", *(f"{k}={v}" for k, v in variables.items()), *launcher, *command])
    fix = f"fix what is reported above; else run it yourself and read the output: {by_hand}"
    return problem("all-reduce", found, fix)


def examine(np: int, result: dict[str, float]) -> Finding:
    """Examines what rank 0 measured (`all_reduce.reduce`)."""
    if result["ranks"] != np:
        found = f"{result['ranks']:.0f} ranks connected, not {np}: each would train by itself"
        return problem("all-reduce", found, REBUILD)
    if result["wrong"]:
        found = f"wrong sums: {result['wrong']:.0f} numbers are not the sum over {np} ranks"
        return problem("all-reduce", found, REBUILD)
    small, large = 2**12, 2**24
    bandwidth = bus_bandwidth(np, large, result[str(large)])
    return ok(
        "all-reduce",
        f"{np} ranks, sums right: 4 KiB in {result[str(small)] * 1e3:.2f} ms, 16 MiB in "
        f"{result[str(large)] * 1e3:.1f} ms ({bandwidth / 1e9:.2g} GB/s bus)",
    )


def _timeout(job: Job, limit: float) -> str:
    suspect = job.suspect()
    who = f"; the others wait for rank {suspect.rank}, {suspect.doing}" if suspect else ""
    return f"no result in {limit:.0f} s{who}"
