r"""Starts a job, watches it, and starts it again from its newest checkpoint when it breaks.

    start --> watch --> done, or an error that would recur -----------------------> exit code
                |  \--> a rank died, hangs, or differs: kill all, wait, start again
                \-----> SIGTERM: every rank saves and stops; 42

It knows only processes, files and exit codes, and so serves every layout: a checkpoint does not
depend on how many processes or stages wrote it.
"""

import contextlib
import json
import signal
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from types import FrameType
from typing import Any

from app import errors
from app.launch import processes
from app.launch.job import SETTLING_SECONDS, End, Job
from app.recovery import manifest

POLL_SECONDS = 0.2
MAX_BACK_OFF_SECONDS = 10.0
TRANSIENT = (errors.LOST_PEER, errors.DIVERGED)  # codes of errors that need not recur


@dataclass(frozen=True, kw_only=True)
class Limits:
    """The limits at which the supervisor gives up.

    Attributes:
        restarts: restarts in a row without a new checkpoint, before it gives up.
        back_off: seconds before the first restart; doubles while there is no progress.
        hang: seconds without a heartbeat of any rank, before the ranks are killed.
        grace: seconds that ranks have to save and stop.
    """

    restarts: int = 3
    back_off: float = 1.0
    hang: float = 300.0
    grace: float = 30.0


class Supervisor:
    """Runs a job to its end.

    Args:
        make_job: starts an attempt.
        workdir: of the run; its checkpoints show progress, and recovery.jsonl is written there.
        limits: at which it gives up.
    """

    def __init__(self, make_job: Callable[[], Job], workdir: Path, limits: Limits) -> None:
        self.make_job, self.workdir, self.limits = make_job, workdir, limits
        self._stop_time = 0.0  # of the last signal to stop; 0: none came

    def run(self) -> int:
        """Attempts the job until it is done or given up; returns the last exit code."""
        processes.adopt_orphans()
        signal.signal(signal.SIGTERM, self._on_signal)
        signal.signal(signal.SIGINT, self._on_signal)
        num_futile, known = 0, self.newest_checkpoint()
        while True:
            end = self.attempt()
            newest = self.newest_checkpoint()
            num_futile = 0 if newest > known else num_futile
            known = max(known, newest)
            if not self._is_worth_restart(end) or num_futile >= self.limits.restarts:
                return self._conclude(end, num_futile)
            pause = min(self.limits.back_off * 2**num_futile, MAX_BACK_OFF_SECONDS)
            num_futile += 1
            self.report(
                f"{end.reason or 'a rank failed, as shown above'}; all ranks were ended. Restart "
                f"{num_futile} of {self.limits.restarts} without progress, in {pause:.0f} s, from "
                f"{f'step {newest}' if newest else 'the beginning'}."
            )
            self.note("restart", code=end.code, reason=end.reason, step=end.step, newest=newest)
            if self._sleep(pause):
                return errors.PREEMPTED

    def attempt(self) -> End:
        """Starts the job once and waits for its end; leaves no process behind."""
        job = self.make_job()
        try:
            while not job.has_ended():
                time.sleep(POLL_SECONDS)
                if self._stop_time:
                    return self._stop(job)
                for loss in job.losses():
                    self.report(f"{loss}; the others go on.")
                    self.note("loss", reason=loss)
                silence = job.hang(self.limits.hang)
                if silence and not self._evict(job, silence):
                    return self._report_hang(job, silence)
            return job.end()
        finally:
            job.kill()

    def newest_checkpoint(self) -> int:
        """Returns the newest checkpoint's step, or 0; whether it is valid, the ranks find out."""
        with contextlib.suppress(OSError):  # ranks report that too
            return max(manifest.steps(self.workdir / "checkpoints"), default=0)
        return 0

    def note(self, event: str, **values: Any) -> None:
        """Adds a line to recovery.jsonl."""
        if self.workdir.is_dir():
            with (self.workdir / "recovery.jsonl").open("a") as lines:
                lines.write(json.dumps({"event": event, "time": time.time(), **values}) + "\n")

    @staticmethod
    def report(text: str) -> None:
        """Prints a line for the person who started the job."""
        print(f"supervisor: {text}", file=sys.stderr, flush=True)

    def _is_worth_restart(self, end: End) -> bool:
        # A Python error before the first step would recur at once.
        is_broken = end.code in TRANSIENT or (end.code == errors.BUG and end.step > 0)
        return is_broken and not self._stop_time and self.limits.restarts > 0

    def _conclude(self, end: End, num_futile: int) -> int:
        """Reports the end of the job; returns its exit code."""
        if end.reason:
            given_up = f" Given up after {num_futile} restarts." if num_futile else ""
            self.report(f"{end.reason}.{given_up}")
        if end.code != errors.DONE:
            self.note("end", code=end.code, reason=end.reason, step=end.step)
        return end.code

    def _stop(self, job: Job) -> End:
        """Has the ranks write a last checkpoint, and waits for it."""
        begin = self._stop_time
        job.send_signal(signal.SIGTERM, *job.living())
        while time.monotonic() - begin < self.limits.grace and self._stop_time == begin:
            if job.has_ended():
                return job.end()
            time.sleep(POLL_SECONDS / 4)
        return End(
            errors.LOST_PEER,
            f"ranks did not stop in {time.monotonic() - begin:.0f} s and were killed: what came "
            "after the newest checkpoint is lost; --grace_seconds gives more time",
        )

    def _evict(self, job: Job, silence: float) -> bool:
        """Kills the rank of an elastic job that all others wait for; returns whether it did."""
        suspect = job.suspect()
        if not job.is_elastic or suspect is None:
            return False
        self.report(f"rank {suspect.rank} made no progress for {silence:.0f} s and is killed.")
        job.send_signal(signal.SIGKILL, suspect)
        time.sleep(SETTLING_SECONDS)  # until the others have noticed
        return True

    def _report_hang(self, job: Job, silence: float) -> End:
        """Writes the stacks of all ranks to a file; returns the hang as the end of the job."""
        suspect = job.suspect()
        who = f"rank {suspect.rank}" if suspect else "a rank"
        where = f" ({suspect.doing} after step {suspect.step})" if suspect else ""
        self.workdir.mkdir(parents=True, exist_ok=True)
        path = self.workdir / f"hang-{time.strftime('%Y-%m-%d-%H%M%S')}.txt"
        path.write_text(job.report() + "\n")
        step = max((b.step for b in job.beats()), default=0)
        reason = (
            f"no rank made progress for {silence:.0f} s (--hang_seconds); the others wait for "
            f"{who}{where}: the Python stacks of all are in {path}"
        )
        return End(errors.LOST_PEER, reason, step)

    def _sleep(self, seconds: float) -> bool:
        """Waits; returns whether a signal to stop came."""
        end = time.monotonic() + seconds
        while time.monotonic() < end and not self._stop_time:
            time.sleep(POLL_SECONDS / 4)
        return bool(self._stop_time)

    def _on_signal(self, number: int, frame: FrameType | None) -> None:
        self._stop_time = time.monotonic()
