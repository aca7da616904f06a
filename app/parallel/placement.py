"""Which blocks are on which device: a stage is a device, a part a contiguous run of blocks.

24 blocks, 4 stages                     the same with 2 chunks a stage

part     0      1      2      3        part   0   1   2   3   4   5   6   7
blocks   0-5    6-11   12-17  18-23    blocks 0-2 3-5 6-8 ...
stage    0      1      2      3        stage  0   1   2   3   0   1   2   3
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass

import tensorflow as tf


@dataclass(frozen=True)
class Placement:
    """The cut of a model, and the devices.

    Attributes:
        devices: one a stage, by TensorFlow's names; "" is wherever TensorFlow likes.
        sizes: blocks of each part; part p is on stage p modulo the number of stages.
    """

    devices: tuple[str, ...]
    sizes: tuple[int, ...]

    @property
    def num_parts(self) -> int:
        """Runs of blocks."""
        return len(self.sizes)

    @classmethod
    def whole(cls, num_blocks: int) -> Placement:
        """All in one place."""
        return cls(("",), (num_blocks,))

    def runs(self) -> Iterator[tuple[range, str]]:
        """The blocks and the device of each part."""
        starts = itertools.accumulate(self.sizes, initial=0)
        for part, (start, size) in enumerate(zip(starts, self.sizes, strict=False)):
            yield range(start, start + size), self.devices[self.stage(part)]

    def stage(self, part: int) -> int:
        """Where a part is."""
        return part % len(self.devices)

    def each_block(self) -> list[AbstractContextManager[None]]:
        """For each block, what to enter while it is built."""
        return [tf.device(device) for run, device in self.runs() for _ in run]


def local_devices(stages: int) -> list[str]:
    """A device of this process for each stage, as `replicas.join` made them."""
    kind = "GPU" if tf.config.list_logical_devices("GPU") else "CPU"
    return [f"/device:{kind}:{stage}" for stage in range(stages)] if stages > 1 else [""]


def balanced(times: Sequence[float], sizes: Sequence[int], parts: int) -> tuple[int, ...]:
    """Blocks of each part, so that the slowest part is as fast as can be.

    Among cuts that are as fast (to 1 %), the one whose largest part is smallest. No part is
    empty.

    Args:
        times: of each block, in any unit.
        sizes: bytes of each block.
        parts: how many; at most the number of blocks.
    """
    count = len(times)
    best = _fewest(times, parts)
    slowest = max(sum(times[a:b]) for a, b in itertools.pairwise(best))
    # Second: the smallest largest part among those no slower.
    allowed = slowest * 1.01
    bounds = _fewest(sizes, parts, lambda a, b: sum(times[a:b]) <= allowed) or best
    assert bounds[-1] == count
    return tuple(b - a for a, b in itertools.pairwise(bounds))


def _fewest(costs: Sequence[float], parts: int, is_allowed: object = None) -> list[int]:
    """Bounds of the cut whose dearest part is cheapest; dynamic programming over the blocks."""
    count = len(costs)
    sums = list(itertools.accumulate(costs, initial=0.0))
    allowed = is_allowed if callable(is_allowed) else lambda a, b: True
    # table[b]: (cost, bounds) of the best cut of the first b blocks.
    table: dict[int, tuple[float, list[int]]] = {0: (0.0, [0])}
    for part in range(1, parts + 1):
        table = {
            b: min(
                (max(table[a][0], sums[b] - sums[a]), [*table[a][1], b])
                for a in table
                if a < b and allowed(a, b)
            )
            for b in range(part, count - parts + part + 1)
            if any(a < b and allowed(a, b) for a in table)
        }
    return table[count][1] if count in table else []
