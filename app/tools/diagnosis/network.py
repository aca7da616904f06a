"""Examines whether ranks can connect: on this machine, and on those that HOSTS names."""

import shutil
import socket
import subprocess
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor

from app.errors import UsageError
from app.launch import hosts as machines
from app.launch import private_network
from app.tools.diagnosis.finding import Finding, failure, ok, problem, warning

SSH = ["ssh", "-o", "BatchMode=yes", "-o", "ConnectTimeout=5"]
SSH_SECONDS = 20  # for a host that accepts the connection and then sends nothing


def local_ranks(np: int, hosts: str) -> int:
    """Returns how many of `np` ranks will be on this machine; all of them if no host is named."""
    try:
        slots = machines.parse(hosts)
    except UsageError:  # `reachable` reports it
        return np
    if all(machines.is_local(name) for name, _ in slots):
        return np
    names = [name for name, number in slots for _ in range(min(np, number))]  # of each rank
    return sum(map(machines.is_local, names[:np]))


def loopback() -> Finding:
    """Examines whether `localhost` is this machine."""
    try:
        addresses = _addresses("localhost")
    except OSError as error:
        addresses, found = [], f"localhost does not resolve ({error.strerror or error})"
    else:
        found = f"localhost is {', '.join(addresses)}"
    if any(address.startswith("127.") for address in addresses):
        return ok("loopback", found)
    return problem("loopback", found, "add the line '127.0.0.1 localhost' to /etc/hosts")


def isolation() -> Finding:
    """Examines whether the ranks of this machine can have a network of their own."""
    if private_network.is_allowed():
        return ok("private network", "allowed: nobody else reaches the ranks of this machine")
    return warning(
        "private network",
        "not allowed (unshare --map-root-user --net): Horovod listens on loopback, where other "
        "users of this machine can reach it",
        "allow user namespaces (sysctl user.max_user_namespaces, kernel.unprivileged_userns_clone, "
        "kernel.apparmor_restrict_unprivileged_userns; in a container its seccomp profile), or "
        "keep others off this machine and give --trusted_network",
    )


def reachable(np: int, hosts: str) -> Iterator[Finding]:
    """Examines whether HOSTS is valid, has slots for `np` ranks, and can be reached."""
    try:
        slots = machines.parse(hosts)
    except UsageError as error:
        yield problem("hosts", str(error), "set HOSTS as a:4,b:4")
        return
    total = sum(number for _, number in slots)
    if slots and total < np:
        found = f"HOSTS={hosts} has {total} slots for {np} processes"
        yield problem("hosts", found, f"set NP={total}, or give more slots")
    others = [name for name, _ in slots if not machines.is_local(name)]
    if not others:
        return
    if not shutil.which(SSH[0]):
        yield problem("hosts", "ssh, which starts ranks there, is not installed", "install OpenSSH")
        return
    with ThreadPoolExecutor(16) as pool:
        problems = list(pool.map(unreachable, others))
    yield from (finding for finding in problems if finding)
    right = [name for name, finding in zip(others, problems, strict=True) if not finding]
    if right:
        yield ok("hosts", f"{', '.join(right)}: the name resolves, ssh answers without a password")


def unreachable(name: str) -> Finding | None:
    """Returns why another machine cannot be reached, or None if it can."""
    try:
        _addresses(name)
    except OSError as error:
        found = f"the name {name} does not resolve ({error.strerror or error})"
        return problem("hosts", found, "fix HOSTS, or add the name to /etc/hosts or DNS")
    fix = f"make `ssh {name} true` work without a prompt"
    try:
        done = subprocess.run(
            [*SSH, "--", name, "true"], capture_output=True, text=True, errors="replace",
            stdin=subprocess.DEVNULL, timeout=SSH_SECONDS,
        )  # fmt: skip
    except subprocess.TimeoutExpired:
        return problem("hosts", f"ssh {name} does not answer in {SSH_SECONDS} s", fix)
    if not done.returncode:
        return None
    if "Host key verification failed" in done.stderr:
        return warning(
            "hosts",
            f"ssh does not know the key of {name}, or knows another; horovodrun accepts a new key "
            "unchecked",
            f"run `ssh {name}` once, and compare the fingerprint that it shows",
        )
    if "Permission denied" in done.stderr:
        fix = f"ssh-copy-id {name}"
    return problem("hosts", f"ssh {name} fails: {failure(done)}", fix)


def _addresses(name: str) -> list[str]:
    try:
        found = socket.getaddrinfo(name, None, socket.AF_INET, socket.SOCK_STREAM)
    except UnicodeError:  # as for a..b
        raise OSError("it is not a host name") from None
    return sorted({str(address[0]) for *_, address in found})
