"""Counts the seconds of a run, over all attempts whose work is in its weights.

The counts go into every checkpoint and every commit to memory, and continue from there: steps that
an attempt lost are counted once, when they are done again.
"""

import math
import statistics
import time
from collections import Counter, deque
from collections.abc import Mapping
from typing import Any

WIDTH = math.log(1.01)  # of a class of durations, so that a median is exact to half a percent


class Clock:
    """Counts the seconds of steps, and of everything from the first of them to now.

    An attempt's first step, which compiles, does not count in a step's typical duration. The others
    are kept as a histogram, whose size does not grow with the number of steps.

    Attributes:
        in_bursts: the typical duration is the mean, as many steps can be ready together (a
            parameter server's); otherwise the median, which hiccups do not change.
        training: seconds of all steps.
    """

    def __init__(self) -> None:
        self.in_bursts = False
        self.resume({})

    def resume(self, counted: Mapping[str, Any]) -> None:
        """Continues from the result of `counted`; the clock stands still until `begin`."""
        self.training: float = counted.get("training", 0.0)
        self._cold: float | None = counted.get("cold")
        self._warm: float = counted.get("warm", 0.0)
        self._steps = Counter({int(k): n for k, n in counted.get("steps", {}).items()})
        self._recent: deque[float] = deque(maxlen=10)
        self._is_cold = True
        self._before: float = counted.get("seconds", 0.0)
        self._begin: float | None = None

    def counted(self) -> dict[str, Any]:
        """Returns all counts, for JSON and `resume`."""
        steps = {str(duration): n for duration, n in sorted(self._steps.items())}
        return {
            "seconds": self.seconds, "training": self.training, "cold": self._cold,
            "warm": self._warm, "steps": steps,
        }  # fmt: skip

    def begin(self) -> None:
        """Begins to count."""
        self._begin = time.monotonic()

    @property
    def seconds(self) -> float:
        """Seconds of all attempts."""
        running = 0.0 if self._begin is None else time.monotonic() - self._begin
        return self._before + running

    def start(self) -> None:
        """Marks the begin of a step."""
        self._from = time.monotonic()

    def stop(self) -> None:
        """Marks the end of a step."""
        taken = time.monotonic() - self._from
        self.training += taken
        if self._is_cold:
            self._cold, self._is_cold = taken, False
            return
        self._warm += taken
        self._steps[round(math.log(max(taken, 1e-9)) / WIDTH)] += 1
        self._recent.append(taken)

    def recent(self) -> float | None:
        """Returns the typical duration of the last ten steps; None before the first."""
        average = statistics.fmean if self.in_bursts else statistics.median
        return average(self._recent) if self._recent else self._cold

    def typical(self) -> float | None:
        """Returns the typical duration of the run's steps; None before the first."""
        total = self._steps.total()
        if not total:
            return self._cold
        if self.in_bursts:
            return self._warm / total
        durations = sorted(self._steps.elements())
        return math.exp(statistics.median(durations) * WIDTH)
