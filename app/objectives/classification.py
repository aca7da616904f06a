"""Classification: each example is of one class."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np

from app.bounds import Fraction
from app.objectives.objective import Objective, Outputs, Targets, total

if TYPE_CHECKING:
    import tensorflow as tf

    from input.batches import DataSet

TOP = 5  # classes given for an example, at most


@dataclass(frozen=True)
class Classification(Objective):
    """The cross-entropy of softmax(outputs) [b, K] against targets, distributions [b, K].

    With label smoothing (arXiv:1512.00567, section 7) the targets of training are
    (1 - label_smoothing) * target + label_smoothing / K. An evaluation has none.

    The accuracy of an evaluation is top-1, and top-5: whether fewer than 5 classes score higher
    than the example's own. A class of equal score with a lower number counts as higher.
    """

    reported: ClassVar[tuple[str, ...]] = ("accuracy",)
    best: ClassVar[str] = "accuracy"
    is_higher_better: ClassVar[bool] = True
    names_classes: ClassVar[bool] = True

    label_smoothing: Fraction = 0.0

    def check(self, data: DataSet) -> None:
        """See base class."""
        targets = getattr(data, "targets", None)
        if not data.num_classes or (targets and targets.meaning == "labels"):
            raise self.needs(data, "a class for each example")

    def losses(self, outputs: Outputs, targets: Targets) -> tf.Tensor:
        """See base class; with label smoothing."""
        import tensorflow as tf

        smoothing = self.label_smoothing
        smooth = targets * (1 - smoothing) + smoothing / targets.shape[-1]
        return tf.nn.softmax_cross_entropy_with_logits(smooth, outputs)

    def values(self, outputs: Outputs, targets: Targets) -> dict[str, tf.Tensor]:
        """See base class."""
        import tensorflow as tf

        is_right = tf.equal(tf.argmax(outputs, -1), tf.argmax(targets, -1))
        return {"accuracy": tf.cast(is_right, tf.float32)}

    def sums(self, outputs: Outputs, targets: Targets, examples: tf.Tensor) -> dict[str, tf.Tensor]:
        """See base class; without label smoothing."""
        import tensorflow as tf

        losses = tf.nn.softmax_cross_entropy_with_logits(targets, outputs)
        labels = tf.argmax(targets, -1)  # [b]
        # The label's place in the ranking: how many classes score higher; ties go to the lower.
        own = tf.gather(outputs, labels, batch_dims=1)[:, tf.newaxis]
        lower = tf.range(outputs.shape[-1], dtype=tf.int64) < labels[:, tf.newaxis]
        is_higher = (outputs > own) | ((outputs == own) & lower)
        rank = tf.reduce_sum(tf.cast(is_higher, tf.int32), -1)
        # A NaN is above nothing and below nothing: it must not count as right.
        known = tf.math.is_finite(own[:, 0])
        return {
            "accuracy": total(known & (rank < 1), examples),
            "top5_accuracy": total(known & (rank < 5), examples),
            "loss": total(losses, examples),
            "count": total(tf.ones_like(losses), examples),
        }

    def metrics(self, totals: Mapping[str, np.ndarray]) -> dict[str, float]:
        """See base class."""
        return {**super().metrics(totals), "examples": int(totals["count"])}

    def scores(self, outputs: Outputs) -> tf.Tensor:
        """Returns the probabilities, [b, K]."""
        import tensorflow as tf

        return tf.nn.softmax(outputs)

    def decisions(self, outputs: np.ndarray) -> np.ndarray | None:
        """Returns each example's class, [b]."""
        found: np.ndarray = np.argmax(outputs, -1)
        return found

    def answers(self, outputs: Outputs, classes: tf.Tensor) -> dict[str, tf.Tensor]:
        """Returns the likeliest classes: `class`, `probability` [b]; `classes`, `scores` [b, k]."""
        import tensorflow as tf

        count = min(TOP, classes.shape[0])
        scores, indices = tf.math.top_k(self.scores(outputs), count)
        names = tf.gather(classes, indices)
        return {
            "class": names[:, 0], "probability": scores[:, 0], "classes": names, "scores": scores
        }  # fmt: skip

    def row(self, scores: np.ndarray, classes: Sequence[str], top: int) -> dict[str, Any]:
        """See base class: the likeliest class, and the probabilities of the `top` likeliest."""
        best = np.argsort(-scores, kind="stable")[:top]  # of equals, the first class
        probabilities = {classes[k]: float(str(scores[k])) for k in best}
        return {"class": next(iter(probabilities)), "probabilities": probabilities}

    def columns(self, top: int) -> list[str]:
        """See base class: class and probability of the `top` likeliest."""
        return [f"{name}_{k}" for k in range(1, top + 1) for name in ("class", "probability")]

    def cells(self, row: Mapping[str, Any]) -> dict[str, Any]:
        """See base class."""
        return {
            column: value
            for k, pair in enumerate(row["probabilities"].items(), 1)
            for column, value in zip((f"class_{k}", f"probability_{k}"), pair, strict=True)
        }
