"""A run: open, continue or begin, train, report. What happens in between is a session's."""

from __future__ import annotations

import contextlib
from typing import Any

from app.config import Experiment, Layout
from app.parallel.topology import Topology
from app.reporting.clock import Clock
from app.training import setup as opening
from app.training import strategy
from app.training.claim import claim
from app.training.trainer import Run, Session


def train(experiment: Experiment, layout: Layout, where: Topology, run: Run) -> dict[str, Any]:
    """Trains to the experiment's last step, or continues the run in `run.workdir`.

    Returns what result.json holds.

    Raises:
        UserError: the same on every rank; those of `Session.train`, and what is found before
            the first step, when nothing is written or trained yet.
        InputError: on the rank that meets an example it cannot read.
    """
    clock = Clock()
    opened = opening.open_run(experiment, layout, where, run.data_dir)
    if layout.elastic:
        result: dict[str, Any] = strategy.load("elastic").train(opened, layout, run, clock)
        return result
    with contextlib.ExitStack() as stack:
        session = Session(opened, layout, where, run, clock)
        claimed = opening.together(lambda: claim(opened, layout, where, run, stack))
        session.warnings += claimed
        first = session.checkpoints.restore()
        clock.resume(session.checkpoints.counted)
        return session.train(first)
