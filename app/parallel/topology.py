"""Assigns micro-batches and cores to processes: integers only, no TensorFlow and no Horovod.

    V = 8 virtual replicas over 3 processes

    micro-batch   0  1  2 | 3  4  5 | 6  7
    rank          0  0  0 | 1  1  1 | 2  2

Runs are contiguous, so that a process owns whole subtrees of the exact sum (`tree.py`).
"""

from collections.abc import Collection, Mapping
from dataclasses import dataclass

ADDRESSES = "SCALEPROOF_ADDRESSES"  # environment variable: of a private network, 127.0.0.1 first


def slice_of(total: int, parts: int, index: int) -> range:
    """Returns the `index`-th of `parts` contiguous slices of range(total), of nearly equal size."""
    size, longer = divmod(total, parts)
    start = index * size + min(index, longer)
    return range(start, start + size + (index < longer))


def cores(available: Collection[int], parts: int, index: int, most: int = 0) -> list[int]:
    """Returns the cores of the `index`-th of `parts` processes; at most `most` if not 0."""
    every = sorted(available)
    own = [every[i] for i in slice_of(len(every), parts, index)] or every
    return own[: most or None]


def bus_bandwidth(processes: int, size: int, seconds: float) -> float:
    """Returns the bytes a second that a ring of processes sends, to sum up `size` bytes of each."""
    return 2 * (processes - 1) / processes * size / seconds


def neighbours(environment: Mapping[str, str]) -> tuple[int, int]:
    """Returns an elastic process's place on its machine, and how many may run there.

    On one machine each has a host name of its own, as Horovod drops a name that failed.
    """
    aliases = environment.get(ADDRESSES, "").split(",")
    name = environment.get("HOROVOD_HOSTNAME", "")
    if name in aliases:
        return aliases.index(name), len(aliases)
    place = int(environment.get("HOROVOD_LOCAL_RANK", 0))
    return place, int(environment.get("HOROVOD_LOCAL_SIZE", 1))


@dataclass(frozen=True)
class Topology:
    """One process's place in a job: `size` ranks, `local_size` of them on this machine."""

    rank: int = 0
    size: int = 1
    local_rank: int = 0
    local_size: int = 1

    @property
    def is_chief(self) -> bool:
        """Whether this is rank 0, the only one that prints and writes a run's files."""
        return self.rank == 0

    def micro_batches(self, total: int) -> range:
        """Returns the places, in [0, total), of the micro-batches this process runs each step."""
        return slice_of(total, self.size, self.rank)

    def threads(self, cores: int, devices: int = 1) -> int:
        """Returns the TensorFlow threads of each device that leave no core to two processes."""
        return max(1, cores // (self.local_size * devices))
