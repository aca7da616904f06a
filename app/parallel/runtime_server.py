"""Runs a process as a server of TensorFlow's own runtime: it executes another process's operators.

Whoever reaches its port can run anything in it, and it listens on every network interface. So it
starts only where no interface but loopback is up, in a private network as of `unshare -r -n`,
unless a flag says that the surrounding network is trusted.
"""

import os
import socket
from collections.abc import Mapping, Sequence

import tensorflow as tf

from app.errors import UsageError
from app.parallel import network, straggler
from app.parallel.cluster import Cluster
from app.reporting import chatter


def require_private_port(task: Cluster, is_trusted: bool) -> None:
    """Checks the port of a parameter-server job's task, its chief included, before it listens.

    Raises:
        UsageError: others could reach it, or the port is taken.
    """
    name = {"ps": "parameter server"}.get(task.job, task.job)
    port = task.address.rpartition(":")[2]
    require_unreachable(int(port), is_trusted, f"{name} of a parameter-server job")


def require_unreachable(port: int, is_trusted: bool, name: str) -> None:
    """Checks a port before anything listens on it.

    Args:
        port: to listen on.
        is_trusted: everyone who can reach this machine may use it.
        name: the kind of server, for the message.

    Raises:
        UsageError: others could reach it, or the port is taken.
    """
    others = network.reachable_interfaces()
    if others and not is_trusted:
        raise UsageError(
            f"a {name} runs code for anyone who reaches it, and {', '.join(others)} can be reached "
            "from outside: start it in a private network (unshare -r -n), or give "
            "--trusted_network if everyone who can reach this machine may use it."
        )
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind(("", port))
        except OSError as error:
            raise UsageError(f"port {port} cannot be used: {error.strerror}.") from None


def join(task: Cluster) -> None:
    """Runs a server or a worker of a parameter-server job until the process is ended.

    Workers on one machine share its cores; a server mostly waits.
    """
    host = task.address.rpartition(":")[0]
    workers = sum(address.startswith(f"{host}:") for address in task.tasks["worker"])
    threads = max(1, len(os.sched_getaffinity(0)) // max(1, workers))
    if task.job == "worker":
        straggler.start(task.index)
    server = serve(task.tasks, task.job, task.index, threads, 1, exact=False)
    with chatter.capture_native_stderr():  # it logs every connection
        server.join()


def lend_devices(port: int, exact: bool, is_trusted: bool, devices: int = 1) -> None:
    """Lends this machine's devices to pipeline stages elsewhere, until the process is ended.

    Args:
        port: to listen on.
        exact: as --exact of the training run, which cannot set it remotely.
        is_trusted: everyone who can reach this machine may use it.
        devices: logical CPU devices; all GPUs are lent.

    Raises:
        UsageError: others could reach it, or the port is taken.
    """
    require_unreachable(port, is_trusted, "stage server")
    threads = 1 if exact else len(os.sched_getaffinity(0))
    server = serve({"stage": [f"localhost:{port}"]}, "stage", 0, threads, devices, exact)
    print(f"stage server on port {port}, {threads} threads{', exact' if exact else ''}", flush=True)
    with chatter.capture_native_stderr():  # it logs every connection
        server.join()


def serve(
    tasks: Mapping[str, Sequence[str]], job: str, index: int, threads: int, devices: int,
    exact: bool,
) -> tf.distribute.Server:  # fmt: skip
    """Starts to listen; returns the server.

    Args:
        tasks: host:port of each task of each job.
        job: of this process.
        index: of this process in its job.
        threads: of an operator.
        devices: logical CPU devices; all GPUs are lent.
        exact: as --exact of the training run, which cannot set it remotely.
    """
    tf.config.threading.set_intra_op_parallelism_threads(threads)
    tf.config.threading.set_inter_op_parallelism_threads(max(2, threads))
    if exact:
        tf.keras.utils.set_random_seed(0)
        tf.config.experimental.enable_op_determinism()
    with chatter.capture_native_stderr():
        cluster = tf.train.ClusterSpec({name: list(addresses) for name, addresses in tasks.items()})
        options = tf.compat.v1.ConfigProto(device_count={"CPU": devices})
        options.gpu_options.allow_growth = True  # another task may be on the same GPU
        return tf.distribute.Server(cluster, job_name=job, task_index=index, config=options)
