"""Connects a parameter-server job's chief to all tasks, and places variables on the servers.

TensorFlow's `ParameterServerStrategy` knows the processes; its `ClusterCoordinator` gives work to
whichever worker is free, and gives it out again if that worker is lost.
"""

import functools
import logging
import os
import socket
import time
from collections.abc import Callable
from typing import Any

import tensorflow as tf

from app.errors import UsageError
from app.parallel import cluster
from app.parallel.placement import Placement
from app.reporting import chatter

REACH_SECONDS = 10.0  # until all tasks accept a connection: they may start when the chief does
Coordinator = Any  # tf.distribute.coordinator.ClusterCoordinator


class GreedyPlacement:
    """Places each variable on the server that holds the fewest bytes, as TensorFlow does.

    Attributes:
        held: bytes on each server.
        count: number of variables.
    """

    def __init__(self, servers: int) -> None:
        self.held, self.count = [0] * servers, 0

    def placement(self, num_blocks: int) -> Placement:
        """Returns the placement of all blocks, their variables on the servers."""
        scope = functools.partial(tf.variable_creator_scope, self.create)
        return Placement(((server(0),),), (num_blocks,), scope)

    def create(self, make: Callable[..., tf.Variable], **arguments: Any) -> tf.Variable:
        """Creates a variable; called by tf.variable_creator_scope."""
        value = arguments.pop("initial_value")
        value = tf.convert_to_tensor(value() if callable(value) else value, arguments["dtype"])
        emptiest = self.held.index(min(self.held))
        self.held[emptiest] += value.shape.num_elements() * value.dtype.size
        self.count += 1
        with tf.device(server(emptiest)):
            return make(initial_value=value, **arguments)


def server(index: int) -> str:
    """Returns the device of a server's weights."""
    return f"/job:ps/replica:0/task:{index}/device:CPU:0"


@functools.cache  # once a process
def coordinator() -> Coordinator:
    """Returns the coordinator of the cluster that the environment describes, whose chief this is.

    The first call, before TensorFlow creates anything, connects this process to all tasks.

    Raises:
        UsageError: a task accepts no connection.
    """
    described = cluster.from_environment()
    assert described is not None
    patience = float(os.environ.get(cluster.PATIENCE, REACH_SECONDS))
    end = time.monotonic() + patience
    for job in ("ps", "worker"):
        for index, address in enumerate(described.tasks[job]):
            _reach(address, f"{job} {index}", end, patience)
    others = {job: list(addresses) for job, addresses in described.tasks.items()}
    resolver = tf.distribute.cluster_resolver.SimpleClusterResolver(
        tf.train.ClusterSpec(others), rpc_layer="grpc", task_type="chief", task_id=0
    )
    logging.getLogger("tensorflow").setLevel(logging.CRITICAL)  # it logs every worker that is lost
    chatter.silence_lost_peers()
    with chatter.capture_native_stderr():
        strategy = tf.distribute.ParameterServerStrategy(resolver)
        return tf.distribute.coordinator.ClusterCoordinator(strategy)


def _reach(address: str, name: str, end: float, patience: float) -> None:
    host, _, port = address.rpartition(":")
    while True:
        try:
            socket.create_connection((host, int(port)), timeout=2).close()
            return
        except OSError as error:
            if time.monotonic() > end:
                raise UsageError(
                    f"{name} does not answer at {address} ({error.strerror or error}) after "
                    f"{patience:.0f} s: start it there with the same command and its own "
                    "TF_CONFIG, or correct the address."
                ) from None
            time.sleep(0.2)
