"""A process as a server of TensorFlow's own runtime: it computes what another says.

Whoever reaches its port can run anything in it, and it listens on every network interface. So it
starts only where no interface but loopback is up, in a private network as of `unshare -r -n`,
unless told that the network around it is trusted.
"""

from __future__ import annotations

import os
import socket
from collections.abc import Mapping, Sequence

import tensorflow as tf

from app.errors import UsageError
from app.launch import private_network
from app.parallel import straggler
from app.parallel.cluster import Cluster
from app.reporting import chatter


def must_be_safe(task: Cluster, is_trusted: bool) -> None:
    """Looks before a task of a parameter-server job listens; its chief does so too.

    Raises:
        UsageError: it would be open to others, or the port is taken.
    """
    name = {"ps": "parameter server"}.get(task.job, task.job)
    port = task.address.rpartition(":")[2]
    must_be_unreachable(int(port), is_trusted, f"{name} of a parameter-server job")


def must_be_unreachable(port: int, is_trusted: bool, name: str) -> None:
    """Looks before anything listens.

    Args:
        port: to listen on.
        is_trusted: everyone who can reach this machine may use it.
        name: of the kind of server, for the message.

    Raises:
        UsageError: it would be open to others, or the port is taken.
    """
    others = private_network.reachable_interfaces()
    if others and not is_trusted:
        raise UsageError(
            f"a {name} obeys whoever reaches it, and {', '.join(others)} can be reached from "
            "outside: start it in a private network (unshare -r -n), or give --trusted_network if "
            "everyone who can reach this machine may use it."
        )
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind(("", port))
        except OSError as error:
            raise UsageError(f"port {port} cannot be used: {error.strerror}.") from None


def join(task: Cluster) -> None:
    """A server or a worker of a parameter-server job, until it is ended.

    Workers of one machine share its cores; a server mostly waits.
    """
    host = task.address.rpartition(":")[0]
    beside = sum(address.startswith(f"{host}:") for address in task.tasks["worker"])
    threads = max(1, len(os.sched_getaffinity(0)) // max(1, beside))
    if task.job == "worker":
        straggler.start(task.index)
    server = serve(task.tasks, task.job, task.index, threads, 1, exact=False)
    with chatter.kept():  # it tells of every connection
        server.join()


def serve(
    tasks: Mapping[str, Sequence[str]], job: str, index: int, threads: int, devices: int,
    exact: bool,
) -> tf.distribute.Server:  # fmt: skip
    """Starts to listen.

    Args:
        tasks: host:port of each task of each job.
        job: of this process.
        index: likewise.
        threads: of an operator.
        devices: logical CPU devices; of GPUs all are lent.
        exact: as --exact of the training run, which cannot set it from afar.
    """
    tf.config.threading.set_intra_op_parallelism_threads(threads)
    tf.config.threading.set_inter_op_parallelism_threads(max(2, threads))
    if exact:
        tf.keras.utils.set_random_seed(0)
        tf.config.experimental.enable_op_determinism()
    with chatter.kept():
        cluster = tf.train.ClusterSpec({name: list(addresses) for name, addresses in tasks.items()})
        options = tf.compat.v1.ConfigProto(device_count={"CPU": devices})
        options.gpu_options.allow_growth = True  # another task may be on the same GPU
        return tf.distribute.Server(cluster, job_name=job, task_index=index, config=options)
