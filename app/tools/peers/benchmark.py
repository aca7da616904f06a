"""Implements `app benchmark peers`: times training steps of this project and PyTorch's, by turns.

    case     one of --cases, on one process of all cores, or on two of half each
    pair     ours, then theirs; theirs, then ours; ...: a machine's speed changes within minutes
    ratio    of examples a second, ours / theirs, in each pair; the median, and the extremes

Both train the same model on the same shapes by the same rule; a case whose weights differ in number
or size is refused.
"""

import json
import re
import statistics
import sys
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any

from app.errors import BUG, DONE
from app.launch.launcher import Start, ranks
from app.tools import rounds
from app.tools.peers import environment, turns
from app.tools.peers.cases import Case
from app.tools.peers.turns import Side, SideError

# Of a processor, that kernels are chosen by.
FEATURES = ("avx2", "avx512f", "avx512_bf16", "amx_bf16", "asimd", "sve", "bf16")
HEADING = (
    f"{'case':18} {'processes x threads':>19} {'batch':>5} {'ours':>9} {'theirs':>9} "
    f"{'ours / theirs':>13}"
)
WARM_STEPS = 2  # before anything is timed; the first compiles


def main(cases: Sequence[Case], pairs: int, seconds: float, folder: Path) -> int:
    """Measures every case; prints and writes the report. Returns the exit code.

    Args:
        cases: what both sides train.
        pairs: turns of each side.
        seconds: of a turn, about; a turn has at least one step.
        folder: of the report.

    Raises:
        UsageError: PyTorch cannot be installed.
    """
    folder.mkdir(parents=True, exist_ok=True)
    theirs = environment.python(folder / "environment.log")
    rows: list[dict[str, Any]] = []
    print(f"{processor()}\n{HEADING}", flush=True)
    for case in cases:
        try:
            rows.append(measure(case, commands(case, theirs, folder), pairs, seconds))
        except SideError as error:
            print(f"error: {case.label}: {error}", file=sys.stderr, flush=True)
            return BUG
        print(line(rows[-1]), flush=True)
    notes = ["", *settings(rows)]
    print("\n".join(notes))
    lines = [processor(), HEADING, *map(line, rows), *notes]
    rounds.write_report(folder, "peers", rows, lines)
    return DONE


Started = tuple[Sequence[Sequence[str]], dict[str, str], Path]  # commands, variables, log


def commands(case: Case, python: Path, folder: Path) -> dict[str, Started]:
    """Returns how each side of a case is started: by Horovod's launcher, or a process a rank."""
    variables = {
        # Ranks are stopped while the other side works.
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


def measure(case: Case, sides: Mapping[str, Started], pairs: int, seconds: float) -> dict[str, Any]:
    """Returns the row of a case: examples a second of both sides in each pair, and their settings.

    Raises:
        SideError: a side fails, or they do not train the same.
    """
    with ExitStack() as stack:
        ready = {
            name: stack.enter_context(turns.side(commands, case.processes, variables, log))
            for name, (commands, variables, log) in sides.items()
        }
        check(case, ready)
        steps = {name: warm_up(side, seconds) for name, side in ready.items()}
        examples = {name: n * case.experiment.global_batch for name, n in steps.items()}
        speeds = rounds.by_turns(
            ready, pairs, lambda name, turn: examples[name] / ready[name].run(steps[name])
        )
    return {
        "case": case.name, "processes": case.processes, "threads": case.threads,
        "batch": case.experiment.micro_batch, "inputs": list(case.inputs), "steps": steps,
        "speeds": speeds,
        "ratios": [a / b for a, b in zip(speeds["ours"], speeds["theirs"], strict=True)],
        "sides": {
            name: {key: side.facts[0][key] for key in ("version", "settings")}
            for name, side in ready.items()
        },
    }  # fmt: skip


def check(case: Case, sides: Mapping[str, Side]) -> None:
    """Checks that both sides train the same.

    Raises:
        SideError: their weights or threads differ.
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
    """Shortens a list of the sizes of weights to their number and sum."""
    return f"{len(value)} weights of {sum(value)}" if isinstance(value, list) else str(value)


def warm_up(side: Side, seconds: float) -> int:
    """Warms a side up; returns the number of steps that take about so long, at least one."""
    side.run(WARM_STEPS)
    return max(1, round(seconds / side.run(1)))


def processor(path: Path = Path("/proc/cpuinfo")) -> str:
    """Returns the name of this machine's processor, and those of its features that matter."""
    text = path.read_text() if path.exists() else ""
    name = re.search(r"^model name\s*:\s*(.+)$", text, re.MULTILINE)
    flags = re.search(r"^(?:flags|Features)\s*:\s*(.+)$", text, re.MULTILINE)
    found = set(flags[1].split()) if flags else set()
    features = [feature for feature in FEATURES if feature in found]
    return f"{name[1] if name else 'processor'} ({', '.join(features) or 'features unknown'})"


def line(row: Mapping[str, Any]) -> str:
    """Returns a row as a line: median examples a second, median and extremes of the ratios."""
    ours, theirs = (statistics.median(row["speeds"][name]) for name in ("ours", "theirs"))
    found = row["ratios"]
    return (
        f"{row['case']:18} {row['processes']:>15} x {row['threads']} {row['batch']:5} "
        f"{ours:9.2f} {theirs:9.2f} {statistics.median(found):13.3f} "
        f"[{min(found):.3f} to {max(found):.3f}]"
    )


def settings(rows: Sequence[Mapping[str, Any]]) -> list[str]:
    """Returns notes on what was measured: versions, and the settings of each side."""
    lines = [f"examples a second, medians of {len(rows[0]['ratios'])} pairs of turns"]
    for row in rows:
        each = (f"{side['version']} ({side['settings']})" for side in row["sides"].values())
        lines.append(f"{row['case']}, {row['processes']} x {row['threads']}: {' / '.join(each)}")
    return lines
