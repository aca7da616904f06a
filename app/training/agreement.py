"""What one rank wants of all, known to all after the same step."""

from __future__ import annotations

from collections.abc import Callable, Mapping

import numpy as np

from app.parallel import replicas

Wishes = Mapping[str, Callable[[], bool]]


def wanted(wishes: Wishes) -> set[str]:
    """Names of what at least one rank wants now; an all-reduce of a number a wish.

    It waits for the step's end, as the loop does: beside the step, on a thread of its own, it
    took more from the arithmetic on the same cores than it saved.

    Args:
        wishes: by name, what this rank wants; the same names in the same order on every rank.
    """
    votes = replicas.add_up(np.array([float(wish()) for wish in wishes.values()]), "vote")
    return {name for name, count in zip(wishes, votes, strict=True) if count}
