"""`launch COMMAND`: the ranks of a job on NP processes, and a supervisor over them."""

from __future__ import annotations

import os
import shlex
import sys
from collections.abc import Sequence
from pathlib import Path

from app.cli import command_line, workdir
from app.cli.flags import FLAGS
from app.errors import UsageError
from app.inference import standard
from app.inference.command_line import predicted
from app.launch import hosts as machines
from app.launch import private_network
from app.launch.job import Job
from app.launch.supervisor import Limits, Supervisor


def processes() -> int:
    """NP, 2 if it is not given."""
    text = os.environ.get("NP", "2")
    if not text.isdecimal() or not int(text):
        raise UsageError(f"NP must be a number of processes, at least 1, not {text!r}.")
    return int(text)


def main(name: str, arguments: Sequence[str]) -> int:
    """Runs a checked command to its end; returns the exit code.

    Training starts again when it breaks. A rank is `python -m app COMMAND` with the same flags,
    and with the workdir, so that a later attempt goes on where an earlier one was.

    Raises:
        UsageError: a job that cannot be started so.
    """
    command = [sys.executable, "-m", "app", *name.split(), *arguments]
    folder = Path(FLAGS.workdir or workdir.named(command_line.reference()))
    is_training = name == "train"
    if is_training or name == "trace":
        workdir.writable(folder)
    variables = {"SCALEPROOF_TERMINAL": os.ttyname(2)} if sys.stderr.isatty() else {}
    hosts = os.environ.get("HOSTS", "")
    is_served = is_training and command_line.chosen().update.kind == "parameter_server"
    launcher = (served if is_served else ranks)(processes(), hosts, variables)
    limits = Limits(
        restarts=FLAGS.max_restarts if is_training else 0,
        hang=FLAGS.hang_seconds if is_training else float("inf"),
        grace=FLAGS.grace_seconds,
    )
    if is_training and not FLAGS.workdir:
        folder = workdir.default(command_line.reference())
        command.append(f"--workdir={folder}")

    def start() -> Job:
        return Job(command, launcher, variables, FLAGS.elastic)

    if name != "predict":
        code = Supervisor(start, folder, limits).run()
        if is_training and not FLAGS.workdir:
            workdir.forget(folder)
        return code
    with standard.as_files(*predicted(), FLAGS.format) as (source, output):
        command += [f"--input={source}", f"--output={output}"]
        return Supervisor(start, Path(f"{output}.partial"), limits).run()


def ranks(np: int, hosts: str, variables: dict[str, str]) -> list[str]:
    """The launcher of `np` ranks, none for one; adds to `variables` what it must know.

    Ranks of one machine meet in a network of their own, if the kernel allows one.

    Raises:
        UsageError: hosts without a slot for each rank; other machines, and nobody said that the
            network can be trusted; an elastic job without a name for each rank.
    """
    slots = machines.given(hosts)
    if slots and np > sum(n for _, n in slots):
        raise UsageError(
            f"NP={np} processes need as many slots, but HOSTS={hosts} has "
            f"{sum(n for _, n in slots)}: set a smaller NP, or name more."
        )
    script = FLAGS.host_discovery_script
    named = slots + (machines.discovered(script) if script else [])
    others = sorted({name for name, _ in named if not machines.is_here(name)})
    if others and not FLAGS.trusted_network:
        source = f"--host_discovery_script={script}" if script else f"HOSTS={hosts}"
        raise UsageError(
            f"{source} names other machines ({', '.join(others)}): Horovod's and TensorFlow's "
            "ports have no authentication, and whoever reaches them can run code as you. Give "
            "--trusted_network if only you can reach these machines' ports."
        )
    if np == 1 and not FLAGS.elastic and not others:
        return []
    if others:
        return elastic(np, hosts, variables) if FLAGS.elastic else horovodrun(np, hosts)
    return _on_this_machine(np, variables)


def served(np: int, hosts: str, variables: dict[str, str]) -> list[str]:
    """The launcher of a parameter-server job of `np` workers on this machine.

    Raises:
        UsageError: other machines.
    """
    if hosts:
        raise UsageError(
            f"HOSTS={hosts} is of Horovod's jobs: start the tasks of a parameter-server job on "
            "each machine, with TF_CONFIG (docs/update_rules.md)."
        )
    launcher = [sys.executable, "-m", "app.launch.tfrun", "-np", str(np)]
    launcher += ["-servers", str(FLAGS.parameter_servers), "--"]
    if FLAGS.trusted_network:
        return launcher
    if not private_network.is_allowed():
        raise UsageError(
            "this kernel allows no private network (unshare --map-root-user --net), and "
            "TensorFlow's servers listen on every interface and obey whoever reaches them: give "
            "--trusted_network if only you can reach this machine's ports."
        )
    variables[private_network.ADDRESSES] = "127.0.0.1"
    return [*private_network.INSIDE, *launcher]


def _on_this_machine(np: int, variables: dict[str, str]) -> list[str]:
    most = _most(np)
    is_private = not FLAGS.trusted_network and private_network.is_allowed()
    # A rank of an elastic job needs a name of its own, as Horovod drops a name that failed.
    names = [f"127.0.0.{i + 1}" for i in range(most)] if is_private else ["localhost", "127.0.0.1"]
    variables["SCALEPROOF_LOOPBACK"] = "1"
    if is_private:
        variables[private_network.ADDRESSES] = ",".join(names if FLAGS.elastic else names[:1])
    elif not FLAGS.trusted_network:
        print(
            "warning: this kernel allows no private network (unshare --map-root-user --net): "
            "Horovod listens on loopback, where other users of this machine can reach it.",
            file=sys.stderr,
        )
    if not FLAGS.elastic:
        launcher = horovodrun(np, f"localhost:{np}")
    elif np > len(names):
        raise UsageError(
            f"--elastic needs a host name for each of {np} ranks, but without a private network "
            f"there are {len(names)} ({', '.join(names)}): set NP={len(names)}, or leave "
            "--elastic out."
        )
    else:
        hosts = ",".join(f"{name}:1" for name in names[:np])
        launcher = [*elastic(np, hosts, variables), "--network-interface", "lo"]
    return [*private_network.INSIDE, *launcher] if is_private else launcher


def horovodrun(np: int, hosts: str) -> list[str]:
    """`horovodrun -np NP -H HOSTS`, safer."""
    return [sys.executable, "-m", "app.launch.horovodrun", "--gloo", "-np", str(np), "-H", hosts]


def elastic(np: int, hosts: str, variables: dict[str, str]) -> list[str]:
    """The same for a job that goes on with one rank, and takes a host back after a while."""
    variables["PYTHONHASHSEED"] = "0"  # Horovod orders hosts by hash
    variables["HOROVOD_GLOO_TIMEOUT_SECONDS"] = os.environ.get("HOROVOD_GLOO_TIMEOUT_SECONDS", "60")
    launcher = horovodrun(1, hosts)  # so many slots are waited for; all there are take part
    if FLAGS.host_discovery_script:
        script = shlex.quote(FLAGS.host_discovery_script)  # Horovod gives it to a shell
        launcher = [*launcher[:-2], "--host-discovery-script", script]
    launcher += ["--min-np", "1", "--max-np", str(_most(np))]
    return [*launcher, "--blacklist-cooldown-range", "1", "10"]


def _most(np: int) -> int:
    """Ranks that the job may grow to: each needs a micro-batch."""
    return command_line.chosen().num_micro_batches if FLAGS.host_discovery_script else np
