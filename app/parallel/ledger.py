"""Which steps of a parameter-server run have begun and which are applied: exact, in one place.

    step      0  1  2  3  4  5  6            staleness bound 3
    worker 0  |applied |  | begun      |     step 6 may begin when step 3 is applied:
    worker 1     |applied|applied|begun      a worker is at most 3 steps ahead of the slowest

A step is begun once and applied once, whatever happens to the worker that computes it. The
staleness of an update is the number of others that were applied while it was computed.
"""

from __future__ import annotations

import threading
from collections import Counter
from collections.abc import Iterable


class Ledger:
    """Counts; safe to use from several threads.

    Args:
        order: the steps to do, ascending.
        bound: most that a step may be ahead of the first one that is not applied; none: any.

    Attributes:
        staleness: how many updates had which.
    """

    def __init__(self, order: Iterable[int], bound: int | None) -> None:
        self._todo = iter(order)
        self._next = next(self._todo, None)
        self.bound = bound
        self.staleness: Counter[int] = Counter()
        self._begun: dict[int, int] = {}  # step -> updates applied before it began
        self._applied = 0
        self._furthest = -1  # step that is applied
        self._is_closed = False
        self._changed = threading.Condition()

    def begin(self) -> int | None:
        """The next step, once it may begin; None if there is none left."""
        with self._changed:
            self._changed.wait_for(lambda: self._is_closed or self._next is None or self._may())
            if self._is_closed or self._next is None:
                return None
            step, self._next = self._next, next(self._todo, None)
            self._begun[step] = self._applied
            return step

    def apply(self, step: int) -> int:
        """Notes that a step was applied; returns its staleness.

        Raises:
            KeyError: it was not begun, or is applied already.
        """
        with self._changed:
            staleness = self._applied - self._begun.pop(step)
            self._applied += 1
            self._furthest = max(self._furthest, step)
            self.staleness[staleness] += 1
            self._changed.notify_all()
            return staleness

    def missing(self) -> list[int]:
        """Steps that are not applied though a later one is, ascending."""
        with self._changed:
            return sorted(step for step in self._begun if step < self._furthest)

    def close(self) -> None:
        """Lets nothing begin any more."""
        with self._changed:
            self._is_closed = True
            self._changed.notify_all()

    def _may(self) -> bool:
        first = min(self._begun, default=self._next)
        assert first is not None and self._next is not None
        return self.bound is None or self._next - first <= self.bound
