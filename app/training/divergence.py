"""Replicas hold the same weights, bit for bit: looked at every so often, and before every save.

A bit that flips in memory, or a rank whose all-reduce went wrong, is silent otherwise. Every rank
checksums every variable (CRC-32 of its bytes); one number a rank is compared, and only where
these differ one a variable, to name it.
"""

from __future__ import annotations

import zlib
from collections import Counter

import numpy as np

from app.errors import DivergedError
from app.parallel import replicas
from app.parallel.topology import Topology
from app.training.state import State


def check(state: State, where: Topology, step: int, is_repaired: bool) -> str | None:
    """Compares all replicas.

    Args:
        state: this rank's.
        where: this rank among the others.
        step: for the message.
        is_repaired: give the ranks that differ the state of the majority, if there is one.

    Returns:
        What was repaired, if anything.

    Raises:
        DivergedError: on every rank; names variables and ranks.
    """
    if where.size == 1:
        return None
    named = sorted(state.named().items())
    own = np.array([zlib.crc32(np.ascontiguousarray(v.numpy()).data) for _, v in named])
    digests = replicas.gather(np.array([zlib.crc32(own.tobytes())]))[:, 0]  # [ranks]
    if len(set(digests)) == 1:
        return None
    (common, votes), *_ = Counter(digests.tolist()).most_common()
    has_majority = votes > where.size / 2
    sane = np.flatnonzero(digests == common)
    each = replicas.gather(own)  # [ranks, variables]
    names = [name for (name, _), column in zip(named, each.T, strict=True) if np.ptp(column)]
    names.sort(key=lambda name: not name.startswith("weights/"))  # slots follow from them
    others = sorted(set(range(where.size)) - set(sane.tolist()))
    who = f"rank {', '.join(map(str, others))}" if has_majority else "the ranks"
    what = (
        f"after step {step} {who} hold{'s' * (has_majority and len(others) == 1)} other values of "
        f"{names[0]}" + (f" and {len(names) - 1} more variables" if len(names) > 1 else "")
    )
    if is_repaired and has_majority:
        replicas.broadcast([v for _, v in named], root=int(sane[0]))
        return f"{what}; repaired from rank {sane[0]}"
    raise DivergedError(
        f"{what}: memory or network of a machine is at fault. Nothing was saved since; continue "
        "from the newest checkpoint"
        + ("" if has_majority else " (with two ranks nobody knows which is right)")
        + "."
    ).on_every_rank(speaker=where.is_chief)
