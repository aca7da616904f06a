"""Implements `chaos`: trains while faults are injected, and compares with an undisturbed run.

    undisturbed   ...................................... weights_sha256
    disturbed 0   ....X..r.......X......r...S....r...... the same?
    disturbed 1   ..D.r....                              until all faults were injected

X kill, S stop, W kill of rank 0 while it writes a checkpoint, D damage of the newest checkpoint and
a kill, + - a host more or less (elastic); r: the first new step. The moments, kinds and victims are
a function of the seed.
"""

import json
import statistics
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from app.errors import BUG, DIVERGED, DONE, UsageError
from app.launch import processes
from app.tools.faults import POLL_SECONDS, DisturbedRun, Plan, Tally

MAX_IDLE_RUNS = 3  # in a row without a fault: others would not have one either


def trainer(flags: Sequence[str]) -> list[str]:
    """Returns the command that trains: exactly, and restarted without a limit."""
    command = [sys.executable, "-m", "app", "launch", "train", *flags]
    return [*command, "--exact", "--max_restarts=1000"]


def main(command: Sequence[str], folder: Path, plan: Plan) -> int:
    """Prints the comparison, and writes it as chaos.json; returns the exit code.

    Args:
        command: that trains, but for its workdir; the same for all runs.
        folder: below which each run has its workdir.
        plan: of the faults.

    Raises:
        UsageError: no fault can be injected, as the runs are too short.
    """
    print(f"undisturbed run: {' '.join(command)}", flush=True)
    expected = undisturbed(command, folder)
    step_seconds = expected["experiment"]["global_batch"] / expected["examples_per_second"]
    digest = expected["weights_sha256"]
    print(f"{expected['steps']} steps of {step_seconds:.3f} s, weights {digest[:16]}")
    tally, num_idle, result = Tally(), 0, None
    while tally.faults < plan.faults:
        before = dict(tally.injected)
        run = DisturbedRun(command, folder / f"disturbed-{tally.runs}", plan, tally)
        result = run.run()
        tally.runs += 1
        is_same = bool(result and result["weights_sha256"] == digest)
        tally.same += is_same
        tally.useful_seconds += step_seconds * (result["steps"] if result else 0)
        new = {kind: n - before.get(kind, 0) for kind, n in tally.injected.items()}
        verdict = "the same weights" if is_same else "OTHER WEIGHTS" if result else "NOT FINISHED"
        print(
            f"run {tally.runs}: {listed(new) or 'no fault'}: {verdict} ({run.folder})", flush=True
        )
        num_idle = 0 if any(new.values()) else num_idle + 1
        if not result or num_idle == MAX_IDLE_RUNS:
            break
    report(tally, plan, folder)
    if tally.same < tally.runs:
        return DIVERGED if result else BUG
    if num_idle == MAX_IDLE_RUNS:
        raise UsageError(
            f"no fault could be injected in {num_idle} runs: make them longer (--set=steps=...) or "
            f"--between_seconds shorter; writes shorter than {POLL_SECONDS} s are not seen."
        )
    return DONE


def undisturbed(command: Sequence[str], folder: Path) -> dict[str, Any]:
    """Returns the result of the run without faults, which is trained once."""
    workdir = folder / "undisturbed"
    path = workdir / "result.json"
    if not path.exists():
        command = [*command, f"--workdir={workdir}"]
        code = processes.run(command, folder / "undisturbed.log")
        if code:
            raise subprocess.CalledProcessError(code, command)
    result: dict[str, Any] = json.loads(path.read_text())
    return result


def report(tally: Tally, plan: Plan, folder: Path) -> None:
    """Prints the figures, and writes them as chaos.json."""
    recovery = sorted(tally.recovery)
    median = statistics.median(recovery) if recovery else None
    figures = {
        "faults": tally.faults,
        "kinds": tally.injected,
        "recovered": len(recovery),
        "recovery_seconds": {"median": median, "worst": max(recovery, default=None)},
        "steps_redone": tally.steps_redone,
        "writes_torn": tally.torn,
        "goodput": tally.useful_seconds / tally.seconds if tally.seconds else None,
        "runs": tally.runs,
        "runs_with_the_same_weights": tally.same,
        "seed": plan.seed,
    }
    (folder / "chaos.json").write_text(json.dumps(figures, indent=1) + "\n")
    print(f"faults               {tally.faults} ({listed(tally.injected)})")
    if recovery:
        times = f"median {median:.1f} s, worst {recovery[-1]:.1f}"
        print(f"recovered            {len(recovery)}: {times}")
    print(f"steps done again     {tally.steps_redone}")
    if tally.torn:
        print(f"writes cut off       {tally.torn}")
    if tally.seconds:
        goodput = 100 * tally.useful_seconds / tally.seconds
        print(f"goodput              {goodput:.1f} % of the wall clock")
    print(f"weights              the same in {tally.same} of {tally.runs} disturbed runs")


def listed(faults: dict[str, int]) -> str:
    """Returns the number of faults by kind, as `kill 2, stop 1`."""
    return ", ".join(f"{kind} {n}" for kind, n in faults.items() if n)
