"""Runs one attempt of a job: starts its processes, follows them, and says how they ended."""

import contextlib
import os
import signal
import subprocess
import tempfile
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import psutil

from app import errors
from app.launch import processes
from app.launch.output import Output
from app.recovery import heartbeat

EXIT_FILE = "SCALEPROOF_EXIT_FILE"  # environment variable; a line "pid code" of each that exited
SETTLING_SECONDS = 2.0  # for survivors to report what they saw


@dataclass(frozen=True)
class End:
    """The end of a job.

    Attributes:
        code: the exit code of the job, that of the cause (`app.errors`).
        reason: what happened to which rank, for a person; empty if a rank has reported it.
        step: the last step that any rank had done.
    """

    code: int
    reason: str = ""
    step: int = 0


@dataclass
class Job:
    """The processes of one attempt.

    Args:
        command: what each rank runs.
        launcher: the command that starts the ranks, as `horovodrun -np 2`; empty for one process.
        variables: of the ranks' environment, beside this process's own.
        is_elastic: whether it goes on when it loses ranks.
    """

    command: Sequence[str]
    launcher: Sequence[str] = ()
    variables: Mapping[str, str] = field(default_factory=dict)
    is_elastic: bool = False

    def __post_init__(self) -> None:
        self._folder = tempfile.TemporaryDirectory(prefix="scaleproof-")
        self.heartbeats = Path(self._folder.name)
        self._exits = self.heartbeats / "exits"
        self._num_reported = 0  # of the failures
        files = {EXIT_FILE: str(self._exits), heartbeat.FOLDER: str(self.heartbeats)}
        self.started = time.monotonic()
        pipe = subprocess.PIPE if self.launcher else None
        self.process = processes.start(
            [*self.launcher, *self.command], {**self.variables, **files}, start_new_session=True,
            stdout=pipe, stderr=pipe,
        )  # fmt: skip
        self.output = Output(self.process)

    def beats(self) -> list[heartbeat.Beat]:
        """Returns where each rank was last seen."""
        return heartbeat.read(self.heartbeats)

    def living(self) -> list[heartbeat.Beat]:
        """Returns the beats of living ranks; a pid may be another program's by now."""
        own = processes.descendants()
        return [beat for beat in self.beats() if beat.pid in own]

    def has_ended(self) -> bool:
        """Returns whether all is over, or a rank failed and the others had time to report it."""
        if self.process.poll() is not None:
            return True
        has_settled = time.monotonic() - self.output.failed_at > SETTLING_SECONDS
        return bool(self.output.failures) and not self.is_elastic and has_settled

    def hang(self, seconds: float) -> float:
        """Returns for how long no rank has made progress, if for more than `seconds`; else 0."""
        ages = [beat.age for beat in self.beats()] or [time.monotonic() - self.started]
        return min(ages) if min(ages) > seconds else 0.0

    def suspect(self) -> heartbeat.Beat | None:
        """Returns the rank that the others wait for: a stopped one, or the furthest behind."""
        beats = self.living()
        stopped = [b for b in beats if processes.status(b.pid) == psutil.STATUS_STOPPED]
        return min(stopped or beats, key=_progress, default=None)

    def report(self) -> str:
        """Returns where each rank is, and the Python stacks of all that can still answer."""
        beats = self.beats()
        stacks = heartbeat.stacks(self.heartbeats, [b.pid for b in self.living()])
        lines = ["rank     pid  process     step  doing         seconds ago"]
        for b in beats:
            state = processes.status(b.pid) or "gone"
            lines.append(f"{b.rank:4} {b.pid:7}  {state:10} {b.step:5}  {b.doing:12} {b.age:12.1f}")
        for b in beats:
            stack = stacks.get(b.pid, "no answer: it is stopped, gone, or has not begun")
            lines.append(f"\nrank {b.rank} (pid {b.pid}):\n{stack}")
        return "\n".join(lines)

    def losses(self) -> list[str]:
        """Returns what was lost since the last call, while others went on."""
        losses, self.output.losses = self.output.losses, []
        if not self.is_elastic or self.process.poll() is not None:
            return losses
        new = self.output.failures[self._num_reported :]
        self._num_reported += len(new)
        return [f"a rank (started as {rank}) {describe_exit(status)}" for rank, status in new]

    def send_signal(self, number: signal.Signals, *beats: heartbeat.Beat) -> None:
        """Sends ranks a signal: SIGTERM to save and stop, SIGKILL to be lost to the others."""
        for beat in beats:
            with contextlib.suppress(ProcessLookupError):
                os.kill(beat.pid, number)

    def end(self) -> End:
        """Returns how the job ended; call it before `kill`, as it looks at what still lives."""
        exited, beats = self._exit_codes(), self.beats()
        step = max((b.step for b in beats), default=0)
        written = {b.pid: errors.DONE for b in beats if b.doing == heartbeat.BASELINE}
        codes = written | exited
        wrong = sorted(set(codes.values()) - {errors.DONE})
        if self.is_elastic:  # ranks that were lost on the way do not count
            is_done = errors.DONE in codes.values()
        else:
            is_done = bool(codes) and not wrong and {b.pid for b in beats} <= codes.keys()
        if self.process.poll() == 0 and is_done:
            return End(errors.DONE, step=step)
        if is_done and written:
            reason = (
                f"{self._lost(exited, beats)}; the run is done and written, without its baseline"
            )
            return End(errors.DONE, reason, step)
        if wrong and wrong[0] != errors.LOST_PEER:  # codes of consequences are higher
            return End(wrong[0], step=step)
        return End(errors.LOST_PEER, self._lost(exited, beats), step)

    def kill(self) -> None:
        """Ends every process that is left, and removes the files of the attempt."""
        processes.kill_descendants()
        self.output.join()
        self._folder.cleanup()

    def _lost(self, codes: dict[int, int], beats: list[heartbeat.Beat]) -> str:
        """Returns which process was lost and how, for a person."""
        if self.output.cause:
            return self.output.cause
        silent = [b for b in beats if b.pid not in codes]
        for beat in silent:
            if processes.status(beat.pid) == psutil.STATUS_STOPPED:
                return f"{_name(beat)} is stopped (SIGSTOP)"
        names = {b.rank: _name(b) for b in silent}
        single = [] if self.launcher else [(0, self.process.returncode or 0)]
        for rank, status in self.output.failures + single:
            if status and (rank in names or not beats):
                return f"{names.get(rank, f'rank {rank}, starting,')} {describe_exit(status)}"
        if silent:
            return f"{_name(silent[0])} exited without an error message"
        return "a rank lost its peers"

    def _exit_codes(self) -> dict[int, int]:
        lines = self._exits.read_text().splitlines() if self._exits.exists() else []
        return {int(pid): int(code) for pid, code in map(str.split, lines)}


def _name(beat: heartbeat.Beat) -> str:
    return f"rank {beat.rank} (pid {beat.pid}), {beat.doing} after step {beat.step},"


def describe_exit(status: int) -> str:
    """Returns in words how a process with this exit status ended."""
    number = -status if status < 0 else status - 128
    if number in set(signal.Signals):
        return f"was killed by {signal.Signals(number).name}"
    return f"exited with code {status} before the run was done"


def _progress(beat: heartbeat.Beat) -> tuple[int, bool, float]:
    """Orders ranks; one that finishes a step may wait in the all-reduce for one that does not."""
    return beat.step, beat.doing == heartbeat.FINISHING, beat.time
