"""An all-reduce over NP ranks that start as training's do: right, and how fast.

A rank is `python -m app doctor` too, told by the environment to be one (`RANK`).
"""

from __future__ import annotations

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
from app.launch.supervisor import POLL
from app.tools.diagnosis.finding import Finding, ok, problem, warning
from app.tools.diagnosis.installed import COMPILE

RANK = "SCALEPROOF_TRIAL"  # environment variable
COMMAND = (sys.executable, "-m", "app", "doctor")
SECONDS = 300  # TensorFlow's import alone was seen to take 40 on a busy machine
SAID = re.compile(r"error|horovodrun:", re.IGNORECASE)


def is_rank() -> bool:
    """Whether this process is one of the trial's."""
    return bool(os.environ.get(RANK))


def all_reduce(start: Start, command: Sequence[str] = COMMAND, limit: float = SECONDS) -> Finding:
    """Starts the ranks, waits for their result, and ends what is left of them.

    Args:
        start: how training would be.
        command: what a rank runs.
        limit: seconds for all of it.
    """
    np = start.processes
    if np == 1:
        return ok("all-reduce", "1 process has nobody to add up with (NP=1)")
    processes.adopt_orphans()
    variables = {RANK: "1"}
    said = io.StringIO()
    with contextlib.redirect_stdout(said), contextlib.redirect_stderr(said):
        try:
            launcher = ranks(start, variables)
        except UsageError as error:
            fix = "do what it says, and call doctor again"
            return warning("all-reduce", f"not tried: {error}", fix)
        job = Job(command, launcher, variables)
    try:
        end = time.monotonic() + limit
        while not job.has_ended() and time.monotonic() < end:
            time.sleep(POLL)
        is_done = job.process.poll() == 0
        cause = job.end().reason if job.has_ended() else _silence(job, limit)
    finally:
        job.kill()
    lines = said.getvalue().splitlines()
    results = [json.loads(line) for line in lines if line.startswith('{"ranks"')]
    if is_done and results:
        return judged(np, results[-1])
    last = [line.strip() for line in lines if SAID.search(line)][-1:]
    told = "; ".join([cause, *last] if cause else last) or "the ranks left without a result"
    by_hand = shlex.join(["env", *(f"{k}={v}" for k, v in variables.items()), *launcher, *command])
    fix = f"mend what is told above first; else call it by hand and read what ranks say: {by_hand}"
    return problem("all-reduce", told, fix)


def judged(np: int, result: dict[str, float]) -> Finding:
    """What rank 0 measured, in words."""
    if result["ranks"] != np:
        told = f"{result['ranks']:.0f} ranks met, not {np}: each trains alone"
        return problem("all-reduce", told, COMPILE)
    if result["wrong"]:
        told = f"wrong sums: {result['wrong']:.0f} numbers are not what {np} ranks add up to"
        return problem("all-reduce", told, COMPILE)
    small, large = 2**12, 2**24
    bandwidth = 2 * (np - 1) / np * large / result[str(large)]
    return ok(
        "all-reduce",
        f"{np} ranks, sums right: 4 KiB in {result[str(small)] * 1e3:.2f} ms, 16 MiB in "
        f"{result[str(large)] * 1e3:.1f} ms ({bandwidth / 1e9:.2g} GB/s bus)",
    )


def _silence(job: Job, limit: float) -> str:
    suspect = job.suspect()
    where = f"; the others wait for rank {suspect.rank}, {suspect.doing}" if suspect else ""
    return f"no result in {limit:.0f} s{where}"
