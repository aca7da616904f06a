"""Defines what both sides train: a step on one batch in memory. Needs no TensorFlow."""

import dataclasses
from collections.abc import Sequence
from typing import Any, NamedTuple

from app import config, experiments
from app.config import Experiment, Optimization
from app.errors import UsageError
from app.objectives import Classification
from app.optimizers import SGD
from models.transformer import Transformer

RATE = 1e-6  # a learning rate so small that the weights stay ordinary numbers
NAMES = ("resnet50_float32", "resnet50_bfloat16", "minilm_float32", "minilm_bfloat16")


class Case(NamedTuple):
    """A training step on a number of processes.

    Attributes:
        name: one of NAMES.
        experiment: with a micro-batch for each process.
        inputs: shape of a micro-batch's: [b, H, W, 3] pixels, or [b, T] ids of tokens.
        classes: of the targets.
        processes: of the job, on this machine.
        threads: of each process.
    """

    name: str
    experiment: Experiment
    inputs: tuple[int, ...]
    classes: int
    processes: int
    threads: int

    @property
    def label(self) -> str:
        """The name for tables and files."""
        return f"{self.name}_{self.processes}x{self.threads}"

    def task(self) -> dict[str, Any]:
        """Returns the case as plain values, for a side that cannot import this file."""
        return {**self._asdict(), "experiment": config.as_dict(self.experiment), "rate": RATE}


def cases(names: Sequence[str], cores: int) -> list[Case]:
    """Returns each named case on one process of all cores, and on two of half each.

    Raises:
        UsageError: a name is unknown.
    """
    unknown = sorted({*names} - {*NAMES})
    if unknown or not names:
        raise UsageError(f"--cases={','.join(names)} must be of {', '.join(NAMES)}.")
    return [case(name, n, max(1, cores // n)) for name in names for n in (1, 2)]


def case(name: str, processes: int, threads: int) -> Case:
    """Returns the case of this name (see NAMES)."""
    job, precision = name.rsplit("_", 1)
    experiment, inputs, classes = (resnet50 if job == "resnet50" else minilm)()
    experiment = dataclasses.replace(
        experiment,
        global_batch=processes * inputs[0],
        micro_batch=inputs[0],
        precision=precision,  # type: ignore[arg-type]
    )
    return Case(name, experiment, inputs, classes, processes, threads)


def resnet50() -> tuple[Experiment, tuple[int, ...], int]:
    """Returns ResNet-50 at 224 pixels: SGD with momentum, weight decay, smoothed labels."""
    experiment = dataclasses.replace(
        experiments.resnet50_synthetic(),
        objective=Classification(label_smoothing=0.1),
        optimization=Optimization(optimizer=SGD(weight_decay=1e-4)),
    )
    return experiment, (16, 224, 224, 3), 1000


def minilm() -> tuple[Experiment, tuple[int, ...], int]:
    """Returns the fine-tuning of `sentiment_reviews`, from random weights: AdamW with clipping."""
    model = Transformer(layers=6, width=384, heads=12, pooling="mean")
    return dataclasses.replace(experiments.sentiment_reviews(), model=model), (32, 40), 2
