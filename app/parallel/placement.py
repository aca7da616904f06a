"""Places blocks on devices: a stage is a device, a part is a contiguous run of blocks.

24 blocks, 4 stages                     the same with 2 chunks a stage

part     0      1      2      3        part   0   1   2   3   4   5   6   7
blocks   0-5    6-11   12-17  18-23    blocks 0-2 3-5 6-8 ...
stage    0      1      2      3        stage  0   1   2   3   0   1   2   3

With tensor parallelism a stage is several devices, each with a shard of each of its blocks.
"""

import functools
import itertools
import os
import socket
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Any, Self

import tensorflow as tf

from app.errors import UsageError

LOCAL = "/job:localhost/replica:0/task:0"
CHIEF = "/job:chief/replica:0/task:0"  # this process in a parameter-server job
Place = Callable[[], AbstractContextManager[Any]]
REACH_SECONDS = 5.0  # for a stage server to take a connection


@dataclass(frozen=True)
class Placement:
    """The cut of a model, and the devices.

    Attributes:
        devices: of each stage, by TensorFlow's names; "" leaves the choice to TensorFlow. A stage
            with several devices has a shard of each block on each.
        sizes: blocks of each part; part p is on stage p modulo the number of stages.
        scope: places each variable, where a block is not all on one device.
    """

    devices: tuple[tuple[str, ...], ...]
    sizes: tuple[int, ...]
    scope: Place | None = None

    @classmethod
    def whole(cls, num_blocks: int) -> Self:
        """Places all blocks on one device of TensorFlow's choice."""
        return cls((("",),), (num_blocks,))

    @property
    def num_shards(self) -> int:
        """The number of devices of a stage."""
        return len(self.devices[0])

    def runs(self) -> Iterator[tuple[range, tuple[str, ...]]]:
        """Yields the blocks and the devices of each part."""
        starts = itertools.accumulate(self.sizes, initial=0)
        for part, (start, size) in enumerate(zip(starts, self.sizes, strict=False)):
            yield range(start, start + size), self.devices[self.stage(part)]

    def stage(self, part: int) -> int:
        """Returns the stage of a part."""
        return part % len(self.devices)

    def each_block(self) -> list[list[Place]]:
        """Returns for each block the places of its shards."""
        return [
            [self.scope or functools.partial(tf.device, device) for device in devices]
            for run, devices in self.runs()
            for _ in run
        ]


def host_device() -> str:
    """Returns the full name of this process's CPU: a short one would merge with outer scopes."""
    names = [device.name for device in tf.config.list_logical_devices("CPU")]
    is_chief = any(name.startswith(CHIEF) for name in names)
    return f"{CHIEF if is_chief else LOCAL}/device:CPU:0"


def local_devices(count: int) -> list[str]:
    """Returns the devices of this process, as `replicas.join` made them."""
    kind = "GPU" if tf.config.list_logical_devices("GPU") else "CPU"
    return [f"{LOCAL}/device:{kind}:{i}" for i in range(count)] if count > 1 else [""]


@functools.cache  # once a process
def connect(servers: tuple[str, ...], shards: int = 1) -> list[str]:
    """Connects this process to stage servers; returns `shards` devices of each, in order.

    Args:
        servers: host:port of each stage's, in order.
        shards: devices per stage; all of one server, whose devices are near each other.

    Raises:
        UsageError: a server does not answer, or has too few devices.
    """
    for server in servers:
        host, _, port = server.rpartition(":")
        try:
            socket.create_connection((host, int(port)), timeout=REACH_SECONDS).close()
        except (OSError, ValueError) as error:
            raise UsageError(
                f"no stage server answers at {server!r} ({error}): start one there with "
                f"`./run.sh stage-server --port={port or '...'}`, or correct --servers."
            ) from None
    # One call at a time per thread: a stream of calls does not keep the order of side effects.
    # On a busy machine, 2 of 6 runs with --tensor=2 on TensorFlow 2.21.0 ended with another loss.
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


def collective_device(device: str) -> str:
    """Returns where a stage's collectives run: on its device, or on the host for a stage server."""
    return host_device() if device.startswith("/job:stage") else device


def to_host(device: str, message: Any) -> Any:
    """Copies a stage server's message to the host, where the next stage can take it.

    Two servers that exchange it directly wait for each other's tasks, possibly for ever.
    """
    if collective_device(device) == device:
        return message
    with tf.device(host_device()):
        return tf.nest.map_structure(tf.identity, message)


def balanced(times: Sequence[float], sizes: Sequence[int], parts: int) -> tuple[int, ...]:
    """Returns the number of blocks of each part that makes the slowest part fastest.

    Among cuts that are equally fast (to 1 %), takes the one whose largest part is smallest. No
    part is empty.

    Args:
        times: of each block, in any unit.
        sizes: bytes of each block.
        parts: their number; at most the number of blocks.
    """
    best = _fewest(times, parts)
    slowest = max(sum(times[a:b]) for a, b in itertools.pairwise(best))
    # Second: the smallest largest part among those no slower.
    bounds = _fewest(sizes, parts, lambda a, b: sum(times[a:b]) <= slowest * 1.01)
    return tuple(b - a for a, b in itertools.pairwise(bounds))


def _fewest(
    costs: Sequence[float], parts: int, allowed: Callable[[int, int], bool] = lambda a, b: True
) -> list[int]:
    """Returns the bounds of the cut whose dearest part is cheapest; [] if none is allowed.

    Dynamic programming over the blocks; a cut is allowed if each of its parts [a, b) is.
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
