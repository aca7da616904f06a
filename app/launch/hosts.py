"""Reads host names and their slots, from HOSTS or from the output of a discovery script."""

import re
import shutil
import socket
import subprocess

from app.errors import UsageError

Slots = list[tuple[str, int]]  # (host name, processes that it takes)
DISCOVERY_SECONDS = 20


def parse(hosts: str) -> Slots:
    """Returns the hosts of `a:4,b:4`.

    Raises:
        UsageError: the text is not as horovodrun's -H takes it.
    """
    items = [item.strip() for item in hosts.split(",")] if hosts else []
    for item in items:
        if not re.fullmatch(r"[\w.-]+:[1-9][0-9]*", item, re.ASCII):
            raise UsageError(
                f"HOSTS={hosts} must be names with 1 slot or more each, as a:4,b:4, not {item!r}."
            )
    return [(name, int(slots)) for name, _, slots in (item.partition(":") for item in items)]


def discover(script: str) -> Slots:
    """Runs a host discovery script; returns what it prints, a line `name:slots` or `name` a host.

    Raises:
        UsageError: the script cannot be run, or fails.
    """
    path = shutil.which(script)
    if not path:
        raise UsageError(
            f"--host_discovery_script={script} must be an executable file: fix the path, or "
            "chmod +x it."
        )
    try:
        done = subprocess.run(
            [path], capture_output=True, text=True, check=True, timeout=DISCOVERY_SECONDS
        )
    except (OSError, subprocess.SubprocessError) as error:
        raise UsageError(
            f"--host_discovery_script={script} must print host:slots lines, but it fails: {error}."
        ) from None
    lines = [line.strip().partition(":") for line in done.stdout.splitlines() if line.strip()]
    return [(name, int(slots or 1)) for name, _, slots in lines]


def is_local(name: str) -> bool:
    """Returns whether a host is this machine."""
    return name in ("localhost", socket.gethostname()) or name.startswith("127.")
