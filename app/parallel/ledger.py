"""Records which steps of a parameter-server run have begun and which are applied.

    worker 0  |applied 0|begun 2 ............     bound 3: step 6 may begin when 2 is applied,
    worker 1  |applied 1|applied 3|applied 4|     a worker is at most 3 steps ahead of the slowest

A step is begun once and applied once, whatever happens to the worker that computes it. The
staleness of an update is the number of others that were applied while it was computed.
"""

import itertools
import threading
from collections import Counter
from collections.abc import Sequence


class Ledger:
    """Exact book-keeping of steps; safe to use from several threads.

    Args:
        order: the steps to do, ascending.
        bound: the most steps that one may be ahead of the first that is not applied; None: any.
        furthest: the last step that was applied before; -1: none. Those of `order` that come
            before it were in progress when the run was saved.

    Attributes:
        staleness: the number of updates by their staleness.
    """

    def __init__(self, order: Sequence[int], bound: int | None, furthest: int = -1) -> None:
        self._order, self._place = order, 0  # of the next to begin
        self._furthest = furthest
        self.bound = bound
        self.staleness: Counter[int] = Counter()
        self._begun: dict[int, int] = {}  # step -> updates applied before it began
        self._applied = 0
        self._is_closed = False
        self._changed = threading.Condition()

    def begin(self) -> int | None:
        """Waits until the next step may begin; returns it, or None if none is left."""
        with self._changed:
            self._changed.wait_for(lambda: self._is_closed or self._may())
            if self._is_closed or self._place == len(self._order):
                return None
            step, self._place = self._order[self._place], self._place + 1
            self._begun[step] = self._applied
            return step

    def apply(self, step: int) -> int:
        """Records that a step was applied; returns its staleness.

        Raises:
            KeyError: the step was not begun, or is applied already.
        """
        with self._changed:
            staleness = self._applied - self._begun.pop(step)
            self._applied += 1
            self._furthest = max(self._furthest, step)
            self.staleness[staleness] += 1
            self._changed.notify_all()
            return staleness

    def missing(self) -> list[int]:
        """Returns the steps that are not applied though a later one is, ascending."""
        with self._changed:
            todo = (self._order[i] for i in range(self._place, len(self._order)))
            waiting = itertools.takewhile(lambda step: step < self._furthest, todo)
            return sorted(step for step in self._begun if step < self._furthest) + list(waiting)

    def close(self) -> None:
        """Lets no further step begin."""
        with self._changed:
            self._is_closed = True
            self._changed.notify_all()

    def _may(self) -> bool:
        """Whether the next step may begin, or none is left."""
        if self.bound is None or not self._begun or self._place == len(self._order):
            return True
        return self._order[self._place] - min(self._begun) <= self.bound
