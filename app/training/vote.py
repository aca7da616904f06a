"""What one rank wants of all: asked while a step computes, known at its end, the same everywhere.

    rank 0   ask | step s ................ | result: stop | save, leave
    rank 1   ask | step s ................ | result: stop | leave
             all-reduce of one number a wish, beside the step's own

So it costs no time; what is wanted while a step computes is known after the next one.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from concurrent.futures import Future, ThreadPoolExecutor

import numpy as np

from app.parallel import replicas

Wishes = Mapping[str, Callable[[], bool]]


class Vote:
    """A ballot a step.

    Args:
        wishes: by name, what this rank wants, the same names in the same order on every rank.
        ranks: of the job; one needs no other and decides at the end of the step.
    """

    def __init__(self, wishes: Wishes, ranks: int) -> None:
        self.wishes = wishes
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="vote") if ranks > 1 else None
        self._count: Future[np.ndarray] | None = None

    def ask(self) -> None:
        """Begins a ballot."""
        if self._thread:
            self._count = self._thread.submit(replicas.add_up, self._own(), "vote")

    def result(self) -> set[str]:
        """Names of what at least one rank wanted when it asked."""
        count = self._count.result() if self._count else self._own()
        return {name for name, votes in zip(self.wishes, count, strict=True) if votes}

    def close(self) -> None:
        """Waits for a ballot that nobody will count."""
        if self._thread:
            self._thread.shutdown()

    def _own(self) -> np.ndarray:
        return np.array([float(wish()) for wish in self.wishes.values()])
