"""Passes on what a job's processes print, and reads from it which of them were lost."""

import re
import subprocess
import sys
import threading
import time
from typing import IO

# horovodrun's line about a rank that failed.
EXITED = re.compile(r"Process (\d+) exit with status code (\d+)\.")
# How Horovod ends a process that was taken out of an elastic job.
REMOVED = re.compile(r"\[(\d+)\]<stderr>:.*has been removed from elastic job")
# What tfrun prints of processes that are not ranks: lost on the way, or the end of the job.
LOST, ENDED = "scaleproof lost: ", "scaleproof ended: "
# What libraries print before they read a log level, and what horovodrun prints of failures that the
# supervisor reports better.
NOISE = re.compile(
    r"WARNING: All log messages before absl|E0000 .* Unable to register cu"
    r"|Terminating remaining workers after failure|Horovod background loop uncaught exception"
    r"|(^|>:)(Killed|Terminated|Aborted)( \(core dumped\))?$"
    r"|terminate called after throwing an instance"
    r"|^W0000 |Failed to (register|remove) function remotely"
    r"|^This could happen if the remote target has been disconnected"
    r"|^Additional GRPC error information|^:\{\"created\""
)
# Only rank 0 prints for people; in an elastic job it may have been started as another rank.
RANK_PREFIX = re.compile(r"\[0\]<stderr>:|\[\d+\]<stdout>:")


class Output:
    """The output of a job, forwarded by two threads to this process's own streams.

    Args:
        process: the launcher, whose output is piped; one that is not piped is left as it is.

    Attributes:
        failures: (rank, exit status) of each rank that failed, in order of time.
        failed_at: when the first of them did (monotonic seconds); 0 if none did.
        losses: servers and workers that were lost while the job went on.
        cause: what ended the job, if a server or a worker did.
    """

    def __init__(self, process: subprocess.Popen[bytes]) -> None:
        self.failures: list[tuple[int, int]] = []
        self.failed_at = 0.0
        self.losses: list[str] = []
        self.cause = ""
        self._removed: set[int] = set()  # ranks that the driver of an elastic job took out
        streams = [(process.stdout, sys.stdout), (process.stderr, sys.stderr)]
        self._threads = [
            threading.Thread(target=self._forward, args=(source, sink), daemon=True)
            for source, sink in streams
            if source
        ]
        for thread in self._threads:
            thread.start()

    def join(self) -> None:
        """Waits, for some seconds at most, until all that was printed has been read."""
        for thread in self._threads:
            thread.join(5)

    def _forward(self, source: IO[bytes], sink: IO[str]) -> None:
        for raw in source:
            line = raw.decode(errors="replace")
            if not self._take_note(line) and not NOISE.search(line):
                sink.write(RANK_PREFIX.sub("", line, count=1))
                sink.flush()

    def _take_note(self, line: str) -> bool:
        """Returns whether a line is about the processes, and notes what it says."""
        exited, removed = EXITED.match(line), REMOVED.search(line)
        if removed:
            self._removed.add(int(removed[1]))  # it had nothing to save
        elif exited and int(exited[1]) in self._removed:
            self._removed.remove(int(exited[1]))
        elif exited:
            self.failed_at = self.failed_at or time.monotonic()
            self.failures.append((int(exited[1]), int(exited[2])))
        elif line.startswith(LOST):
            self.losses.append(line.removeprefix(LOST).strip())
        elif line.startswith(ENDED):
            self.cause = line.removeprefix(ENDED).strip()
        else:
            return False
        return True
