"""Objectives of tokens: each of a text's tokens has a class of its own.

    outputs   float32 [b, T, K]
    targets   int32 [b, T]; -1: a token that does not count, such as padding

The loss is the mean over all tokens of a step that count, not the mean of micro-batches' means.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np

from app.objectives.objective import Objective, Outputs, Targets, rounded

if TYPE_CHECKING:
    import tensorflow as tf

    from input.batches import DataSet


@dataclass(frozen=True)
class TokenObjective(Objective):
    """The cross-entropy of softmax(outputs) over K against each token's class."""

    reported: ClassVar[tuple[str, ...]] = ("accuracy",)
    is_weighted: ClassVar[bool] = True
    is_of_tokens: ClassVar[bool] = True

    def check(self, data: DataSet) -> None:
        """See base class."""
        spec = data.target_spec
        is_of_tokens = len(getattr(spec, "shape", ())) == 2 and spec.dtype.is_integer
        if not data.num_classes or not is_of_tokens:
            raise self.needs(data, "a class for each token, targets int32 [b, T]")

    def losses(self, outputs: Outputs, targets: Targets) -> tf.Tensor:
        """See base class."""
        import tensorflow as tf

        labels = tf.maximum(targets, 0)
        return tf.nn.sparse_softmax_cross_entropy_with_logits(labels, outputs)

    def weights(self, targets: Targets) -> tf.Tensor:
        """See base class."""
        import tensorflow as tf

        return tf.cast(targets >= 0, tf.float32)

    def values(self, outputs: Outputs, targets: Targets) -> dict[str, tf.Tensor]:
        """See base class."""
        import tensorflow as tf

        best = tf.argmax(outputs, -1, targets.dtype)
        return {"accuracy": tf.cast(tf.equal(best, targets), tf.float32)}

    def decisions(self, outputs: np.ndarray) -> np.ndarray | None:
        """Returns each token's class, [b, T]."""
        found: np.ndarray = np.argmax(outputs, -1)
        return found

    def scores(self, outputs: Outputs) -> tf.Tensor:
        """Returns the probabilities, [b, T, K]."""
        import tensorflow as tf

        return tf.nn.softmax(outputs)


@dataclass(frozen=True)
class TokenClassification(TokenObjective):
    """Names a class for each token: parts of speech, named entities.

    An evaluation gives the loss, `accuracy`, and `f1`: the mean over the classes that occur.
    """

    best: ClassVar[str] = "f1"
    is_higher_better: ClassVar[bool] = True
    names_classes: ClassVar[bool] = True
    fields: ClassVar[tuple[str, ...]] = ("classes", "probabilities")

    def sums(self, outputs: Outputs, targets: Targets, examples: tf.Tensor) -> dict[str, tf.Tensor]:
        """See base class; of each class how many tokens are, are named and are both, [K]."""
        import tensorflow as tf

        best = tf.argmax(outputs, -1, targets.dtype)
        weights = self.weights(targets) * tf.cast(examples, tf.float32)[:, tf.newaxis]

        def count(classes: tf.Tensor, which: tf.Tensor) -> tf.Tensor:
            counts = tf.reshape(tf.cast(weights * tf.cast(which, tf.float32), tf.float64), [-1])
            flat = tf.reshape(tf.maximum(classes, 0), [-1])
            return tf.math.unsorted_segment_sum(counts, flat, outputs.shape[-1])

        every = tf.ones_like(targets)
        return {
            **super().sums(outputs, targets, examples),
            "are": count(targets, every),
            "named": count(best, every),
            "right": count(targets, tf.equal(best, targets)),
        }

    def metrics(self, totals: Mapping[str, np.ndarray]) -> dict[str, float]:
        """See base class."""
        are, named, count = totals["are"], totals["named"], totals["count"]
        occurs = are > 0
        f1 = 2 * totals["right"][occurs] / (are + named)[occurs]
        return {
            "f1": float(np.mean(f1)) if len(f1) else float("nan"),
            "accuracy": float(totals["accuracy"] / count),
            "loss": float(totals["loss"] / count),
            "tokens": int(count),
        }

    def answers(self, outputs: Outputs, classes: tf.Tensor) -> dict[str, tf.Tensor]:
        """Returns each token's likeliest `classes` and their `scores`, [b, T]."""
        import tensorflow as tf

        scores = self.scores(outputs)
        return {
            "classes": tf.gather(classes, tf.argmax(outputs, -1)),
            "scores": tf.reduce_max(scores, -1),
        }

    def row(self, scores: np.ndarray, classes: Sequence[str], top: int) -> dict[str, Any]:
        """See base class: each token's likeliest class and its probability."""
        best = np.argmax(scores, -1)
        names = [classes[k] for k in best]
        return {"classes": names, "probabilities": rounded(np.max(scores, -1))}


@dataclass(frozen=True)
class LanguageModel(TokenObjective):
    """Predicts words: the next one of each token (causal), or those that were hidden (masked).

    Which of the two it is, the targets say (`input.text.Language`); a model of next words must
    not see them (`Transformer(causal=True)`). An evaluation gives the loss, `perplexity`, which is
    exp(loss), and `accuracy`.
    """

    best: ClassVar[str] = "perplexity"

    def metrics(self, totals: Mapping[str, np.ndarray]) -> dict[str, float]:
        """See base class."""
        count, loss = totals["count"], float(totals["loss"] / totals["count"])
        return {
            "perplexity": float(np.exp(loss)),
            "accuracy": float(totals["accuracy"] / count),
            "loss": loss,
            "tokens": int(count),
        }

    def answers(self, outputs: Outputs, classes: tf.Tensor) -> dict[str, tf.Tensor]:
        """Returns each token's likeliest `words`, as their numbers, and their `scores`, [b, T]."""
        import tensorflow as tf

        scores = self.scores(outputs)
        return {"words": tf.argmax(outputs, -1), "scores": tf.reduce_max(scores, -1)}
