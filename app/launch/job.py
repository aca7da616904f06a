"""One start of a job's processes: their command, their output, and how they ended."""

from __future__ import annotations

import contextlib
import os
import re
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO

import psutil

from app import errors
from app.launch import processes
from app.recovery import heartbeat

EXIT_FILE = "SCALEPROOF_EXIT_FILE"  # environment variable; a line "pid code" of each that left
SETTLING = 2.0  # seconds that survivors have for their own last words
LEFT = re.compile(r"Process (\d+) exit with status code (\d+)\.")  # horovodrun says so
# What libraries print before they read a log level, and horovodrun of what is told better here.
CHATTER = re.compile(
    r"WARNING: All log messages before absl|E0000 .* Unable to register cu"
    r"|Terminating remaining workers after failure|Horovod background loop uncaught exception"
    r"|(^|>:)(Killed|Terminated|Aborted)( \(core dumped\))?$"
    r"|terminate called after throwing an instance"
    r"|^W0000 |Failed to (register|remove) function remotely"
    r"|^This could happen if the remote target has been disconnected"
    r"|^Additional GRPC error information|^:\{\"created\""
)
# What a launcher says of processes that are no ranks: lost on the way, or the end of the job.
LOST, ENDED = "scaleproof lost: ", "scaleproof ended: "
# How Horovod ends a process that was taken out of an elastic job.
REMOVED = re.compile(r"\[(\d+)\]<stderr>:.*has been removed from elastic job")
# Rank 0 is the one that speaks; in an elastic job it may have been started as another.
OWN_PREFIX = re.compile(r"\[0\]<stderr>:|\[\d+\]<stdout>:")


@dataclass(frozen=True)
class End:
    """How a job ended.

    Attributes:
        code: the exit code of all of it, that of the cause (`app.errors`).
        reason: what happened to which rank, for a person; empty where a rank has told it.
        step: the furthest any rank had come.
    """

    code: int
    reason: str = ""
    step: int = 0


@dataclass
class Job:
    """The processes of one attempt.

    Args:
        command: what each rank runs.
        launcher: how they are started, as `horovodrun -np 2`; none: one plain process.
        variables: of the environment, beside this process's own.
        is_elastic: it may lose processes and be whole.
    """

    command: Sequence[str]
    launcher: Sequence[str] = ()
    variables: Mapping[str, str] = field(default_factory=dict)
    is_elastic: bool = False

    def __post_init__(self) -> None:
        self._folder = tempfile.TemporaryDirectory(prefix="scaleproof-")
        self.heartbeats = Path(self._folder.name)
        self._exits = self.heartbeats / "exits"
        self.failures: list[tuple[int, int]] = []  # (rank, status) in order of time
        self._failed_at = 0.0  # the first of them
        self._num_told = 0
        self._losses: list[str] = []  # of processes that are no ranks
        self._cause = ""  # the end of one that ended the job
        self._removed: set[int] = set()  # ranks that the driver of an elastic job wanted gone
        env = {**os.environ, **self.variables, EXIT_FILE: str(self._exits)}
        env |= {heartbeat.FOLDER: str(self.heartbeats)}
        self.started = time.monotonic()
        self.process = subprocess.Popen(
            [*self.launcher, *self.command], env=env, start_new_session=True,
            stdin=subprocess.DEVNULL, preexec_fn=processes.die_with_parent,
            stdout=subprocess.PIPE if self.launcher else None,
            stderr=subprocess.PIPE if self.launcher else None,
        )  # fmt: skip
        streams = [(self.process.stdout, sys.stdout), (self.process.stderr, sys.stderr)]
        self._readers = [
            threading.Thread(target=self._forward, args=(source, sink), daemon=True)
            for source, sink in streams
            if source
        ]
        for reader in self._readers:
            reader.start()

    def beats(self) -> list[heartbeat.Beat]:
        """Where each rank was last."""
        return heartbeat.read(self.heartbeats)

    def living(self) -> list[heartbeat.Beat]:
        """Those of processes that live; a pid that is a stranger's by now is not among them."""
        own = processes.descendants()
        return [beat for beat in self.beats() if beat.pid in own]

    def has_ended(self) -> bool:
        """All is over, or a process failed and the others had time to say so."""
        if self.process.poll() is not None:
            return True
        has_settled = time.monotonic() - self._failed_at > SETTLING
        return bool(self.failures) and not self.is_elastic and has_settled

    def hang(self, seconds: float) -> float:
        """Seconds in which no rank got on, once they are more than `seconds`; else 0."""
        ages = [beat.age for beat in self.beats()] or [time.monotonic() - self.started]
        return min(ages) if min(ages) > seconds else 0.0

    def suspect(self) -> heartbeat.Beat | None:
        """The rank that the others wait for: a stopped one, or the one that is furthest behind."""
        beats = self.living()
        stopped = [b for b in beats if _status(b.pid) == psutil.STATUS_STOPPED]
        return min(stopped or beats, key=_progress, default=None)

    def report(self) -> str:
        """Where each rank is, and the Python stacks of all that can still tell."""
        beats = self.beats()
        stacks = heartbeat.stacks(self.heartbeats, [b.pid for b in self.living()])
        lines = ["rank     pid  process     step  doing         seconds ago"]
        for b in beats:
            state = _status(b.pid) or "gone"
            lines.append(f"{b.rank:4} {b.pid:7}  {state:10} {b.step:5}  {b.doing:12} {b.age:12.1f}")
        for b in beats:
            told = stacks.get(b.pid, "no answer: it is stopped, gone, or not yet begun")
            lines.append(f"\nrank {b.rank} (pid {b.pid}):\n{told}")
        return "\n".join(lines)

    def losses(self) -> list[str]:
        """What was lost since the last call, while others went on."""
        losses, self._losses = self._losses, []
        if not self.is_elastic or self.process.poll() is not None:
            return losses
        new = self.failures[self._num_told :]
        self._num_told += len(new)
        return [f"a rank (started as {rank}) {how(status)}" for rank, status in new]

    def evict(self, beat: heartbeat.Beat) -> None:
        """Kills one rank; the others of an elastic job go on."""
        with contextlib.suppress(ProcessLookupError):
            os.kill(beat.pid, signal.SIGKILL)

    def interrupt(self) -> None:
        """Asks every rank to save and stop."""
        for beat in self.living():
            with contextlib.suppress(ProcessLookupError):
                os.kill(beat.pid, signal.SIGTERM)

    def end(self) -> End:
        """How it ended; to be called before `kill`, as it looks at what still lives."""
        left, beats = self._codes(), self.beats()
        step = max((b.step for b in beats), default=0)
        written = {b.pid: errors.DONE for b in beats if b.doing == heartbeat.BASELINE}
        codes = written | left
        wrong = sorted(set(codes.values()) - {errors.DONE})
        if self.is_elastic:  # those that were lost on the way do not count
            is_done = errors.DONE in codes.values()
        else:
            is_done = bool(codes) and not wrong and {b.pid for b in beats} <= codes.keys()
        if self.process.poll() == 0 and is_done:
            return End(errors.DONE, step=step)
        if is_done and written:
            reason = f"{self._lost(left, beats)}; the run is done and written, without its baseline"
            return End(errors.DONE, reason, step)
        if wrong and wrong[0] != errors.LOST_PEER:  # what follows from a cause has a higher code
            return End(wrong[0], step=step)
        return End(errors.LOST_PEER, self._lost(left, beats), step)

    def kill(self) -> None:
        """Ends every process that is left, and forgets the attempt."""
        processes.kill_descendants()
        for reader in self._readers:
            reader.join(5)
        self._folder.cleanup()

    def _lost(self, codes: dict[int, int], beats: list[heartbeat.Beat]) -> str:
        if self._cause:
            return self._cause
        silent = [b for b in beats if b.pid not in codes]
        for beat in silent:
            if _status(beat.pid) == psutil.STATUS_STOPPED:
                return f"{_name(beat)} is stopped (SIGSTOP)"
        places = {b.rank: _name(b) for b in silent}
        alone = [] if self.launcher else [(0, self.process.returncode or 0)]
        for rank, status in self.failures + alone:
            if status and (rank in places or not beats):
                return f"{places.get(rank, f'rank {rank}, starting,')} {how(status)}"
        if silent:
            return f"{_name(silent[0])} left without a word"
        return "a rank lost its peers"

    def _codes(self) -> dict[int, int]:
        lines = self._exits.read_text().splitlines() if self._exits.exists() else []
        return {int(pid): int(code) for pid, code in map(str.split, lines)}

    def _forward(self, source: IO[bytes], sink: IO[str]) -> None:
        for raw in source:
            line = raw.decode(errors="replace")
            left, removed = LEFT.match(line), REMOVED.search(line)
            if removed:
                self._removed.add(int(removed[1]))  # and it had nothing to save
            elif left and int(left[1]) in self._removed:
                self._removed.remove(int(left[1]))
            elif left:
                self._failed_at = self._failed_at or time.monotonic()
                self.failures.append((int(left[1]), int(left[2])))
            elif line.startswith(LOST):
                self._losses.append(line.removeprefix(LOST).strip())
            elif line.startswith(ENDED):
                self._cause = line.removeprefix(ENDED).strip()
            elif not CHATTER.search(line):
                sink.write(OWN_PREFIX.sub("", line, count=1))
                sink.flush()


def _name(beat: heartbeat.Beat) -> str:
    return f"rank {beat.rank} (pid {beat.pid}), {beat.doing} after step {beat.step},"


def how(status: int) -> str:
    """How a process ended, by its exit status, for a person."""
    number = -status if status < 0 else status - 128
    if number in set(signal.Signals):
        return f"was killed by {signal.Signals(number).name}"
    return f"left with exit code {status} before the run was done"


def _progress(beat: heartbeat.Beat) -> tuple[int, bool, float]:
    """Who has read all its micro-batches of a step may wait in the all-reduce for who has not."""
    return beat.step, beat.doing == heartbeat.FINISHING, beat.time


def _status(pid: int) -> str | None:
    try:
        status = psutil.Process(pid).status()
    except psutil.Error:
        return None
    return None if status == psutil.STATUS_ZOMBIE else status
