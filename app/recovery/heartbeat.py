"""Reports where a rank is, to whoever started the job; on a signal, its threads' stacks too.

<folder>/4242.beat    one line of JSON, overwritten at every beat
<folder>/4242.stacks  the stacks of the rank's threads, written on a signal

The folder is named by the environment; without it nothing is written. A beat is one write to
a file that is open already, some microseconds; a stopped or dead process writes none.
"""

import contextlib
import faulthandler
import json
import os
import signal
import time
from dataclasses import dataclass
from pathlib import Path

FOLDER = "SCALEPROOF_HEARTBEATS"  # environment variable
STACKS = signal.SIGUSR2
LENGTH = 200  # bytes of a beat, padded with spaces
BASELINE = "at the baseline"  # everything else of the run is written
FINISHING = "finishing"  # a step: the last micro-batch is computed, then the others are awaited


@dataclass(frozen=True)
class Beat:
    """Where a rank was at `time` (seconds of this machine's monotonic clock).

    Attributes:
        step: steps done.
        doing: "starting", "reading", "computing", "finishing", "evaluating", "saving", etc.
    """

    pid: int
    rank: int
    step: int
    doing: str
    time: float

    @property
    def age(self) -> float:
        """Seconds since the beat."""
        return time.monotonic() - self.time


class _Writer:
    def __init__(self, folder: str) -> None:
        self.pid, self.rank, self.step = os.getpid(), int(os.environ.get("HOROVOD_RANK", 0)), 0
        self._file = os.open(f"{folder}/{self.pid}.beat", os.O_WRONLY | os.O_CREAT, 0o600)
        stacks = Path(f"{folder}/{self.pid}.stacks")
        self._stacks = stacks.open("w")
        faulthandler.register(STACKS, self._stacks, all_threads=True)

    def write(self, doing: str) -> None:
        beat = [self.pid, self.rank, self.step, doing, time.monotonic()]
        os.pwrite(self._file, json.dumps(beat).ljust(LENGTH).encode(), 0)


_writer: _Writer | None = None


def start() -> None:
    """Begins to beat, if the environment names a folder; once per process."""
    global _writer
    folder = os.environ.get(FOLDER)
    if folder and os.path.isdir(folder) and _writer is None:
        _writer = _Writer(folder)
        _writer.write("starting")


def beat(doing: str, step: int | None = None, rank: int | None = None) -> None:
    """Reports what this process does now; `step` and `rank` hold until others are given."""
    if _writer is None:
        return
    _writer.step = _writer.step if step is None else step
    _writer.rank = _writer.rank if rank is None else rank
    _writer.write(doing)


def read(folder: Path) -> list[Beat]:
    """Returns the last beat of every process that ever beat there, by rank."""
    beats = []
    for path in folder.glob("*.beat"):
        with contextlib.suppress(OSError, ValueError):  # just created
            beats.append(Beat(*json.loads(path.read_text())))
    return sorted(beats, key=lambda b: (b.rank, b.pid))


def stacks(folder: Path, pids: list[int]) -> dict[int, str]:
    """Returns the stacks of living processes' threads, by pid. A stopped one cannot answer."""
    signalled = []
    for pid in pids:
        with contextlib.suppress(OSError):
            os.kill(pid, STACKS)
            signalled.append(pid)
    time.sleep(0.5)  # faulthandler answers at once; the disk may take a moment
    found = {pid: (folder / f"{pid}.stacks").read_text() for pid in signalled}
    return {pid: text.strip() for pid, text in found.items() if text}
