"""Slows a process down, as a shared, hot or old machine would: stops and continues it in turns.

python -m app.parallel.straggler PID FACTOR      until the process that started it ends
"""

import os
import signal
import subprocess
import sys
import time

VARIABLE = "SCALEPROOF_STRAGGLER"  # "1:3": rank or worker 1 takes 3 times as long
PERIOD = 0.06  # seconds of a turn


def start(place: int) -> None:
    """Slows this process down if it is the rank or worker that the environment names."""
    index, _, factor = os.environ.get(VARIABLE, "").partition(":")
    if factor and int(index) == place:
        command = [sys.executable, "-m", "app.parallel.straggler", str(os.getpid()), factor]
        subprocess.Popen(command)


def main(pid: int, factor: float) -> None:
    """Lets a process run for 1 / factor of the time, as long as this process's parent lives.

    No `preexec_fn` ties this process to its parent: a rank has threads when it starts one, and
    Python code between fork and exec may then wait for a lock that no thread is left to release.
    """
    parent = os.getppid()
    while os.getppid() == parent:
        os.kill(pid, signal.SIGSTOP)
        time.sleep(PERIOD * (1 - 1 / factor))
        os.kill(pid, signal.SIGCONT)
        time.sleep(PERIOD / factor)


if __name__ == "__main__":
    main(int(sys.argv[1]), float(sys.argv[2]))
