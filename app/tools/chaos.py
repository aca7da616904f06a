"""`chaos`: trains an experiment while faults strike it, and compares with a run left alone.

    undisturbed   ...................................... weights_sha256
    disturbed 0   ....X..r.......X......r...S....r...... the same?
    disturbed 1   ..D.r....                              until all faults have struck

X kill, S stop, W kill of rank 0 while it writes a checkpoint, D damage of the newest one, then a
kill, + - a host more or less (elastic); r: the first step after. When and whom a fault strikes is a
function of the seed.
"""

from __future__ import annotations

import contextlib
import json
import math
import os
import random
import signal
import statistics
import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from app.errors import BUG, DIVERGED, DONE, UsageError
from app.launch import processes
from app.recovery import heartbeat, manifest

POLL = 0.02  # seconds
KINDS = ("kill", "stop", "write", "damage")
IDLE_RUNS = 3  # in a row without a fault: others would not have one either
HOSTS = (1, 3, 2)  # a host list that shrinks, grows and shrinks again, over and over


@dataclass(frozen=True)
class Plan:
    """What strikes, and how often.

    Attributes:
        faults: how many in all.
        between: mean seconds from one to the next (exponential, as failures of machines come).
        kinds: of KINDS, or "hosts".
        seed: of moments, kinds and victims.
        ranks: of the job.
    """

    faults: int
    between: float
    kinds: tuple[str, ...]
    seed: int
    ranks: int


@dataclass
class Tally:
    """What came of it.

    Attributes:
        recovery: for each fault, seconds until a step was done again.
        redone: steps that were done again, in all.
        torn: writes of checkpoints that a kill left unfinished.
        seconds: of the disturbed runs, wall clock.
        useful: of these, in steps that were not done again, at the undisturbed pace.
    """

    struck: dict[str, int] = field(default_factory=dict)
    recovery: list[float] = field(default_factory=list)
    redone: int = 0
    torn: int = 0
    seconds: float = 0.0
    useful: float = 0.0
    runs: int = 0
    same: int = 0


class Disturbed:
    """One run of the job under fire."""

    def __init__(self, command: Sequence[str], folder: Path, plan: Plan, tally: Tally) -> None:
        self.folder, self.plan, self.tally = folder, plan, tally
        self.random = random.Random(f"{plan.seed} {tally.runs}")
        folder.mkdir(parents=True)
        self.hosts = folder / "hosts"
        if "hosts" in plan.kinds:
            self._hosts(plan.ranks)
            script = folder.resolve() / "hosts.sh"
            script.write_text('#!/bin/sh\ncat "$(dirname "$0")/hosts"\n')
            script.chmod(0o700)
            command = [*command, f"--host_discovery_script={script}"]
        env = os.environ | {"TMPDIR": str(folder.resolve())}  # where heartbeats are seen
        self.log = (folder / "log").open("w")
        self.job = subprocess.Popen(
            [*command, f"--workdir={folder}"], env=env, stdin=subprocess.DEVNULL, stdout=self.log,
            stderr=subprocess.STDOUT, start_new_session=True,
            preexec_fn=processes.die_with_parent,
        )  # fmt: skip
        self.furthest, self._sessions = 0, 0
        self._begun, self._first = 0.0, 0  # of the newest session: moment, steps done
        self._begun_time = 0.0  # of it too, as files know it
        self._waiting: list[float] = []  # moments of faults that are not recovered from
        self._write_since = math.inf  # moment; the write before took so many seconds:
        self._write_lasts = 0.0
        self._changes = 0

    def run(self) -> dict[str, Any] | None:
        """Strikes until the run ends or all faults were dealt; returns its result."""
        begin = time.monotonic()
        moment, kind, share = self._next()
        try:
            while self.job.poll() is None:
                time.sleep(POLL)
                self._look()
                struck = sum(self.tally.struck.values())
                is_due = struck < self.plan.faults and time.monotonic() > moment
                if is_due and (kind != "write" or self._has_written(share)):
                    self._strike(kind)  # a moment that finds nobody passes
                    moment, kind, share = self._next()
        finally:
            if self.job.poll() is None:
                self.job.terminate()
            self.job.wait()
            self.log.close()
        end = time.monotonic()
        self.tally.seconds += end - begin
        if self.job.returncode != DONE:
            return None
        self.tally.recovery += [end - moment for moment in self._waiting]  # no step was left
        result: dict[str, Any] = json.loads((self.folder / "result.json").read_text())
        return result

    def _beats(self) -> list[heartbeat.Beat]:
        return [b for f in self.folder.glob("scaleproof-*") for b in heartbeat.read(f)]

    def _next(self) -> tuple[float, str, float]:
        """When the next fault is due, its kind, and which share of a write passes before it."""
        moment = time.monotonic() + self.random.expovariate(1 / self.plan.between)
        return moment, self.random.choice(self.plan.kinds), self.random.random()

    def _is_writing(self) -> bool:
        """Whether this session writes a checkpoint; not what one before it left."""
        with contextlib.suppress(FileNotFoundError):
            folders = (self.folder / "checkpoints").glob(".writing-*")
            return any(folder.stat().st_mtime > self._begun_time for folder in folders)
        return False

    def _has_written(self, share: float) -> bool:
        """Whether a write goes on, for this share of what this session's one before it took.

        The first of a session passes, so that there is progress.
        """
        passed = time.monotonic() - self._write_since
        return bool(self._write_lasts) and passed >= share * self._write_lasts

    def _strike(self, kind: str) -> None:
        """Deals a fault, if there is a rank to be struck, and something to fall back to."""
        alive = [b for b in self._beats() if _lives(b.pid) and (kind != "write" or b.rank == 0)]
        if not alive or (kind == "damage" and len(self._checkpoints()) < 2):
            return
        victim = self.random.choice(alive)
        if kind == "hosts":
            self._hosts(HOSTS[self._changes % len(HOSTS)])
            self._changes += 1
        elif kind == "damage":
            self._damage()
        if kind != "hosts":
            with contextlib.suppress(ProcessLookupError):
                os.kill(victim.pid, signal.SIGSTOP if kind == "stop" else signal.SIGKILL)
        if kind == "write":
            while _lives(victim.pid):
                time.sleep(POLL / 10)
            self.tally.torn += self._is_writing()
        self.tally.struck[kind] = self.tally.struck.get(kind, 0) + 1
        self._waiting.append(time.monotonic())
        self._begun_time = self._write_since = math.inf  # until the next session

    def _damage(self) -> None:
        """Flips a bit of the newest checkpoint."""
        newest = manifest.folder_of(self.folder / "checkpoints", self._checkpoints()[-1])
        path = self.random.choice(sorted(newest.iterdir()))
        with path.open("r+b") as file:
            place = self.random.randrange(path.stat().st_size)
            file.seek(place)
            byte = file.read(1)[0]
            file.seek(place)
            file.write(bytes([byte ^ 1 << self.random.randrange(8)]))

    def _checkpoints(self) -> list[int]:
        return manifest.steps(self.folder / "checkpoints")

    def _hosts(self, count: int) -> None:
        """What the discovery script prints; replaced as a whole, as it may be read just now."""
        partial = self.hosts.with_suffix(".new")
        partial.write_text("".join(f"127.0.0.{i + 1}:1\n" for i in range(count)))
        partial.replace(self.hosts)

    def _look(self) -> None:
        """Follows the ranks: how far they came, whether a new session did a step, writes."""
        with contextlib.suppress(FileNotFoundError):
            lines = (self.folder / "recovery.jsonl").read_text().splitlines()
            sessions = [e for e in map(json.loads, lines) if e["event"] == "session"]
            for session in sessions[self._sessions :]:
                self.tally.redone += max(0, self.furthest - session["first"])
                self._begun, self._first = session["monotonic"], session["first"]
                self._begun_time = session["time"]
                self._write_since, self._write_lasts = math.inf, 0.0
                self.furthest = self._first
            self._sessions = len(sessions)
        for beat in self._beats():
            if beat.time < self._begun:
                continue
            self.furthest = max(self.furthest, beat.step)
            if self._waiting and self._begun > self._waiting[-1] and beat.step > self._first:
                self.tally.recovery += [beat.time - moment for moment in self._waiting]
                self._waiting = []
        if self._is_writing():
            self._write_since = min(self._write_since, time.monotonic())
        elif self._write_since < math.inf:
            self._write_lasts = time.monotonic() - self._write_since
            self._write_since = math.inf


def main(command: Sequence[str], folder: Path, plan: Plan) -> int:
    """Prints the comparison, and writes it as chaos.json; returns the exit code.

    Args:
        command: that trains, but for its workdir; the same for all runs.
        folder: below which each run has its workdir.
        plan: of the faults.

    Raises:
        UsageError: no fault finds its moment.
    """
    print(f"undisturbed run: {' '.join(command)}", flush=True)
    alone = folder / "undisturbed"
    if not (alone / "result.json").exists():
        with (folder / "undisturbed.log").open("w") as log:
            subprocess.run(
                [*command, f"--workdir={alone}"], stdout=log, stderr=log, check=True,
                preexec_fn=processes.die_with_parent,
            )  # fmt: skip
    wanted = json.loads((alone / "result.json").read_text())
    pace = wanted["experiment"]["global_batch"] / wanted["examples_per_second"]  # seconds a step
    print(f"{wanted['steps']} steps of {pace:.3f} s, weights {wanted['weights_sha256'][:16]}")
    tally, idle = Tally(), 0
    while sum(tally.struck.values()) < plan.faults:
        before = dict(tally.struck)
        run = Disturbed(command, folder / f"disturbed-{tally.runs}", plan, tally)
        result = run.run()
        tally.runs += 1
        is_same = bool(result and result["weights_sha256"] == wanted["weights_sha256"])
        tally.same += is_same
        tally.useful += pace * (result["steps"] if result else 0)
        struck = {k: n - before.get(k, 0) for k, n in tally.struck.items() if n > before.get(k, 0)}
        told = "the same weights" if is_same else "OTHER WEIGHTS" if result else "NOT FINISHED"
        faults = ", ".join(f"{kind} {n}" for kind, n in struck.items()) or "no fault"
        print(f"run {tally.runs}: {faults}: {told} ({run.folder})", flush=True)
        idle = 0 if struck else idle + 1
        if not result or idle == IDLE_RUNS:
            break
    report(tally, plan, folder)
    if tally.same < tally.runs:
        return DIVERGED if result else BUG
    if idle == IDLE_RUNS:
        raise UsageError(
            f"no fault found its moment in {idle} runs: make them longer (--set=steps=...) or "
            f"--between_seconds shorter; a write shorter than {POLL} s is not seen."
        )
    return DONE


def report(tally: Tally, plan: Plan, folder: Path) -> None:
    """The figures, for a person and for a program."""
    struck, recovery = sum(tally.struck.values()), sorted(tally.recovery)
    figures = {
        "faults": struck,
        "kinds": tally.struck,
        "recovered": len(recovery),
        "recovery_seconds": {
            "median": statistics.median(recovery) if recovery else None,
            "worst": max(recovery, default=None),
        },
        "steps_redone": tally.redone,
        "writes_torn": tally.torn,
        "goodput": tally.useful / tally.seconds if tally.seconds else None,
        "runs": tally.runs,
        "runs_with_the_same_weights": tally.same,
        "seed": plan.seed,
    }
    (folder / "chaos.json").write_text(json.dumps(figures, indent=1) + "\n")
    kinds = ", ".join(f"{kind} {n}" for kind, n in tally.struck.items())
    print(f"faults               {struck} ({kinds})")
    if recovery:
        median = statistics.median(recovery)
        print(
            f"recovered            {len(recovery)}: median {median:.1f} s, worst {recovery[-1]:.1f}"
        )
    print(f"steps done again     {tally.redone}")
    if tally.torn:
        print(f"writes cut off       {tally.torn}")
    print(f"goodput              {100 * tally.useful / tally.seconds:.1f} % of the wall clock")
    print(f"weights              the same in {tally.same} of {tally.runs} disturbed runs")


def _lives(pid: int) -> bool:
    with contextlib.suppress(OSError):
        state = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
        return state not in "ZX"
    return False


def trainer(flags: Sequence[str]) -> list[str]:
    """What trains: `launch train` with the same flags, exactly, and never giving up."""
    command = [sys.executable, "-m", "app", "launch", "train", *flags]
    return [*command, "--exact", "--max_restarts=1000"]
