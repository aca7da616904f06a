"""Seconds of a run, over all attempts whose work is in its weights.

What was counted goes into every checkpoint and every commit to memory, and is gone on from there:
steps that an attempt lost are counted once, as they were done again.
"""

from __future__ import annotations

import math
import statistics
import time
from collections import Counter, deque
from collections.abc import Mapping
from typing import Any

WIDTH = math.log(1.01)  # of a class of durations: what is typical is known to half a percent


class Clock:
    """Seconds of steps, and of everything from the first of them to now.

    A session's first step, which compiles, is left out of what a step takes. Of the others there is
    a count a duration, so that a step costs the same after any number of them.

    Attributes:
        in_bursts: a step takes the mean, as many can be ready together (a parameter server's); else
            the median, as a machine's hiccups are no speed.
        training: seconds of all steps.
    """

    def __init__(self) -> None:
        self.in_bursts = False
        self.resume({})

    def resume(self, counted: Mapping[str, Any]) -> None:
        """Goes on from what was counted somewhere, and stands still until `begin`."""
        self.training: float = counted.get("training", 0.0)
        self._cold: float | None = counted.get("cold")
        self._warm: float = counted.get("warm", 0.0)
        self._steps = Counter({int(k): n for k, n in counted.get("steps", {}).items()})
        self._recent: deque[float] = deque(maxlen=10)
        self._is_cold = True
        self._before: float = counted.get("seconds", 0.0)
        self._begin: float | None = None

    def counted(self) -> dict[str, Any]:
        """All of it, for `resume`, as JSON has it."""
        steps = {str(duration): n for duration, n in sorted(self._steps.items())}
        return {
            "seconds": self.seconds, "training": self.training, "cold": self._cold,
            "warm": self._warm, "steps": steps,
        }  # fmt: skip

    def begin(self) -> None:
        """From now on seconds are counted."""
        self._begin = time.monotonic()

    @property
    def seconds(self) -> float:
        """Of all sessions."""
        running = 0.0 if self._begin is None else time.monotonic() - self._begin
        return self._before + running

    def start(self) -> None:
        """A step begins."""
        self._from = time.monotonic()

    def stop(self) -> None:
        """A step has ended."""
        taken = time.monotonic() - self._from
        self.training += taken
        if self._is_cold:
            self._cold, self._is_cold = taken, False
            return
        self._warm += taken
        self._steps[round(math.log(max(taken, 1e-9)) / WIDTH)] += 1
        self._recent.append(taken)

    def recent(self) -> float | None:
        """What each of the last ten steps took; None before the first."""
        average = statistics.fmean if self.in_bursts else statistics.median
        return average(self._recent) if self._recent else self._cold

    def typical(self) -> float | None:
        """What a step of the run took; None before the first."""
        total = self._steps.total()
        if not total:
            return self._cold
        if self.in_bursts:
            return self._warm / total
        durations = sorted(self._steps.elements())
        return math.exp(statistics.median(durations) * WIDTH)
