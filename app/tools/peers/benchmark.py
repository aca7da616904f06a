"""`app benchmark peers`: a training step of this project against PyTorch's, by turns.

case          --cases, on one process of all cores and on two of half each
pair          ours, then theirs; theirs, then ours; ...: machines change their speed in minutes
ratio         of examples a second, ours / theirs, in each pair; the median, and the extremes

Both train the same model on the same shapes by the same rule: a case whose weights differ in
number or size is refused.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any

from app.errors import BUG, DONE
from app.launch.launcher import Start, ranks
from app.tools.peers import environment, report, turns
from app.tools.peers.cases import Case
from app.tools.peers.turns import Side, SideError

WARM_STEPS = 2  # before anything is timed; the first compiles


def main(cases: Sequence[Case], pairs: int, seconds: float, folder: Path) -> int:
    """Measures every case; prints and writes the report. Returns the exit code.

    Args:
        cases: what both sides train.
        pairs: turns of each side.
        seconds: of a turn, about; a step at least.
        folder: of the report.

    Raises:
        UsageError: PyTorch cannot be installed.
    """
    folder.mkdir(parents=True, exist_ok=True)
    theirs = environment.python(folder / "environment.log")
    rows: list[dict[str, Any]] = []
    print(f"{report.processor()}\n{report.heading()}", flush=True)
    for case in cases:
        try:
            rows.append(measured(case, commands(case, theirs, folder), pairs, seconds))
        except SideError as error:
            print(f"error: {case.label}: {error}", file=sys.stderr, flush=True)
            return BUG
        print(report.line(rows[-1]), flush=True)
    notes = report.settings(rows)
    lines = [report.processor(), report.heading(), *map(report.line, rows), "", *notes]
    (folder / "peers.json").write_text(json.dumps(rows, indent=1) + "\n")
    (folder / "peers.txt").write_text("\n".join(lines) + "\n")
    print("\n".join(["", *notes, f"report: {folder / 'peers.txt'}, peers.json"]))
    return DONE


Started = tuple[Sequence[Sequence[str]], dict[str, str], Path]  # commands, variables, log


def commands(case: Case, python: Path, folder: Path) -> dict[str, Started]:
    """How each side of a case is started: ours by Horovod's launcher, theirs a process a rank."""
    variables = {
        # A stopped process answers late.
        "HOROVOD_GLOO_TIMEOUT_SECONDS": "3600",
        "HOROVOD_STALL_CHECK_DISABLE": "1",
    }
    launcher = ranks(Start(case.processes), variables)
    ours = [[*launcher, sys.executable, "-m", "app.tools.peers.ours", case.name]]
    task = json.dumps(case.task())
    theirs = [
        [str(python), "-m", "app.tools.peers.theirs", task, str(rank)]
        for rank in range(case.processes)
    ]
    root = {"PYTHONPATH": str(environment.ROOT)}
    gloo = {"OMP_NUM_THREADS": str(case.threads), "GLOO_SOCKET_IFNAME": "lo"}
    return {
        "ours": (ours, root | variables, folder / f"{case.label}_ours.log"),
        "theirs": (theirs, root | gloo, folder / f"{case.label}_theirs.log"),
    }


def measured(
    case: Case, sides: Mapping[str, Started], pairs: int, seconds: float
) -> dict[str, Any]:
    """A case's row: examples a second of both sides in each pair, and what each is.

    Raises:
        SideError: a side fails, or they do not train the same.
    """
    with ExitStack() as stack:
        ready = {
            name: stack.enter_context(turns.side(commands, case.processes, variables, log))
            for name, (commands, variables, log) in sides.items()
        }
        check(case, ready)
        steps = {name: enough(side, seconds) for name, side in ready.items()}
        speeds: dict[str, list[float]] = {name: [] for name in ready}
        for turn in range(pairs):
            for name in list(ready) if turn % 2 == 0 else list(ready)[::-1]:
                lasted = ready[name].run(steps[name])
                speeds[name].append(steps[name] * case.experiment.global_batch / lasted)
    return {
        "case": case.name, "processes": case.processes, "threads": case.threads,
        "batch": case.experiment.micro_batch, "inputs": list(case.inputs), "steps": steps,
        "speeds": speeds, "ratios": report.ratios(speeds["ours"], speeds["theirs"]),
        "sides": {
            name: {key: side.facts[0][key] for key in ("version", "settings")}
            for name, side in ready.items()
        },
    }  # fmt: skip


def check(case: Case, sides: Mapping[str, Side]) -> None:
    """Refuses a comparison of what is not the same.

    Raises:
        SideError: other weights, or other threads.
    """
    for key, expected in (("sizes", sides["ours"].facts[0]["sizes"]), ("threads", case.threads)):
        for name, side in sides.items():
            for facts in side.facts:
                if facts[key] != expected:
                    raise SideError(
                        f"both sides must train the same, but {key} of {name} are "
                        f"{short(facts[key])}, not {short(expected)}"
                    )


def short(value: Any) -> str:
    """Of a weight's sizes, how many and their sum."""
    return f"{len(value)} weights of {sum(value)}" if isinstance(value, list) else str(value)


def enough(side: Side, seconds: float) -> int:
    """Steps that take about so long, at least one; warms the side up."""
    side.run(WARM_STEPS)
    return max(1, round(seconds / side.run(1)))
