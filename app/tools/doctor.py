"""`app doctor`: what is wrong for training on this machine, a line a finding, each with its fix.

    ok      memory          20.9 GB available, 1.0 GB taken by 2 processes before any model

Environment: NP processes (2 if not given), HOSTS as for training. It imports no TensorFlow itself,
so that one that crashes is a finding too.
"""

from __future__ import annotations

import itertools
import signal
import sys
from collections.abc import Iterable, Iterator
from pathlib import Path

from app.errors import UserError
from app.launch.launcher import Start
from app.tools.diagnosis import installed, machine, network, storage, trial
from app.tools.diagnosis.finding import Finding, warning


def main(start: Start, workdir: Path, data_dir: Path) -> None:
    """Prints what is found, when it is found.

    Raises:
        UserError: there is a problem.
    """
    if trial.is_rank():
        from app.tools.diagnosis import rank

        return rank.main()
    for number in (signal.SIGINT, signal.SIGTERM):  # what was started is ended first
        signal.signal(number, lambda number, frame: sys.exit(128 + number))
    tell(look(start, workdir, data_dir))


def look(start: Start, workdir: Path, data_dir: Path) -> Iterator[Finding]:
    """All there is to find; what takes long comes last."""
    np, hosts = start.processes, start.hosts
    local = network.here(np, hosts)
    yield installed.python()
    yield from installed.versions(installed.found(), installed.pinned())
    if local:
        yield machine.cores(local)
        yield machine.memory(local)
    yield machine.disk("disk, workdir", "--workdir", workdir)
    yield machine.disk("disk, data", "--data_dir", data_dir)
    yield storage.workdir(workdir)
    yield network.loopback()
    yield network.isolation()
    is_sound = True
    for finding in itertools.chain(network.reachable(np, hosts), installed.horovod()):
        is_sound &= finding.level != "problem"
        yield finding
    if is_sound:
        yield trial.all_reduce(start)
    else:
        told = "not tried while there is a problem with Horovod or HOSTS"
        yield warning("all-reduce", told, "mend that first")


def tell(findings: Iterable[Finding]) -> None:
    """Prints them one by one.

    Raises:
        UserError: names those that are a problem.
    """
    counts = {"warning": 0, "problem": 0}
    subjects: dict[str, None] = {}  # in order, each once
    for finding in findings:
        print(finding, flush=True)
        if finding.level != "ok":
            counts[finding.level] += 1
        if finding.level == "problem":
            subjects[finding.subject] = None
    if subjects:
        raise UserError(
            f"training needs a machine without a problem, and this one has {counts['problem']} "
            f"({'; '.join(subjects)}): do what is told as fix, and call doctor again."
        )
    some = f"{counts['warning']} warning{'s' * (counts['warning'] > 1)}"
    print(f"no problem{f', {some}' if counts['warning'] else ''}: training can start here")
