"""Whether ranks can meet: on this machine, and on those that HOSTS names."""

from __future__ import annotations

import shutil
import socket
import subprocess
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor

from app.errors import UsageError
from app.launch import hosts as machines
from app.launch import private_network
from app.tools.diagnosis.finding import Finding, ok, problem, warning

SSH = ["ssh", "-o", "BatchMode=yes", "-o", "ConnectTimeout=5"]
SSH_SECONDS = 20  # a host that lets connect and then says nothing


def here(np: int, hosts: str) -> int:
    """How many of `np` ranks will be on this machine; all of them if no host is named."""
    try:
        slots = machines.parse(hosts)
    except UsageError:  # `reachable` tells
        return np
    if all(machines.is_local(name) for name, _ in slots):
        return np
    local, left = 0, np
    for name, number in slots:
        taken = min(left, number)
        left -= taken
        local += taken if machines.is_local(name) else 0
    return local


def loopback() -> Finding:
    """Whether `localhost` is this machine."""
    try:
        addresses = _addresses("localhost")
    except OSError as error:
        addresses, told = [], f"localhost does not resolve ({error.strerror or error})"
    else:
        told = f"localhost is {', '.join(addresses)}"
    if any(address.startswith("127.") for address in addresses):
        return ok("loopback", told)
    return problem("loopback", told, "add the line '127.0.0.1 localhost' to /etc/hosts")


def isolation() -> Finding:
    """Whether the ranks of this machine can have a network of their own."""
    if private_network.is_allowed():
        return ok("private network", "allowed: nobody else reaches the ranks of this machine")
    return warning(
        "private network",
        "not allowed here (unshare --map-root-user --net): Horovod listens on loopback, where "
        "other users of this machine can reach it",
        "allow user namespaces (sysctl user.max_user_namespaces, kernel.unprivileged_userns_clone, "
        "kernel.apparmor_restrict_unprivileged_userns; in a container its seccomp profile), or let "
        "nobody else onto this machine and give --trusted_network",
    )


def reachable(np: int, hosts: str) -> Iterator[Finding]:
    """Whether HOSTS can be read, has room for `np` ranks, and each name in it can be reached."""
    try:
        slots = machines.parse(hosts)
    except UsageError as error:
        yield problem("hosts", str(error), "set HOSTS as a:4,b:4")
        return
    room = sum(number for _, number in slots)
    if slots and room < np:
        told = f"HOSTS={hosts} has {room} slots for {np} processes"
        yield problem("hosts", told, f"set NP={room}, or give more slots")
    others = [name for name, _ in slots if not machines.is_local(name)]
    if not others:
        return
    if not shutil.which(SSH[0]):
        yield problem("hosts", "ssh, which starts ranks there, is not installed", "install OpenSSH")
        return
    with ThreadPoolExecutor(16) as pool:
        found = list(pool.map(machine, others))
    yield from (finding for finding in found if finding)
    right = [name for name, finding in zip(others, found, strict=True) if not finding]
    if right:
        yield ok("hosts", f"{', '.join(right)}: the name resolves, ssh answers without a password")


def machine(name: str) -> Finding | None:
    """What is wrong with another machine, if anything."""
    try:
        _addresses(name)
    except OSError as error:
        told = f"the name {name} does not resolve ({error.strerror or error})"
        return problem("hosts", told, "mend HOSTS, or add it to /etc/hosts or DNS")
    by_hand = f"make `ssh {name} true` work without a question"
    try:
        done = subprocess.run(
            [*SSH, "--", name, "true"], capture_output=True, text=True, errors="replace",
            stdin=subprocess.DEVNULL, timeout=SSH_SECONDS,
        )  # fmt: skip
    except subprocess.TimeoutExpired:
        told = f"ssh {name} does not answer in {SSH_SECONDS} s"
        return problem("hosts", told, by_hand)
    if not done.returncode:
        return None
    lines = [line.strip() for line in done.stderr.splitlines() if line.strip()]
    cause = lines[-1] if lines else f"exit code {done.returncode}"
    if "Host key verification failed" in done.stderr:
        return warning(
            "hosts",
            f"ssh does not know the key of {name}, or another one; horovodrun takes a new one "
            "unseen",
            f"call `ssh {name}` once, and compare the fingerprint that it shows",
        )
    if "Permission denied" in done.stderr:
        by_hand = f"ssh-copy-id {name}"
    return problem("hosts", f"ssh {name} fails: {cause}", by_hand)


def _addresses(name: str) -> list[str]:
    try:
        found = socket.getaddrinfo(name, None, socket.AF_INET, socket.SOCK_STREAM)
    except UnicodeError:  # of a..b
        raise OSError("it is no host name") from None
    return sorted({str(address[0]) for *_, address in found})
