"""Who runs which micro-batches: integers only, no TensorFlow and no Horovod.

    V = 8 virtual replicas over 3 processes

    micro-batch   0  1  2 | 3  4  5 | 6  7
    rank          0  0  0 | 1  1  1 | 2  2

Runs are contiguous, so that a process owns whole subtrees of the exact sum (`tree.py`).
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass


def share(total: int, parts: int, index: int) -> range:
    """The `index`-th of `parts` contiguous shares of range(total), sizes at most 1 apart."""
    size, longer = divmod(total, parts)
    start = index * size + min(index, longer)
    return range(start, start + size + (index < longer))


def cores(available: Collection[int], parts: int, index: int, most: int = 0) -> list[int]:
    """Those of the `index`-th of `parts` processes; `most` of them, if it is given."""
    every = sorted(available)
    own = [every[i] for i in share(len(every), parts, index)] or every
    return own[: most or None]


def neighbours(environment: Mapping[str, str]) -> tuple[int, int]:
    """An elastic process's place among those of its machine, and how many they may be.

    On one machine each of them has a host name of its own, as Horovod drops a name that failed.
    """
    aliases = environment.get("SCALEPROOF_ADDRESSES", "").split(",")
    name = environment.get("HOROVOD_HOSTNAME", "")
    if name in aliases:
        return aliases.index(name), len(aliases)
    place = int(environment.get("HOROVOD_LOCAL_RANK", 0))
    return place, int(environment.get("HOROVOD_LOCAL_SIZE", 1))


@dataclass(frozen=True)
class Topology:
    """A process among the job's: `size` ranks, `local_size` of them on this machine."""

    rank: int = 0
    size: int = 1
    local_rank: int = 0
    local_size: int = 1

    @property
    def is_chief(self) -> bool:
        """Rank 0 alone speaks and writes what a run leaves."""
        return self.rank == 0

    def micro_batches(self, total: int) -> range:
        """The places, in [0, total), of the micro-batches this process runs each step."""
        return share(total, self.size, self.rank)

    def threads(self, cores: int, devices: int = 1) -> int:
        """TensorFlow threads of each of a process's devices, so that they do not fight."""
        return max(1, cores // (self.local_size * devices))
