"""Looks at this process's network interfaces."""

import os

import psutil

from app.parallel.topology import ADDRESSES


def bytes_sent() -> int:
    """Returns the bytes sent between the processes of a private network; 0 outside of one."""
    return int(psutil.net_io_counters().bytes_sent) if ADDRESSES in os.environ else 0


def reachable_interfaces() -> list[str]:
    """Returns the network interfaces of this process that are up, except loopback."""
    return [n for n, state in psutil.net_if_stats().items() if state.isup and n != "lo"]
