"""`app stage-server`: lends this machine's devices to stages of pipelines elsewhere.

TensorFlow's own gRPC server: whoever reaches its port can run anything it likes in this
process, and it listens on every network interface. So it starts only where no interface but
loopback is up, in a private network as of `unshare -r -n`, unless told that the network
around it is trusted.
"""

from __future__ import annotations

import os
import socket

import tensorflow as tf

from app.errors import UsageError
from app.recovery import private
from app.reporting import chatter


def main(port: int, exact: bool, is_trusted: bool, devices: int = 1) -> None:
    """Serves until it is ended.

    Args:
        port: to listen on.
        exact: as --exact of the training run, which cannot set it from afar.
        is_trusted: everyone who can reach this machine may use it.
        devices: logical CPU devices; of GPUs all are lent.

    Raises:
        UsageError: it would be open to others, or the port is taken.
    """
    others = private.reachable_interfaces()
    if others and not is_trusted:
        raise UsageError(
            f"a stage server obeys whoever reaches it, and {', '.join(others)} can be reached from "
            "outside: start it in a private network (unshare -r -n), or give --trusted_network if "
            "everyone who can reach this machine may use it."
        )
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind(("", port))
        except OSError as error:
            raise UsageError(f"--port={port} cannot be used: {error.strerror}.") from None
    threads = 1 if exact else len(os.sched_getaffinity(0))
    tf.config.threading.set_intra_op_parallelism_threads(threads)
    tf.config.threading.set_inter_op_parallelism_threads(max(2, threads))
    if exact:
        tf.keras.utils.set_random_seed(0)
        tf.config.experimental.enable_op_determinism()
    with chatter.kept():
        cluster = tf.train.ClusterSpec({"stage": [f"localhost:{port}"]})
        options = tf.compat.v1.ConfigProto(device_count={"CPU": devices})
        server = tf.distribute.Server(cluster, job_name="stage", task_index=0, config=options)
    print(f"stage server on port {port}, {threads} threads{', exact' if exact else ''}", flush=True)
    with chatter.kept():  # it tells of every connection
        server.join()
