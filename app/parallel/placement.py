"""Which blocks are on which device: a stage is a device, a part a contiguous run of blocks.

24 blocks, 4 stages                     the same with 2 chunks a stage

part     0      1      2      3        part   0   1   2   3   4   5   6   7
blocks   0-5    6-11   12-17  18-23    blocks 0-2 3-5 6-8 ...
stage    0      1      2      3        stage  0   1   2   3   0   1   2   3

With tensor parallelism a stage is several devices, each with a shard of each of its blocks.
"""

from __future__ import annotations

import functools
import itertools
import os
import socket
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Any

import tensorflow as tf

from app.errors import UsageError

LOCAL = "/job:localhost/replica:0/task:0"
CHIEF = "/job:chief/replica:0/task:0"  # what it calls this process among parameter servers
Place = Callable[[], AbstractContextManager[Any]]
REACH_SECONDS = 5.0  # for a stage server to take a connection


@dataclass(frozen=True)
class Placement:
    """The cut of a model, and the devices.

    Attributes:
        devices: of each stage, by TensorFlow's names; "" is wherever TensorFlow likes. A stage
            with several has a shard of each block on each.
        sizes: blocks of each part; part p is on stage p modulo the number of stages.
        scope: puts each variable where it belongs, if a block is not all in one place.
    """

    devices: tuple[tuple[str, ...], ...]
    sizes: tuple[int, ...]
    scope: Place | None = None

    @property
    def num_parts(self) -> int:
        """Runs of blocks."""
        return len(self.sizes)

    @classmethod
    def whole(cls, num_blocks: int) -> Placement:
        """All in one place."""
        return cls((("",),), (num_blocks,))

    @property
    def num_shards(self) -> int:
        """Devices of a stage."""
        return len(self.devices[0])

    def runs(self) -> Iterator[tuple[range, tuple[str, ...]]]:
        """The blocks and the devices of each part."""
        starts = itertools.accumulate(self.sizes, initial=0)
        for part, (start, size) in enumerate(zip(starts, self.sizes, strict=False)):
            yield range(start, start + size), self.devices[self.stage(part)]

    def stage(self, part: int) -> int:
        """Where a part is."""
        return part % len(self.devices)

    def each_block(self) -> list[list[Place]]:
        """For each block, where its shards are."""
        return [
            [self.scope or functools.partial(tf.device, device) for device in devices]
            for run, devices in self.runs()
            for _ in run
        ]


def here() -> str:
    """The whole name of this process's CPU, as scopes of tf.device merge."""
    names = [device.name for device in tf.config.list_logical_devices("CPU")]
    is_chief = any(name.startswith(CHIEF) for name in names)
    return f"{CHIEF if is_chief else LOCAL}/device:CPU:0"


def local_devices(count: int) -> list[str]:
    """Devices of this process, as `replicas.join` made them."""
    kind = "GPU" if tf.config.list_logical_devices("GPU") else "CPU"
    return [f"{LOCAL}/device:{kind}:{i}" for i in range(count)] if count > 1 else [""]


@functools.cache  # once a process
def connect(servers: tuple[str, ...], shards: int = 1) -> list[str]:
    """Connects this process to stage servers; returns `shards` devices of each, in order.

    Args:
        servers: host:port of each stage's, in order.
        shards: devices a stage; all of one server, whose devices are near each other.

    Raises:
        UsageError: one that does not answer, or has too few devices.
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
    # One call at a time a thread. A stream of calls does not keep the order of their side effects:
    # beside other work, 2 of 6 runs with --tensor=2 on TensorFlow 2.21.0 ended with another loss.
    os.environ["TF_ENABLE_EAGER_CLIENT_STREAMING_ENQUEUE"] = "False"
    cluster = tf.train.ClusterSpec({"stage": list(servers)})
    tf.config.experimental_connect_to_cluster(cluster)
    devices = tf.config.list_logical_devices()
    found = []
    for task, server in enumerate(servers):
        own = [d for d in devices if d.name.startswith(f"/job:stage/replica:0/task:{task}/")]
        gpus = [d.name for d in own if d.device_type == "GPU"]
        names = gpus or [d.name for d in own if d.device_type == "CPU"]
        if len(names) < shards:
            raise UsageError(
                f"--tensor={shards} needs as many devices of each stage server, but {server} has "
                f"{len(names)}: start it on more GPUs, or without GPUs with --tensor={shards}."
            )
        found += names[:shards]
    return found


def horovods(device: str) -> str:
    """Where Horovod's operators run for a stage: beside it, or here if it is elsewhere."""
    return here() if device.startswith("/job:stage") else device


def fetched(device: str, message: Any) -> Any:
    """A stage's message where the next can take it: from a stage server it is fetched first.

    Two servers that exchange it themselves wait for each other's tasks, and may for ever.
    """
    if horovods(device) == device:
        return message
    with tf.device(here()):
        return tf.nest.map_structure(tf.identity, message)


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
