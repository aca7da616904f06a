"""Checks that replicas hold the same weights, bit for bit, now and then and before every save.

A bit that flips in memory, or an operator that adds in another order on another rank, would go
unnoticed. Every rank computes a checksum of every variable (CRC-32 of its bytes). One number per
rank is compared; only if these differ, one per variable, and then the values, to describe them.
"""

from __future__ import annotations

import zlib
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import tensorflow as tf

from app.errors import DivergedError
from app.parallel import replicas
from app.parallel.placement import host_device
from app.parallel.sharded import Weight
from app.parallel.topology import Topology
from app.training.state import State

MEASURED = 5  # variables whose values are compared; the others are only counted
ROUNDING = 2.0**-10  # of a variable's largest number: a larger difference is no rounding
WAYS_OUT = {
    "rounding": (
        "It looks like rounding: an operator that every rank runs for itself gave other last bits "
        "on one of them. If the model or the optimizer has operators of your own, one of them is "
        "not deterministic, or depends on the number of threads; if all are this project's, please "
        "report it with this message and config.json"
    ),
    "damage": (
        "It looks like damage, as from a bit that flips in a machine's memory or on its network: "
        "look at the memory errors that its kernel has logged, and leave it out if it happens again"
    ),
}


@dataclass(frozen=True)
class Difference:
    """How far apart the ranks are in one variable.

    Attributes:
        name: of the variable.
        size: number of its elements.
        elements: how many differ, on the rank where most do.
        ulps: largest difference, in units in the last place.
        is_large: some element differs by more than rounding explains.
    """

    name: str
    size: int
    elements: int
    ulps: int
    is_large: bool

    def __str__(self) -> str:
        units = f"{self.ulps:,} unit{'s' * (self.ulps != 1)} in the last place"
        return f"{self.name} ({self.elements:,} of {self.size:,} elements, by at most {units})"


def check(state: State, topology: Topology, step: int, is_repaired: bool) -> str | None:
    """Compares all replicas.

    Args:
        state: of this rank.
        topology: this rank among the others.
        step: for the message.
        is_repaired: give the ranks that differ the state of the majority, if there is one.

    Returns:
        A message on what was repaired, if anything.

    Raises:
        DivergedError: on every rank; the message names variables and ranks.
    """
    if topology.size == 1:
        return None
    variables = sorted(state.state_dict().items())
    own = np.array([zlib.crc32(np.ascontiguousarray(v.numpy()).data) for _, v in variables])
    digests = replicas.all_gather_integers(np.array([zlib.crc32(own.tobytes())]))[:, 0]  # [ranks]
    if len(set(digests)) == 1:
        return None
    (common, votes), *_ = Counter(digests.tolist()).most_common()
    has_majority = votes > topology.size / 2
    sane = np.flatnonzero(digests == common)
    each = replicas.all_gather_integers(own)  # [ranks, variables]
    differing = [pair for pair, column in zip(variables, each.T, strict=True) if np.ptp(column)]
    differing.sort(key=lambda pair: not pair[0].startswith("weights/"))  # slots follow from weights
    differences = [measure(name, v, int(sane[0])) for name, v in differing[:MEASURED]]
    others = sorted(set(range(topology.size)) - set(sane.tolist()))
    who = f"rank {', '.join(map(str, others))}" if has_majority else "the ranks"
    more = len(differing) - len(differences)
    what = (
        f"after step {step} {who} hold{'s' * (has_majority and len(others) == 1)} other values of "
        + ", ".join(map(str, differences))
        + f" and {more} more variables" * (more > 0)
    )
    if is_repaired and has_majority:
        replicas.broadcast([v for _, v in variables], root=int(sane[0]))
        return f"{what}; repaired from rank {sane[0]}. {WAYS_OUT[kind(differences)]}"
    unknown = "" if has_majority else " (which rank is right, nobody knows without a majority)"
    raise DivergedError(
        f"{what}. {WAYS_OUT[kind(differences)]}. Nothing was saved since the ranks last agreed; "
        f"continue from the newest checkpoint{unknown}."
    ).on_every_rank(speaker=topology.is_chief)


def measure(name: str, variable: Weight, root: int) -> Difference:
    """Compares a variable with that of rank `root`; returns the same on every rank."""
    with tf.device(host_device()):
        copy = tf.Variable(variable.numpy(), trainable=False)
    own = copy.numpy()
    replicas.broadcast([copy], root)
    found = replicas.all_gather_integers(np.array(_apart(own, copy.numpy())))  # [ranks, 3]
    elements, ulps, is_large = found.max(0).tolist()
    return Difference(name, int(own.size), elements, ulps, bool(is_large))


def kind(differences: Sequence[Difference]) -> str:
    """Returns "damage" for a large difference or a single element of each weight, or "rounding"."""
    weights = [d for d in differences if d.name.startswith("weights/")] or differences
    is_single = all(d.elements == 1 < d.size for d in weights)
    return "damage" if is_single or any(d.is_large for d in differences) else "rounding"


def _apart(a: np.ndarray, b: np.ndarray) -> tuple[int, int, int]:
    """Returns how many elements differ, by at most how many units in the last place, if by much."""
    whole = np.dtype(f"i{a.dtype.itemsize}")
    x, y = np.ravel(a).view(whole), np.ravel(b).view(whole)
    elements = int(np.count_nonzero(x != y))
    is_float = a.dtype.kind == "f"
    if is_float:  # bits of floats in the order of their values
        x, y = (np.where(bits < 0, np.iinfo(whole).min - bits, bits) for bits in (x, y))
    ulps = np.abs(x.astype(np.float64) - y.astype(np.float64))
    difference = np.abs(a.astype(np.float64) - b.astype(np.float64))
    limit = ROUNDING * np.abs(b.astype(np.float64)).max(initial=0) if is_float else 0
    is_large = not np.all(difference <= limit)  # what is not a number is none
    return elements, int(ulps.max(initial=0)), int(is_large)
