r"""Starts a job, watches it, and starts it again from its newest checkpoint when it breaks.

    start --> watch --> done, or an error that would come again ------------------> exit code
                |  \--> a rank died, hangs, or differs: kill all, wait, start again
                \-----> SIGTERM: every rank saves and stops; 42

It knows processes, files and exit codes only, and so serves every layout: the checkpoint does not
know how many processes or stages wrote it.
"""

from __future__ import annotations

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
from app.launch.job import SETTLING, End, Job
from app.recovery import manifest

POLL = 0.2  # seconds
LONGEST_BACK_OFF = 10.0  # seconds
TRANSIENT = (errors.LOST_PEER, errors.DIVERGED)  # what need not come again


@dataclass(frozen=True)
class Limits:
    """When to lose patience.

    Attributes:
        restarts: starts in a row without a new checkpoint, before it is given up.
        back_off: seconds before the first restart; doubles while there is no progress.
        hang: seconds without a beat of any rank.
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
        limits: when to lose patience.
    """

    def __init__(self, make_job: Callable[[], Job], workdir: Path, limits: Limits) -> None:
        self.make_job, self.workdir, self.limits = make_job, workdir, limits
        self._asked = 0.0

    def run(self) -> int:
        """Returns the exit code of the last attempt."""
        processes.adopt_orphans()
        signal.signal(signal.SIGTERM, self._ask)
        signal.signal(signal.SIGINT, self._ask)
        fruitless, known = 0, self.newest_checkpoint()
        while True:
            end = self.attempt()
            newest = self.newest_checkpoint()
            fruitless = 0 if newest > known else fruitless
            known = max(known, newest)
            if not self._is_worth_again(end) or fruitless >= self.limits.restarts:
                return self._last_word(end, fruitless)
            pause = min(self.limits.back_off * 2**fruitless, LONGEST_BACK_OFF)
            fruitless += 1
            self.tell(
                f"{end.reason or 'a rank failed as told above'}; all ranks were ended. Restart "
                f"{fruitless} of {self.limits.restarts} without progress, in {pause:.0f} s, from "
                f"{f'step {newest}' if newest else 'the beginning'}."
            )
            self.note("restart", code=end.code, reason=end.reason, step=end.step, newest=newest)
            if self._sleep(pause):
                return errors.PREEMPTED

    def attempt(self) -> End:
        """One start, to its end; leaves no process behind."""
        job = self.make_job()
        try:
            while not job.has_ended():
                time.sleep(POLL)
                if self._asked:
                    return self._stop(job)
                for loss in job.losses():
                    self.tell(f"{loss}; the others go on.")
                    self.note("loss", reason=loss)
                silence = job.hang(self.limits.hang)
                if silence and not self._is_evicted(job, silence):
                    return self._hung(job, silence)
            return job.end()
        finally:
            job.kill()

    def newest_checkpoint(self) -> int:
        """Its step, 0 if there is none; whether it is valid is the ranks' to find out."""
        with contextlib.suppress(OSError):  # that too, and to say
            return max(manifest.steps(self.workdir / "checkpoints"), default=0)
        return 0

    def note(self, event: str, **values: Any) -> None:
        """A line in recovery.jsonl."""
        if self.workdir.is_dir():
            with (self.workdir / "recovery.jsonl").open("a") as lines:
                lines.write(json.dumps({"event": event, "time": time.time(), **values}) + "\n")

    @staticmethod
    def tell(text: str) -> None:
        """Says a line to the person who started the job."""
        print(f"supervisor: {text}", file=sys.stderr, flush=True)

    def _is_worth_again(self, end: End) -> bool:
        # A Python error before the first step would come again at once.
        is_broken = end.code in TRANSIENT or (end.code == errors.BUG and end.step > 0)
        return is_broken and not self._asked and self.limits.restarts > 0

    def _last_word(self, end: End, fruitless: int) -> int:
        if end.reason:
            given_up = f" Given up after {fruitless} restarts." if fruitless else ""
            self.tell(f"{end.reason}.{given_up}")
        if end.code != errors.DONE:
            self.note("end", code=end.code, reason=end.reason, step=end.step)
        return end.code

    def _stop(self, job: Job) -> End:
        """Asks for a last checkpoint, and waits for it."""
        asked = self._asked
        job.interrupt()
        while time.monotonic() - asked < self.limits.grace and self._asked == asked:
            if job.has_ended():
                return job.end()
            time.sleep(POLL / 4)
        return End(
            errors.LOST_PEER,
            f"asked to stop, but not stopped after {time.monotonic() - asked:.0f} s: killed. What "
            "came after the newest checkpoint is lost; --grace_seconds gives more time",
        )

    def _is_evicted(self, job: Job, silence: float) -> bool:
        """Ends the one rank of an elastic job that all others wait for."""
        suspect = job.suspect()
        if not job.is_elastic or suspect is None:
            return False
        self.tell(f"rank {suspect.rank} did not get on for {silence:.0f} s and is killed.")
        job.evict(suspect)
        time.sleep(SETTLING)  # until the others have noticed
        return True

    def _hung(self, job: Job, silence: float) -> End:
        suspect = job.suspect()
        who = f"rank {suspect.rank}" if suspect else "a rank"
        where = f" ({suspect.doing} after step {suspect.step})" if suspect else ""
        self.workdir.mkdir(parents=True, exist_ok=True)
        path = self.workdir / f"hang-{time.strftime('%Y-%m-%d-%H%M%S')}.txt"
        path.write_text(job.report() + "\n")
        step = max((b.step for b in job.beats()), default=0)
        reason = (
            f"no rank got on for {silence:.0f} s (--hang_seconds); the others wait for "
            f"{who}{where}: the Python stacks of all are in {path}"
        )
        return End(errors.LOST_PEER, reason, step)

    def _sleep(self, seconds: float) -> bool:
        """Waits; returns whether it was asked to stop."""
        end = time.monotonic() + seconds
        while time.monotonic() < end and not self._asked:
            time.sleep(POLL / 4)
        return bool(self._asked)

    def _ask(self, number: int, frame: FrameType | None) -> None:
        self._asked = time.monotonic()
