"""Implements `app doctor`: finds what keeps a machine from training, and how to fix it.

    ok      memory          20.9 GB available, 1.0 GB taken by 2 processes before any model

The environment is that of training: NP processes (2 if not given), HOSTS. This process does not
import TensorFlow, so that a TensorFlow that crashes is a finding too.
"""

import itertools
import signal
import sys
from collections.abc import Iterable, Iterator
from pathlib import Path

from app.errors import UserError
from app.launch.launcher import Start
from app.tools.diagnosis import installed, machine, network, trial
from app.tools.diagnosis.finding import Finding, warning


def main(start: Start, workdir: Path, data_dir: Path) -> None:
    """Prints each finding as soon as it is found.

    Raises:
        UserError: one of them is a problem.
    """
    if trial.is_rank():
        from app.tools import all_reduce

        return all_reduce.main()
    for number in (signal.SIGINT, signal.SIGTERM):  # ends what was started first
        signal.signal(number, lambda number, frame: sys.exit(128 + number))
    report(examine(start, workdir, data_dir))


def examine(start: Start, workdir: Path, data_dir: Path) -> Iterator[Finding]:
    """Yields all findings; what takes long comes last."""
    np, hosts = start.processes, start.hosts
    local = network.local_ranks(np, hosts)
    yield installed.python()
    yield from installed.versions(installed.installed(), installed.pinned())
    if local:
        yield machine.cores(local)
        yield machine.memory(local)
    yield machine.disk("disk, workdir", "--workdir", workdir)
    yield machine.disk("disk, data", "--data_dir", data_dir)
    yield machine.workdir(workdir)
    yield network.loopback()
    yield network.isolation()
    is_sound = True
    for finding in itertools.chain(network.reachable(np, hosts), installed.horovod()):
        is_sound &= finding.level != "problem"
        yield finding
    if is_sound:
        yield trial.all_reduce(start)
    else:
        found = "not tried while there is a problem with Horovod or HOSTS"
        yield warning("all-reduce", found, "fix that first")


def report(findings: Iterable[Finding]) -> None:
    """Prints findings one by one.

    Raises:
        UserError: names the problems among them.
    """
    subjects: dict[str, list[str]] = {"ok": [], "warning": [], "problem": []}
    for finding in findings:
        print(finding, flush=True)
        subjects[finding.level].append(finding.subject)
    if problems := subjects["problem"]:
        raise UserError(
            f"training needs a machine without a problem, and this one has {len(problems)} "
            f"({'; '.join(dict.fromkeys(problems))}): apply each fix, and run doctor again."
        )
    number = len(subjects["warning"])
    warnings = f", {number} warning{'s' * (number > 1)}" if number else ""
    print(f"no problem{warnings}: training can start on this machine")
