"""Finds the strategy that a layout and an update rule ask for; imports no other.

update.kind=parameter_server       strategies/parameter_server.py
update.kind=local_sgd              strategies/local_sgd.py, around the step of the layout
several devices a process          strategies/pipelined.py
else                               training/single_stage.py
"""

from __future__ import annotations

import importlib
from collections.abc import Sequence
from typing import Any

from app.config import Experiment, Layout
from app.training import exchange
from app.training.single_stage import SingleStageStep
from app.training.state import State
from app.training.step import Step


def load(name: str) -> Any:
    """Imports app/strategies/`name`.py: by name, as training can do without that folder."""
    return importlib.import_module(f"app.strategies.{name}")


def make_step(
    experiment: Experiment, layout: Layout, state: State, micro_batches: range,
    order: Sequence[int], furthest: int = -1,
) -> Step:  # fmt: skip
    """Makes the step that runs this layout.

    Args:
        experiment: with its update rule.
        layout: of the job.
        state: what it moves.
        micro_batches: this process's places in a step.
        order: the steps to come.
        furthest: the last that is applied already.
    """
    step: Step
    if layout.workers:
        step = load("parameter_server").make_step(experiment, layout, state, order, furthest)
        return step
    if layout.devices > 1:
        step = load("pipelined").PipelinedStep(experiment, layout, state, micro_batches)
    else:
        step = SingleStageStep(experiment, layout, state, micro_batches)
    if exchange.is_local(experiment.update):
        last = order[-1] + 1 if order else 0
        step = load("local_sgd").LocalSGDStep(
            experiment, state, step, micro_batches, layout.processes, last
        )
    return step
