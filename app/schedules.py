"""Learning-rate schedules: what becomes of the peak rate after warm-up.

A schedule is a frozen dataclass: its fields are its numbers, each with its bound, and can be set
by `--set optimization.<field>`. Those of SCHEDULES are chosen by name
(`--set optimization.schedule=linear`); your own is an object in your experiment:

    @dataclass(frozen=True)
    class Polynomial(Schedule):
        power: Positive = 2.0

        def factor(self, progress):
            return (1 - progress.fraction) ** self.power

    Optimization(schedule=Polynomial(power=3), warmup_epochs=5)
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass
from typing import NamedTuple

from app.bounds import NonNegative, Positive


class Progress(NamedTuple):
    """How far a run is as a step begins, in examples: the same on any number of processes.

    Attributes:
        seen: examples before the step.
        epoch: examples in an epoch.
        fraction: of the way from the end of warm-up, 0, to the end of the run, 1.
    """

    seen: int
    epoch: int
    fraction: float


@dataclass(frozen=True)
class Schedule(ABC):
    """Shapes the learning rate over a run, after the warm-up (`Optimization.rate_at`)."""

    @abstractmethod
    def factor(self, progress: Progress) -> float:
        """Returns what the peak rate is multiplied by in a step after warm-up."""


@dataclass(frozen=True)
class Constant(Schedule):
    """Keeps the peak rate to the end."""

    def factor(self, progress: Progress) -> float:
        """See base class."""
        return 1.0


@dataclass(frozen=True)
class Cosine(Schedule):
    """Follows half a cosine wave from the peak rate to 0 (arXiv:1608.03983, without restarts)."""

    def factor(self, progress: Progress) -> float:
        """See base class."""
        return 0.5 * (1 + math.cos(math.pi * progress.fraction))


@dataclass(frozen=True)
class Linear(Schedule):
    """Falls in a straight line from the peak rate to 0."""

    def factor(self, progress: Progress) -> float:
        """See base class."""
        return 1 - progress.fraction


@dataclass(frozen=True)
class Steps(Schedule):
    """Multiplies the rate by `decay_factor` after each number of epochs in `decay_epochs`."""

    decay_epochs: tuple[NonNegative, ...] = (30.0, 60.0, 80.0)
    decay_factor: Positive = 0.1

    def factor(self, progress: Progress) -> float:
        """See base class."""
        drops = sum(progress.seen >= epochs * progress.epoch for epochs in self.decay_epochs)
        return self.decay_factor**drops


SCHEDULES: Mapping[str, type[Schedule]] = {
    "constant": Constant, "cosine": Cosine, "linear": Linear, "steps": Steps,
}  # fmt: skip
