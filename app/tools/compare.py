"""`compare`: one experiment under several update rules, on the same data and seed, in one report.

    sync        ................ result.json, metrics.jsonl  \
    async       ............                                  > compare.html, compare.png, .svg
    bounded:4   .............                                /

The runs follow each other, each alone on the machine. One that is done is not run again: the same
command with --workdir goes on, or adds a rule.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from app.errors import DONE, UsageError
from app.launch import private_network, processes
from app.parallel import straggler
from app.tools import comparison
from app.tools.rules import Rule


@dataclass(frozen=True)
class Conditions:
    """What all rules run under.

    Attributes:
        workers: processes that compute.
        slowdown: of the last of them; 1: none.
        mbit: of the link that all share; 0: as it is.
        price: of a worker's device, an hour; 0: not asked.
        target: the accuracy whose time is looked for; 0: a point below the synchronous one.
        evaluations: of each run, at equal distances.
    """

    workers: int
    slowdown: float = 1.0
    mbit: float = 0.0
    price: float = 0.0
    target: float = 0.0
    evaluations: int = 10

    @property
    def of_runs(self) -> dict[str, float]:
        """What a run depends on; price and target are the report's."""
        return {
            "NP": self.workers, "slowdown": self.slowdown, "link_mbit": self.mbit,
            "evaluations": self.evaluations,
        }  # fmt: skip

    @property
    def environment(self) -> dict[str, str]:
        """What makes it so."""
        found = {"NP": str(self.workers)}
        if self.slowdown > 1:
            found[straggler.VARIABLE] = f"{self.workers - 1}:{self.slowdown}"
        if self.mbit:
            found[private_network.LINK] = str(self.mbit)
        return found


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
        must_shape(conditions.mbit)
    folder.mkdir(parents=True, exist_ok=True)
    must_be_alike(folder, {"flags": list(flags), **conditions.of_runs})
    every = max(1, steps // conditions.evaluations)
    for rule in rules:
        begin = time.monotonic()
        place = folder / comparison.place(rule)
        if not (place / "result.json").exists():
            code = train(flags, rule, conditions, every, place)
            if code != DONE:
                told = f"failed with exit code {code}; {place}.log says why"
                print(f"{rule.name}: {told}.", flush=True)
                return code
        told = comparison.line(comparison.read(rule, folder))
        print(f"{rule.name:12} {told} ({time.monotonic() - begin:.0f} s)", flush=True)
    runs = [comparison.read(rule, folder) for rule in rules]
    comparison.write(runs, conditions, folder)
    print(f"report: {folder / 'compare.html'}, {folder / 'compare.png'}, .svg")
    return DONE


def train(flags: Sequence[str], rule: Rule, conditions: Conditions, every: int, place: Path) -> int:
    """One run from its beginning, its output beside its workdir.

    It is not restarted: its counters would be those of the last attempt.
    """
    shutil.rmtree(place, ignore_errors=True)
    settings = [f"--set={setting}" for setting in rule.settings]
    command = [sys.executable, "-m", "app", "launch", "train", *flags, *settings]
    command += [
        f"--workdir={place}",
        f"--evaluate_every={every}",
        "--log_every=1",
        "--max_restarts=0",
    ]
    with Path(f"{place}.log").open("w") as log:
        return subprocess.run(
            command, env=os.environ | conditions.environment, stdin=subprocess.DEVNULL, stdout=log,
            stderr=log, preexec_fn=processes.die_with_parent,
        ).returncode  # fmt: skip


def must_be_alike(folder: Path, ours: dict[str, Any]) -> None:
    """Remembers what all runs of a folder were run under.

    Raises:
        UsageError: those that are there were run under something else.
    """
    path = folder / "conditions.json"
    theirs = json.loads(path.read_text()) if path.exists() else ours
    lines = [f"{name}: {ours[name]} here, {theirs[name]} there" for name in ours
             if ours[name] != theirs[name]]  # fmt: skip
    if lines:
        raise UsageError(
            f"{folder} holds a comparison under other conditions: {'; '.join(lines)}. Give the "
            "same, or another --workdir."
        )
    path.write_text(json.dumps(ours) + "\n")


def must_shape(mbit: float) -> None:
    """Tries it, before anything is run.

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
