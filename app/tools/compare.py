"""Implements `compare`: trains an experiment under several update rules, and reports on all.

    sync        ................ result.json, metrics.jsonl  \
    async       ............                                  > compare.html, compare.png, .svg
    bounded:4   .............                                /

The runs have the same data and seed, and follow each other. One that is done is not repeated: the
same command with --workdir continues, or adds a rule.
"""

import shutil
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path

from app.cli import workdir
from app.errors import DONE, UsageError
from app.launch import private_network, processes
from app.tools import comparison
from app.tools.rules import Conditions, Rule


def main(
    flags: Sequence[str], rules: Sequence[Rule], conditions: Conditions, steps: int, folder: Path
) -> int:
    """Trains under each rule, and writes the report; returns the exit code of the first failure.

    Args:
        flags: of all runs.
        rules: to compare.
        conditions: of all runs.
        steps: of a run.
        folder: below which each run has its workdir.
    """
    if conditions.mbit:
        check_link(conditions.mbit)
    folder.mkdir(parents=True, exist_ok=True)
    path, about = folder / "conditions.json", {"flags": list(flags), **conditions.of_runs}
    workdir.settle(path, about, "a comparison under other conditions", "--workdir")
    every = max(1, steps // conditions.evaluations)
    for rule in rules:
        begin = time.monotonic()
        run = folder / comparison.folder_name(rule)
        if not (run / "result.json").exists():
            code = train(flags, rule, conditions, every, run)
            if code != DONE:
                print(f"{rule.name}: failed with exit code {code}; {run}.log says why.", flush=True)
                return code
        figures = comparison.line(comparison.read(rule, folder))
        print(f"{rule.name:12} {figures} ({time.monotonic() - begin:.0f} s)", flush=True)
    runs = [comparison.read(rule, folder) for rule in rules]
    comparison.write(runs, conditions, folder)
    print(f"report: {folder / 'compare.html'}, {folder / 'compare.png'}, .svg")
    return DONE


def train(
    flags: Sequence[str], rule: Rule, conditions: Conditions, every: int, folder: Path
) -> int:
    """Trains under one rule, with the output in a log beside its workdir; returns the exit code.

    The run is not restarted: its counters would be those of the last attempt only.
    """
    shutil.rmtree(folder, ignore_errors=True)
    settings = [f"--set={setting}" for setting in rule.settings]
    command = [sys.executable, "-m", "app", "launch", "train", *flags, *settings]
    command += [f"--workdir={folder}", f"--evaluate_every={every}", "--log_every=1"]
    command += ["--max_restarts=0"]
    return processes.run(command, Path(f"{folder}.log"), **conditions.environment)


def check_link(mbit: float) -> None:
    """Tries to limit the rate of a link, before anything is run.

    Raises:
        UsageError: this machine cannot.
    """
    code = (
        f"from app.launch import private_network as n; n.bring_up(['127.0.0.1']); n.shape({mbit})"
    )
    command = [*private_network.INSIDE, sys.executable, "-c", code]
    reason = "unshare --map-root-user --net is not allowed"
    if private_network.is_allowed():
        done = subprocess.run(command, capture_output=True, text=True)
        reason = done.stderr.strip().rpartition("\n")[2] if done.returncode else ""
    if reason:
        raise UsageError(
            f"--link_mbit={mbit:g} needs a private network and tc (package iproute2) with the "
            f"kernel's token bucket filter, which this machine lacks: {reason}."
        )
