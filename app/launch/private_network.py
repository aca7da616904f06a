"""Gives a job a network of its own: a loopback interface and nothing else.

Horovod's servers listen on every interface and trust whoever reaches them (CVE-2024-10190,
CVE-2026-31234); TensorFlow's have no authentication. In a network namespace, nobody outside the
job reaches them, not even other users of the machine.
"""

import fcntl
import os
import shutil
import socket
import struct
import subprocess

from app.parallel.topology import ADDRESSES

LINK = "SCALEPROOF_LINK_MBIT"  # environment variable: the rate of its one link
INSIDE = ["unshare", "--map-root-user", "--net", "--"]
SIOCSIFADDR, SIOCGIFFLAGS, SIOCSIFFLAGS = 0x8916, 0x8913, 0x8914
IFF_UP = 1


def is_allowed() -> bool:
    """Returns whether this kernel allows this user a private network (containers often do not)."""
    if not shutil.which(INSIDE[0]):
        return False
    try:
        return subprocess.run([*INSIDE, "true"], capture_output=True, timeout=5).returncode == 0
    except subprocess.TimeoutExpired:
        return False


def enter() -> None:
    """Sets the network up, if this process is the first inside a private one."""
    addresses = os.environ.get(ADDRESSES)
    if addresses:
        bring_up(addresses.split(","))
        if LINK in os.environ:
            shape(float(os.environ[LINK]))


def bring_up(addresses: list[str]) -> None:
    """Starts the loopback interface of a private network, and adds 127.0.0.x addresses to it."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as control:
        request = struct.pack("16sh14x", b"lo", 0)
        (flags,) = struct.unpack_from("h", fcntl.ioctl(control, SIOCGIFFLAGS, request), 16)
        fcntl.ioctl(control, SIOCSIFFLAGS, struct.pack("16sh14x", b"lo", flags | IFF_UP))
        for i, address in enumerate(addresses):
            if address != "127.0.0.1":
                name = f"lo:{i}".encode()
                packed = struct.pack("HH4s8x", socket.AF_INET, 0, socket.inet_aton(address))
                fcntl.ioctl(control, SIOCSIFADDR, struct.pack("16s16s", name, packed))


def shape(mbit: float) -> None:
    """Limits the traffic of a private network, of all processes together, to `mbit` Mbit/s.

    Raises:
        OSError: there is no `tc`, or this kernel has no token bucket filter.
    """
    rule = ["tbf", "rate", f"{mbit}mbit", "burst", "256kb", "latency", "5s"]
    command = ["tc", "qdisc", "replace", "dev", "lo", "root", *rule]
    done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode:
        raise OSError(f"the link cannot be shaped: {done.stderr.strip()}")
