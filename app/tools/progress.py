"""Follows a training run from outside, by its files: sessions, heartbeats, checkpoints."""

import contextlib
import json
import math
import time
from pathlib import Path

from app.recovery import heartbeat, manifest


class Progress:
    """The progress of a run into which faults are injected.

    Args:
        workdir: of the run; it holds the heartbeats too (TMPDIR).

    Attributes:
        recovery: for each fault, the seconds until the first new step after it.
        steps_redone: steps that were done again.
    """

    def __init__(self, workdir: Path) -> None:
        self.workdir = workdir
        self.recovery: list[float] = []
        self.steps_redone = 0
        self._faults: list[float] = []  # moments of those that the run has not recovered from
        self._num_sessions, self._furthest = 0, 0
        # The newest session: its moment, by two clocks, and the steps done before it.
        self._begun, self._begun_time, self._first = 0.0, 0.0, 0
        self._write_begun = math.inf  # of the write that goes on
        self._write_seconds = 0.0  # that the write before it took, in this session

    def beats(self) -> list[heartbeat.Beat]:
        """Returns where each rank was last seen, of all attempts."""
        return [b for f in self.workdir.glob("scaleproof-*") for b in heartbeat.read(f)]

    def checkpoints(self) -> list[int]:
        """Returns the steps that have a checkpoint, oldest first."""
        return manifest.steps(self.workdir / "checkpoints")

    def is_writing(self) -> bool:
        """Returns whether this session writes a checkpoint; one before it may have left files."""
        with contextlib.suppress(FileNotFoundError):
            folders = (self.workdir / "checkpoints").glob(".writing-*")
            return any(folder.stat().st_mtime > self._begun_time for folder in folders)
        return False

    def has_written(self, fraction: float) -> bool:
        """Returns whether a write has taken this fraction of the time of the one before it.

        The first write of a session does not count, so that each session makes progress.
        """
        passed = time.monotonic() - self._write_begun
        return bool(self._write_seconds) and passed >= fraction * self._write_seconds

    def note_fault(self) -> None:
        """Notes a fault; what is written until the next session begins is ignored."""
        self._faults.append(time.monotonic())
        self._begun_time = self._write_begun = math.inf

    def update(self) -> None:
        """Looks at the files."""
        self._read_sessions()
        for beat in self.beats():
            if beat.time < self._begun:
                continue
            self._furthest = max(self._furthest, beat.step)
            if self._faults and self._begun > self._faults[-1] and beat.step > self._first:
                self._recover(beat.time)
        if self.is_writing():
            self._write_begun = min(self._write_begun, time.monotonic())
        elif self._write_begun < math.inf:
            self._write_seconds = time.monotonic() - self._write_begun
            self._write_begun = math.inf

    def end(self) -> None:
        """Notes that the run is done: a fault after the last step is recovered from now."""
        self._recover(time.monotonic())

    def _recover(self, moment: float) -> None:
        self.recovery += [moment - fault for fault in self._faults]
        self._faults = []

    def _read_sessions(self) -> None:
        with contextlib.suppress(FileNotFoundError):
            lines = (self.workdir / "recovery.jsonl").read_text().splitlines()
            sessions = [e for e in map(json.loads, lines) if e["event"] == "session"]
            for session in sessions[self._num_sessions :]:
                self.steps_redone += max(0, self._furthest - session["first"])
                self._begun, self._begun_time = session["monotonic"], session["time"]
                self._first = self._furthest = session["first"]
                self._write_begun, self._write_seconds = math.inf, 0.0
            self._num_sessions = len(sessions)
