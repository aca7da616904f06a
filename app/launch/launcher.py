"""Implements `launch COMMAND`: starts the ranks of a job on NP processes, and supervises them."""

import os
import shlex
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from absl.flags import FlagValues

from app.cli import selection, workdir
from app.errors import UsageError
from app.launch import hosts as machines
from app.launch import private_network
from app.launch.job import Job
from app.launch.supervisor import Limits, Supervisor


def processes() -> int:
    """Returns NP, 2 if it is not given."""
    text = os.environ.get("NP", "2")
    if not text.isdecimal() or not int(text):
        raise UsageError(f"NP must be a number of processes, at least 1, not {text!r}.")
    return int(text)


@dataclass(frozen=True)
class Start:
    """The way in which the ranks of a job are started.

    Attributes:
        processes: ranks.
        hosts: names and slots, as `a:4,b:4`; empty for this machine.
        is_trusted: whether only trusted people reach the ports of the machines.
        max_processes: ranks that an elastic job may grow to; 0 for a job of a fixed number.
        discovery_script: prints the hosts of an elastic job.
    """

    processes: int
    hosts: str = ""
    is_trusted: bool = False
    max_processes: int = 0
    discovery_script: str | None = None

    @property
    def is_elastic(self) -> bool:
        """Whether ranks may come and go."""
        return self.max_processes > 0


def start(flags: FlagValues) -> Start:
    """Returns how ranks are to be started, from the flags, NP and HOSTS."""
    np, limit, script = processes(), 0, None
    if "elastic" in flags and flags.elastic:
        script = flags.host_discovery_script
        limit = selection.experiment(flags).num_micro_batches if script else np  # one a rank
    return Start(np, os.environ.get("HOSTS", ""), flags.trusted_network, limit, script)


def run(flags: FlagValues, command: list[str], folder: Path | None = None) -> int:
    """Runs the ranks of a checked command, without restarts; returns its exit code."""
    name = folder or flags.workdir or workdir.named(selection.reference(flags))
    limits = Limits(restarts=0, hang=float("inf"), grace=flags.grace_seconds)
    attempt = starter(flags)
    return Supervisor(lambda: attempt(command), Path(name), limits).run()


def starter(flags: FlagValues, servers: int = 0) -> Callable[[list[str]], Job]:
    """Returns a function that starts a command on the processes that the flags describe.

    Args:
        flags: of the command.
        servers: processes that hold weights; 0 for a job without.

    Raises:
        UsageError: the processes cannot be started so.
    """
    # A rank shows its progress on this terminal.
    variables = {"SCALEPROOF_TERMINAL": os.ttyname(2)} if sys.stderr.isatty() else {}
    how = start(flags)
    launcher = parameter_server(how, servers, variables) if servers else ranks(how, variables)
    return lambda command: Job(command, launcher, variables, how.is_elastic)


def ranks(start: Start, variables: dict[str, str]) -> list[str]:
    """Returns the launcher of ranks, empty for one rank; adds to `variables` what it needs.

    Ranks of one machine get a private network, if the kernel allows one.

    Raises:
        UsageError: the hosts have too few slots; there are other machines and the network is not
            declared as trusted; an elastic job has too few host names.
    """
    slots = machines.parse(start.hosts)
    if slots and start.processes > sum(n for _, n in slots):
        raise UsageError(
            f"NP={start.processes} processes need as many slots, but HOSTS={start.hosts} has "
            f"{sum(n for _, n in slots)}: set a smaller NP, or name more slots."
        )
    script = start.discovery_script
    named = slots + (machines.discover(script) if script else [])
    others = sorted({name for name, _ in named if not machines.is_local(name)})
    if others and not start.is_trusted:
        source = f"--host_discovery_script={script}" if script else f"HOSTS={start.hosts}"
        raise UsageError(
            f"{source} names other machines ({', '.join(others)}): Horovod's and TensorFlow's "
            "ports have no authentication, and whoever reaches them can run code as you. Give "
            "--trusted_network if only you can reach these machines' ports."
        )
    if start.processes == 1 and not start.is_elastic and not others:
        return []
    if not others:
        return _on_this_machine(start, variables)
    if start.is_elastic:
        return elastic(start, start.hosts, variables)
    return horovodrun(start.processes, start.hosts)


def parameter_server(start: Start, servers: int, variables: dict[str, str]) -> list[str]:
    """Returns the launcher of a parameter-server job on this machine.

    Args:
        start: its processes are the workers.
        servers: processes that hold weights.
        variables: receives what the job needs.

    Raises:
        UsageError: HOSTS is set, or the kernel allows no private network.
    """
    if start.hosts:
        raise UsageError(
            f"HOSTS={start.hosts} is for Horovod's jobs: start the tasks of a parameter-server job "
            "on each machine, with TF_CONFIG (docs/update_rules.md)."
        )
    launcher = [sys.executable, "-m", "app.launch.tfrun", str(start.processes), str(servers)]
    if start.is_trusted:
        return launcher
    if not private_network.is_allowed():
        raise UsageError(
            "this kernel allows no private network (unshare --map-root-user --net), and "
            "TensorFlow's servers listen on every interface and obey whoever reaches them: give "
            "--trusted_network if only you can reach this machine's ports."
        )
    variables[private_network.ADDRESSES] = "127.0.0.1"
    return [*private_network.INSIDE, *launcher]


def _on_this_machine(start: Start, variables: dict[str, str]) -> list[str]:
    np, limit = start.processes, max(start.processes, start.max_processes)
    is_private = not start.is_trusted and private_network.is_allowed()
    # A rank of an elastic job needs a name of its own, as Horovod drops a name that failed.
    names = [f"127.0.0.{i + 1}" for i in range(limit)] if is_private else ["localhost", "127.0.0.1"]
    variables["SCALEPROOF_LOOPBACK"] = "1"
    if is_private:
        addresses = names if start.is_elastic else names[:1]
        variables[private_network.ADDRESSES] = ",".join(addresses)
    elif not start.is_trusted:
        print(
            "warning: this kernel allows no private network (unshare --map-root-user --net): "
            "Horovod listens on loopback, where other users of this machine can reach it.",
            file=sys.stderr,
        )
    if not start.is_elastic:
        launcher = horovodrun(np, f"localhost:{np}")
    elif np > len(names):
        raise UsageError(
            f"--elastic needs a host name for each of {np} ranks, but without a private network "
            f"there are {len(names)} ({', '.join(names)}): set NP={len(names)}, or leave "
            "--elastic out."
        )
    else:
        hosts = ",".join(f"{name}:1" for name in names[:np])
        launcher = [*elastic(start, hosts, variables), "--network-interface", "lo"]
    return [*private_network.INSIDE, *launcher] if is_private else launcher


def horovodrun(np: int, hosts: str) -> list[str]:
    """Returns `horovodrun -np NP -H HOSTS`, by the safer launcher."""
    return [sys.executable, "-m", "app.launch.horovodrun", "--gloo", "-np", str(np), "-H", hosts]


def elastic(start: Start, hosts: str, variables: dict[str, str]) -> list[str]:
    """Returns the launcher of a job that survives with one rank, and takes failed hosts back."""
    variables["PYTHONHASHSEED"] = "0"  # Horovod orders hosts by hash
    variables["HOROVOD_GLOO_TIMEOUT_SECONDS"] = os.environ.get("HOROVOD_GLOO_TIMEOUT_SECONDS", "60")
    launcher = horovodrun(1, hosts)  # it waits for one slot, and then uses all there are
    if start.discovery_script:
        script = shlex.quote(start.discovery_script)  # Horovod passes it to a shell
        launcher = [*launcher[:-2], "--host-discovery-script", script]
    launcher += ["--min-np", "1", "--max-np", str(start.max_processes)]
    return [*launcher, "--blacklist-cooldown-range", "1", "10"]
