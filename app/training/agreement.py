"""Keeps ranks in agreement on errors, on what must be the same, and on signals to any of them."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, TypeVar, cast

import numpy as np

from app import config
from app.errors import DataError, UsageError, UserError
from app.parallel import replicas
from app.training import kernels
from input import InputError
from models import ModelError

Result = TypeVar("Result")
Signals = Mapping[str, Callable[[], bool]]
SAME_INPUTS = "Give all machines the same files, flags and --workdir"


def run_on_all_ranks(action: Callable[[], Result]) -> Result:
    """Runs an action that all ranks run; if it fails on one, it fails on all.

    Raises:
        UserError: on every rank; the first rank that failed prints it.
    """
    result, error = None, None
    try:
        result = action()
    except UserError as caught:
        error = caught
    except InputError as caught:
        error = DataError(str(caught))
    except ModelError as caught:
        error = UsageError(str(caught))
    replicas.raise_on_all_ranks(error)
    return cast(Result, result)


def require_same(name: str, ours: dict[str, Any], way_out: str = SAME_INPUTS) -> None:
    """Checks that all ranks have the same values.

    Raises:
        UsageError: on every rank, if one differs from rank 0; lists every difference.
    """
    ours = config.plain(ours)
    theirs = replicas.broadcast_json(ours)

    def compare() -> None:
        if ours != theirs:
            lines = config.differences(ours, theirs)
            raise UsageError(
                f"this rank has another {name} than rank 0: {'; '.join(lines)}. {way_out}."
            )

    run_on_all_ranks(compare)


def require_same_kernels(exact: bool) -> None:
    """Checks that all ranks compute with the same kernels; with `exact`, for the same processor.

    Raises:
        UsageError: on every rank; lists the differences.
    """
    found = kernels.names()
    if exact:
        way_out = "--exact needs one kind of processor: leave it out, or limit all to the lesser"
        require_same("kind of kernel", found, f"{way_out} ({kernels.LIMITS[0]}=AVX2)")
    else:
        way_out = f"Set {kernels.VARIABLE} to 0 or 1 on all machines"
        require_same("kind of kernel", {"library": found["library"]}, way_out)


def vote(signals: Signals) -> set[str]:
    """Returns the names of the signals that are set on at least one rank.

    One all-reduce, after the step: on a thread of its own beside the step, it took more from the
    arithmetic on the same cores than it saved.

    Args:
        signals: whether each is set on this rank; the same names in the same order on every rank.
    """
    own = np.array([float(is_set()) for is_set in signals.values()])
    votes = replicas.all_reduce_numpy(own, "vote")
    return {name for name, count in zip(signals, votes, strict=True) if count}
