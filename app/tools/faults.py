"""Injects faults into a training run: kills, stops, damaged checkpoints, hosts that come and go."""

import contextlib
import json
import os
import random
import signal
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from app.errors import DONE
from app.launch import processes
from app.recovery import atomic_file, manifest
from app.tools.progress import Progress

POLL_SECONDS = 0.02
KINDS = ("kill", "stop", "write", "damage")
HOSTS = (1, 3, 2)  # a host list that shrinks, grows and shrinks again, over and over


@dataclass(frozen=True)
class Plan:
    """A plan of the faults to inject.

    Attributes:
        faults: how many in all.
        between: mean seconds from one to the next (exponential, as machines fail).
        kinds: of KINDS, or "hosts".
        seed: of the moments, kinds and victims.
        ranks: of the job.
    """

    faults: int
    between: float
    kinds: tuple[str, ...]
    seed: int
    ranks: int


@dataclass
class Tally:
    """The results of the faults, over all disturbed runs.

    Attributes:
        injected: number of faults by kind.
        recovery: for each fault, seconds until the first new step after it.
        steps_redone: steps that were done again.
        torn: writes of checkpoints that a kill left unfinished.
        seconds: of the disturbed runs, wall clock.
        useful_seconds: what their steps would take undisturbed, each counted once.
        runs: number of disturbed runs.
        same: number of those that ended with the weights of the undisturbed run.
    """

    injected: dict[str, int] = field(default_factory=dict)
    recovery: list[float] = field(default_factory=list)
    steps_redone: int = 0
    torn: int = 0
    seconds: float = 0.0
    useful_seconds: float = 0.0
    runs: int = 0
    same: int = 0

    @property
    def faults(self) -> int:
        """The number of faults that were injected, of all kinds."""
        return sum(self.injected.values())


class DisturbedRun:
    """One run of the job, into which faults are injected.

    Args:
        command: that trains, but for its workdir.
        folder: the workdir.
        plan: of the faults.
        tally: to which their results are added.
    """

    def __init__(self, command: Sequence[str], folder: Path, plan: Plan, tally: Tally) -> None:
        self.folder, self.plan, self.tally = folder, plan, tally
        self.random = random.Random(f"{plan.seed} {tally.runs}")
        self.progress = Progress(folder)
        folder.mkdir(parents=True)
        self.hosts, self.num_host_changes = folder / "hosts", 0
        if "hosts" in plan.kinds:
            self._set_hosts(plan.ranks)
            script = folder.resolve() / "hosts.sh"
            script.write_text('#!/bin/sh\ncat "$(dirname "$0")/hosts"\n')
            script.chmod(0o700)
            command = [*command, f"--host_discovery_script={script}"]
        self.log = (folder / "log").open("w")
        heartbeats = {"TMPDIR": str(folder.resolve())}  # where they are written
        self.job = processes.start(
            [*command, f"--workdir={folder}"], heartbeats, stdout=self.log, stderr=self.log,
            start_new_session=True,
        )  # fmt: skip

    def run(self) -> dict[str, Any] | None:
        """Injects faults until the run ends or there were enough; returns its result, if any."""
        begin = time.monotonic()
        moment, kind, fraction = self._draw()
        try:
            while self.job.poll() is None:
                time.sleep(POLL_SECONDS)
                self.progress.update()
                is_due = self.tally.faults < self.plan.faults and time.monotonic() > moment
                if is_due and (kind != "write" or self.progress.has_written(fraction)):
                    self._inject(kind)  # if there is a victim
                    moment, kind, fraction = self._draw()
        finally:
            if self.job.poll() is None:
                self.job.terminate()
            self.job.wait()
            self.log.close()
        self.tally.seconds += time.monotonic() - begin
        if self.job.returncode == DONE:
            self.progress.end()
        self.tally.recovery += self.progress.recovery
        self.tally.steps_redone += self.progress.steps_redone
        if self.job.returncode != DONE:
            return None
        result: dict[str, Any] = json.loads((self.folder / "result.json").read_text())
        return result

    def _draw(self) -> tuple[float, str, float]:
        """Draws when the next fault is due, its kind, and which fraction of a write precedes it."""
        moment = time.monotonic() + self.random.expovariate(1 / self.plan.between)
        return moment, self.random.choice(self.plan.kinds), self.random.random()

    def _inject(self, kind: str) -> None:
        """Injects a fault, if a rank lives and, for damage, a checkpoint would be left."""
        ranks = [b for b in self.progress.beats() if kind != "write" or b.rank == 0]
        alive = [b for b in ranks if processes.status(b.pid)]
        if not alive or (kind == "damage" and len(self.progress.checkpoints()) < 2):
            return
        victim = self.random.choice(alive)
        if kind == "hosts":
            self._set_hosts(HOSTS[self.num_host_changes % len(HOSTS)])
            self.num_host_changes += 1
        elif kind == "damage":
            self._damage()
        if kind != "hosts":
            with contextlib.suppress(ProcessLookupError):
                os.kill(victim.pid, signal.SIGSTOP if kind == "stop" else signal.SIGKILL)
        if kind == "write":
            while processes.status(victim.pid):
                time.sleep(POLL_SECONDS / 10)
            self.tally.torn += self.progress.is_writing()
        self.tally.injected[kind] = self.tally.injected.get(kind, 0) + 1
        self.progress.note_fault()

    def _damage(self) -> None:
        """Flips a bit of the newest checkpoint."""
        newest = manifest.folder_of(self.folder / "checkpoints", self.progress.checkpoints()[-1])
        path = self.random.choice(sorted(newest.iterdir()))
        with path.open("r+b") as file:
            offset = self.random.randrange(path.stat().st_size)
            file.seek(offset)
            byte = file.read(1)[0]
            file.seek(offset)
            file.write(bytes([byte ^ 1 << self.random.randrange(8)]))

    def _set_hosts(self, count: int) -> None:
        """Sets what the discovery script prints."""
        atomic_file.write_text(self.hosts, "".join(f"127.0.0.{i + 1}:1\n" for i in range(count)))
