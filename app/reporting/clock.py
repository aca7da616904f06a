"""Seconds of steps, and their averages."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Sequence


class Clock:
    """Seconds of each step; the first, which compiles, is left out of the figures.

    Attributes:
        average: the median, as a machine's hiccups are no speed; the mean where steps come in
            bursts (a parameter server's, that were ready together).
    """

    def __init__(self) -> None:
        self.average: Callable[[Sequence[float]], float] = statistics.median
        self.begin = time.monotonic()
        self.steps: list[float] = []
        self._from = 0.0

    def start(self) -> None:
        """A step begins."""
        self._from = time.monotonic()

    def stop(self) -> None:
        """A step has ended."""
        self.steps.append(time.monotonic() - self._from)

    def recent(self) -> float:
        """Of the last ten steps."""
        return self.average(self.steps[1:][-10:] or self.steps)

    def typical(self) -> float:
        """Of all steps."""
        return self.average(self.steps[1:] or self.steps)
