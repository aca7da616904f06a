"""Seconds of steps, and their medians."""

from __future__ import annotations

import statistics
import time


class Clock:
    """Seconds of each step; the first, which compiles, is left out of the figures."""

    def __init__(self) -> None:
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
        """Median of the last ten steps."""
        return statistics.median(self.steps[1:][-10:] or self.steps)

    def typical(self) -> float:
        """Median of all steps."""
        return statistics.median(self.steps[1:] or self.steps)
