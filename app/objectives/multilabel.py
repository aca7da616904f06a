"""Multi-label classification: of each class, whether an example is of it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np

from app.bounds import Positive
from app.objectives.objective import Objective, Outputs, Targets, rounded, total

if TYPE_CHECKING:
    import tensorflow as tf

    from input.batches import DataSet

BINS = 4096  # of outputs, from -LARGEST to LARGEST: of probabilities 1e-7 to 1 - 1e-7
LARGEST = 16.0


@dataclass(frozen=True)
class MultiLabel(Objective):
    """The mean over K classes of the binary cross-entropy of sigmoid(outputs) [b, K].

    Targets are 0 or 1, [b, K]. A class is named where its probability is above 1/2.

    An evaluation gives the loss; `map`, the mean over the classes that occur of average precision
    (the sum over thresholds of precision times the increase of recall; outputs count as equal if
    they are in the same of 4,096 bins of 1/128); and `f1`, of all decisions together.

    Attributes:
        positive_weight: what a class that an example is of counts as, beside one that it is not of.
    """

    reported: ClassVar[tuple[str, ...]] = ("accuracy",)
    best: ClassVar[str] = "map"
    is_higher_better: ClassVar[bool] = True
    names_classes: ClassVar[bool] = True
    fields: ClassVar[tuple[str, ...]] = ("classes", "probabilities")

    positive_weight: Positive = 1.0

    def check(self, data: DataSet) -> None:
        """See base class."""
        spec = data.target_spec
        if not data.num_classes or list(getattr(spec, "shape", ())) != [None, data.num_classes]:
            raise self.needs(data, "targets [b, K] of 0 and 1 for its K classes")

    def losses(self, outputs: Outputs, targets: Targets) -> tf.Tensor:
        """See base class."""
        import tensorflow as tf

        each = tf.nn.weighted_cross_entropy_with_logits(targets, outputs, self.positive_weight)
        return tf.reduce_mean(each, -1)

    def values(self, outputs: Outputs, targets: Targets) -> dict[str, tf.Tensor]:
        """Returns the share of the classes for which the decision is right."""
        import tensorflow as tf

        is_right = tf.equal(outputs > 0, targets > 0.5)
        return {"accuracy": tf.reduce_mean(tf.cast(is_right, tf.float32), -1)}

    def sums(self, outputs: Outputs, targets: Targets, examples: tf.Tensor) -> dict[str, tf.Tensor]:
        """See base class; histograms of the outputs of each class, [K, BINS] twice."""
        import tensorflow as tf

        scaled = (outputs + LARGEST) * (BINS / (2 * LARGEST))
        bins = tf.clip_by_value(tf.cast(tf.floor(scaled), tf.int32), 0, BINS - 1)  # [b, K]
        classes = outputs.shape[-1]
        places = tf.reshape(bins + tf.range(classes) * BINS, [-1])
        counts = tf.cast(examples, tf.float64)[:, tf.newaxis]

        def histogram(of: tf.Tensor) -> tf.Tensor:
            weights = tf.reshape(counts * tf.cast(of, tf.float64), [-1])
            found = tf.math.unsorted_segment_sum(weights, places, classes * BINS)
            return tf.reshape(found, [classes, BINS])

        is_positive = targets > 0.5
        return {
            "accuracy": total(self.values(outputs, targets)["accuracy"], examples),
            "loss": total(self.losses(outputs, targets), examples),
            "positives": histogram(is_positive),
            "negatives": histogram(~is_positive),
            "count": tf.reduce_sum(counts),
        }

    def metrics(self, totals: Mapping[str, np.ndarray]) -> dict[str, float]:
        """See base class."""
        positives, negatives, count = totals["positives"], totals["negatives"], totals["count"]
        precisions = average_precision(positives, negatives)
        # A decision is made at 0, the lower bound of the bin in the middle.
        right = positives[:, BINS // 2 :].sum()
        wrong, missed = negatives[:, BINS // 2 :].sum(), positives[:, : BINS // 2].sum()
        decisions = 2 * right + wrong + missed
        return {
            "map": float(np.mean(precisions)) if len(precisions) else float("nan"),
            "f1": float(2 * right / decisions) if decisions else float("nan"),
            "accuracy": float(totals["accuracy"] / count),
            "loss": float(totals["loss"] / count),
            "examples": int(count),
        }

    def scores(self, outputs: Outputs) -> tf.Tensor:
        """Returns the probability of each class, [b, K]."""
        import tensorflow as tf

        return tf.sigmoid(outputs)

    def decisions(self, outputs: np.ndarray) -> np.ndarray | None:
        """Returns which classes hold, [b, K]."""
        found: np.ndarray = outputs > 0
        return found

    def answers(self, outputs: Outputs, classes: tf.Tensor) -> dict[str, tf.Tensor]:
        """Returns all `classes`, their `scores`, and whether each `holds`: [b, K]."""
        import tensorflow as tf

        scores = self.scores(outputs)
        names = tf.broadcast_to(classes, tf.shape(scores))
        return {"classes": names, "scores": scores, "holds": outputs > 0}

    def row(self, scores: np.ndarray, classes: Sequence[str], top: int) -> dict[str, Any]:
        """See base class: the classes that hold, and the probabilities of the `top` likeliest."""
        best = np.argsort(-scores, kind="stable")
        holding = [classes[k] for k in best if scores[k] > 0.5]
        return {
            "classes": holding,
            "probabilities": {classes[k]: rounded(scores[k]) for k in best[:top]},
        }


def average_precision(positives: np.ndarray, negatives: np.ndarray) -> np.ndarray:
    """Returns the average precision of each class that occurs, from histograms [K, bins]."""
    right = np.cumsum(positives[:, ::-1], -1)  # above each threshold, the highest first
    named = right + np.cumsum(negatives[:, ::-1], -1)
    precision = right / np.maximum(named, 1)
    occurs = right[:, -1] > 0
    increase = positives[occurs, ::-1] / right[occurs, -1:]
    found: np.ndarray = np.sum(precision[occurs] * increase, -1)
    return found
