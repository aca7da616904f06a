"""Follows the membership of an elastic job, while processes die, leave and join.

Horovod Elastic's driver starts and counts the processes; its state and `run` classes fail on
Keras 3 and swallow errors (`horovod/tensorflow/elastic.py`), so only its notifications are used.
A process enters, works, and leaves together with all others when the set changes; Horovod ends a
process that was removed when it tries to enter again.
"""

import os
import threading

from horovod.runner.elastic.worker import WorkerNotificationManager

from app.launch import horovodrun
from app.parallel import replicas
from app.parallel.topology import Topology


class Membership:
    """One process's place in the job."""

    def __init__(self) -> None:
        if os.environ.get(horovodrun.LOOPBACK):
            horovodrun.listen_on_loopback()
        self._changed = threading.Event()
        self._manager = WorkerNotificationManager()
        self._manager.register_listener(self)

    def enter(self) -> Topology:
        """Waits for the others and joins them; returns this process's place.

        Raises:
            Exception: a peer died meanwhile; `errors.is_lost_peer` recognizes it.
        """
        self._changed.clear()
        topology = replicas.enter()
        self._manager.init()
        return topology

    def leave(self) -> None:
        """Leaves the job until it enters again."""
        replicas.leave()

    def has_changed(self) -> bool:
        """Whether processes may join or were removed; the driver notifies rank 0 only."""
        return self._changed.is_set()

    def on_hosts_updated(self, timestamp: int, result: object) -> None:
        """Called by Horovod, on a thread of its own."""
        self._changed.set()
