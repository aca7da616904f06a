"""`app stage-server`: lends this machine's devices to stages of pipelines elsewhere."""

from __future__ import annotations

import os

from app.parallel import runtime_server as serving
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
    serving.must_be_unreachable(port, is_trusted, "stage server")
    threads = 1 if exact else len(os.sched_getaffinity(0))
    server = serving.serve({"stage": [f"localhost:{port}"]}, "stage", 0, threads, devices, exact)
    print(f"stage server on port {port}, {threads} threads{', exact' if exact else ''}", flush=True)
    with chatter.kept():  # it tells of every connection
        server.join()
