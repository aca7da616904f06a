"""Which blocks are on which device: a stage is a device, a part a contiguous run of blocks.

24 blocks, 4 stages                     the same with 2 chunks a stage

part     0      1      2      3        part   0   1   2   3   4   5   6   7
blocks   0-5    6-11   12-17  18-23    blocks 0-2 3-5 6-8 ...
stage    0      1      2      3        stage  0   1   2   3   0   1   2   3
"""

from __future__ import annotations

import functools
import itertools
import socket
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass

import tensorflow as tf

from app.errors import UsageError

HERE = "/job:localhost/replica:0/task:0/device:CPU:0"  # whole: scopes of tf.device merge
REACH_SECONDS = 5.0  # for a stage server to take a connection


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


@functools.cache  # once a process
def connect(servers: tuple[str, ...]) -> list[str]:
    """Connects this process to stage servers; returns the device of each.

    Args:
        servers: host:port of each stage's, in order.

    Raises:
        UsageError: one that does not answer.
    """
    for server in servers:
        host, _, port = server.rpartition(":")
        try:
            socket.create_connection((host, int(port)), timeout=REACH_SECONDS).close()
        except (OSError, ValueError) as error:
            raise UsageError(
                f"no stage server answers at {server!r} ({error}): start one there with "
                f"`./run.sh stage-server --port={port or '...'}`, or mend --servers."
            ) from None
    cluster = tf.train.ClusterSpec({"stage": list(servers)})
    tf.config.experimental_connect_to_cluster(cluster)
    devices = tf.config.list_logical_devices()
    found = []
    for task in range(len(servers)):
        names = [d.name for d in devices if d.name.startswith(f"/job:stage/replica:0/task:{task}/")]
        found.append(next((n for n in names if "GPU" in n), names[0]))
    return found


def horovods(device: str) -> str:
    """Where Horovod's operators run for a stage: beside it, or here if it is elsewhere."""
    return HERE if device.startswith("/job:stage") else device


def balanced(times: Sequence[float], sizes: Sequence[int], parts: int) -> tuple[int, ...]:
    """Blocks of each part, so that the slowest part is as fast as can be.

    Among cuts that are as fast (to 1 %), the one whose largest part is smallest. No part is
    empty.

    Args:
        times: of each block, in any unit.
        sizes: bytes of each block.
        parts: how many; at most the number of blocks.
    """
    best = _fewest(times, parts)
    slowest = max(sum(times[a:b]) for a, b in itertools.pairwise(best))
    # Second: the smallest largest part among those no slower.
    bounds = _fewest(sizes, parts, lambda a, b: sum(times[a:b]) <= slowest * 1.01)
    return tuple(b - a for a, b in itertools.pairwise(bounds))


def _fewest(
    costs: Sequence[float], parts: int, allowed: Callable[[int, int], bool] = lambda a, b: True
) -> list[int]:
    """Bounds of the cut whose dearest part is cheapest; dynamic programming over the blocks.

    Of the cuts whose every part [a, b) is allowed; none are an empty list.
    """
    count = len(costs)
    sums = list(itertools.accumulate(costs, initial=0.0))
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
