"""Regression: each example has numbers."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar, Literal

import numpy as np

from app.bounds import Finite, Positive
from app.objectives.objective import Objective, Outputs, Targets, total

if TYPE_CHECKING:
    import tensorflow as tf

    from input.batches import DataSet


@dataclass(frozen=True)
class Regression(Objective):
    """The mean over D targets of an error e = output - (target - centre) / spread, each [b, D].

    With the mean and the standard deviation of the targets as centre and spread, a model's outputs
    are of about unit size. Predictions, centre + spread * output, and metrics but the loss are in
    the targets' own unit.

    squared   e^2
    huber     e^2 / 2 where |e| <= delta, else delta * (|e| - delta / 2)   (Huber, 1964)

    An evaluation gives the loss, `mae` (the mean absolute error), `rmse` and `r2`: 1 - (sum of
    squared errors) / (sum of squared deviations of the targets from their mean), the mean over D.
    """

    reported: ClassVar[tuple[str, ...]] = ("mae",)
    best: ClassVar[str] = "mae"

    error: Literal["squared", "huber"] = "squared"
    delta: Positive = 1.0
    centre: Finite = 0.0
    spread: Positive = 1.0

    def check(self, data: DataSet) -> None:
        """See base class."""
        spec = data.target_spec
        shape: Sequence[int | None] = list(getattr(spec, "shape", ()))
        is_numeric = len(shape) == 2 and shape[-1] and spec.dtype.is_floating
        if data.num_classes or not is_numeric:
            raise self.needs(data, "targets float32 [b, D], which are no classes")

    def losses(self, outputs: Outputs, targets: Targets) -> tf.Tensor:
        """See base class."""
        import tensorflow as tf

        error = outputs - (targets - self.centre) / self.spread
        if self.error == "squared":
            return tf.reduce_mean(tf.square(error), -1)
        size = tf.abs(error)
        inner, outer = 0.5 * tf.square(error), self.delta * (size - 0.5 * self.delta)
        return tf.reduce_mean(tf.where(size <= self.delta, inner, outer), -1)

    def values(self, outputs: Outputs, targets: Targets) -> dict[str, tf.Tensor]:
        """See base class."""
        import tensorflow as tf

        return {"mae": tf.reduce_mean(tf.abs(self.scores(outputs) - targets), -1)}

    def scores(self, outputs: Outputs) -> tf.Tensor:
        """Returns the predictions, [b, D]."""
        return self.centre + self.spread * outputs

    def sums(self, outputs: Outputs, targets: Targets, examples: tf.Tensor) -> dict[str, tf.Tensor]:
        """See base class; for each target the sums of e^2, of targets and of their squares, [D]."""
        import tensorflow as tf

        counts = tf.cast(examples, tf.float64)
        y, wide = tf.cast(self.scores(outputs), tf.float64), tf.cast(targets, tf.float64)
        each = {"squares": tf.square(y - wide), "targets": wide, "target_squares": tf.square(wide)}
        sums = {name: tf.tensordot(counts, value, 1) for name, value in each.items()}
        return {
            "mae": total(self.values(outputs, targets)["mae"], examples),
            "loss": total(self.losses(outputs, targets), examples),
            **sums,
            "count": tf.reduce_sum(counts),
        }

    def metrics(self, totals: Mapping[str, np.ndarray]) -> dict[str, float]:
        """See base class."""
        count, squares = totals["count"], totals["squares"]
        deviations = totals["target_squares"] - totals["targets"] ** 2 / count
        with np.errstate(divide="ignore", invalid="ignore"):  # of targets that are all the same
            r2 = float(np.mean(1 - squares / deviations))
        return {
            "mae": float(totals["mae"] / count),
            "rmse": float(np.mean(squares / count) ** 0.5),
            "r2": r2,
            "loss": float(totals["loss"] / count),
            "examples": int(count),
        }
