"""What the trainer needs of a training step, whatever the strategy that takes it."""

from __future__ import annotations

import abc
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import tensorflow as tf

Batches = Iterator[tuple[tf.Tensor, ...]]  # (inputs, targets, ids of examples)


class Step(abc.ABC):
    """Calling it advances the state by one step; returns the step's metrics.

    Attributes:
        comes_in_bursts: many steps can be ready together, so that a mean tells their speed and a
            median does not.
        examples: of the step that was applied last, their ids by the micro-batch's place; None:
            those that were read last.
    """

    comes_in_bursts = False
    examples: Mapping[int, tf.Tensor] | None = None

    @abc.abstractmethod
    def __call__(self, step: int, batches: Batches, rate: float) -> dict[str, tf.Tensor]:
        """Runs step `step` on this process's next micro-batches at learning rate `rate`.

        Returns `loss`, `accuracy`, `gradient_norm`, `finite` (else no weight was changed) and
        `skipped` (not finite for the float16 loss scale alone), each [].
        """

    @property
    @abc.abstractmethod
    def bytes_sent(self) -> float:
        """By this process in a step, for the sums."""

    def is_round(self, done: int) -> bool:
        """Returns whether all processes hold the same after `done` steps."""
        return True

    def missing(self) -> Sequence[int]:
        """Returns the steps before the furthest applied one that are not applied yet."""
        return ()

    def results(self) -> dict[str, Any]:
        """Returns what result.json holds of this strategy."""
        return {}

    def table(self) -> list[dict[str, Any]]:
        """Returns a row a part of the model and device; none where all is on one."""
        return []

    def close(self) -> None:
        """Leaves nothing running."""
        return
