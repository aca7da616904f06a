"""Defines what an objective is: what training minimises, and what is measured and answered.

An objective is a frozen dataclass: its fields are its numbers, each with its bound, and can be set
by `--set objective.<field>`. Your own is an object in your experiment:

    @dataclass(frozen=True)
    class Quantile(Objective):
        quantile: Fraction = 0.9

        def losses(self, outputs, targets):
            import tensorflow as tf

            error = targets - outputs
            each = tf.maximum(self.quantile * error, (self.quantile - 1) * error)
            return tf.reduce_mean(each, -1)

    Experiment(..., objective=Quantile(quantile=0.5))

Everything is made of sums over examples, so that it has the same value on any layout:

    loss = sum of weights * losses / sum of weights       over all examples (or tokens) of a step

TensorFlow is imported when a step is built, so that reading an experiment does not need it.
"""

from __future__ import annotations

import json
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np

from app.errors import UsageError

if TYPE_CHECKING:
    import tensorflow as tf

    from input.batches import DataSet

Outputs = Any  # of the model, float32: a tensor [b, ...], or a nest of such
Targets = Any  # of the data: likewise


@dataclass(frozen=True)
class Objective(ABC):
    """Losses, metrics and answers from a model's outputs.

    b  examples of a micro-batch     ...  what an example has several of, such as tokens

    Attributes:
        reported: names of what `values` returns, which training reports beside the loss.
        best: the metric of an evaluation by which the best checkpoint is chosen.
        is_higher_better: whether the best is the highest.
        is_weighted: whether `weights` returns any; else each example counts as one.
        names_classes: whether answers name classes of the data.
        is_of_tokens: whether outputs are of an example's tokens, [b, T, K], and losses [b, T].
        fields: of a prediction's row.
    """

    reported: ClassVar[tuple[str, ...]] = ()
    best: ClassVar[str] = "loss"
    is_higher_better: ClassVar[bool] = False
    is_weighted: ClassVar[bool] = False
    names_classes: ClassVar[bool] = False
    is_of_tokens: ClassVar[bool] = False
    fields: ClassVar[tuple[str, ...]] = ("value",)

    def num_outputs(self, data: DataSet) -> int:
        """Returns the number of outputs of the model: of the classes, or else of the targets.

        `model.blocks` is called with it.
        """
        return data.num_classes or int(data.target_spec.shape[-1])

    def check(self, data: DataSet) -> None:
        """Checks that the data have targets for this objective.

        Raises:
            UsageError: they have not.
        """
        return None

    def check_outputs(self, outputs: Any, count: int) -> None:
        """Checks that a model's outputs are [b, K], or of tokens [b, T, K].

        Args:
            outputs: a nest of tf.TensorSpec.
            count: K, which the model was built with.

        Raises:
            UsageError: they are not.
        """
        wanted = "[b, T, K]" if self.is_of_tokens else "[b, K]"
        shape = list(getattr(outputs, "shape", ()))
        if len(shape) != wanted.count(",") + 1 or shape[-1] != count:
            found = shape if shape else "several tensors"
            raise UsageError(
                f"objective {type(self).__name__} needs outputs {wanted} with K = {count}, but the "
                f"model's last block returns {found} for a batch of 2: change the model's head "
                "(model.pooling, of a Transformer), or the objective."
            )

    @abstractmethod
    def losses(self, outputs: Outputs, targets: Targets) -> tf.Tensor:
        """Computes the loss of each example, float32 [b], or of its tokens, [b, T]."""

    def weights(self, targets: Targets) -> tf.Tensor:
        """Returns how much each loss counts, float32, of the shape of `losses`."""
        raise NotImplementedError

    def values(self, outputs: Outputs, targets: Targets) -> dict[str, tf.Tensor]:
        """Computes what is reported beside the loss, each of the shape of `losses`."""
        return {}

    def sums(self, outputs: Outputs, targets: Targets, examples: tf.Tensor) -> dict[str, tf.Tensor]:
        """Sums over the examples of an evaluation's batch, in float64; of any shape, by name.

        By default losses and `values`, times their weights, and the weights themselves, `count`.

        Args:
            outputs: of the model.
            targets: of the data.
            examples: how often each example counts, [b]: 0 where a batch is filled up, else 1.
        """
        import tensorflow as tf

        losses = self.losses(outputs, targets)
        weights = self.weights(targets) if self.is_weighted else tf.ones_like(losses)
        each = {**self.values(outputs, targets), "loss": losses}
        sums = {name: total(value * weights, examples) for name, value in each.items()}
        return {**sums, "count": total(weights, examples)}

    def metrics(self, totals: Mapping[str, np.ndarray]) -> dict[str, float]:
        """Computes an evaluation's metrics from the totals of `sums` over all examples, float64."""
        count = totals["count"]
        return {n: float(value / count) for n, value in totals.items() if n != "count"}

    def score(self, metrics: Mapping[str, float]) -> float | None:
        """Returns how good an evaluation's metrics are, the higher the better; None if unknown."""
        value = metrics.get(self.best)
        return value if value is None or self.is_higher_better else -value

    def scores(self, outputs: Outputs) -> tf.Tensor:
        """Maps outputs to the numbers that a prediction states, such as probabilities."""
        return outputs

    def decisions(self, outputs: np.ndarray) -> np.ndarray | None:
        """Returns what is decided from outputs, such as a class; None if nothing is."""
        return None

    def answers(self, outputs: Outputs, classes: tf.Tensor) -> dict[str, tf.Tensor]:
        """Computes what a served model answers, by name, each [b, ...]; part of its graph.

        Args:
            outputs: of the model.
            classes: their names, string [K].
        """
        return {"value": self.scores(outputs)}

    def row(self, scores: np.ndarray, classes: Sequence[str], top: int) -> dict[str, Any]:
        """Returns what `predict` writes for one item, as JSON values.

        Args:
            scores: of the item.
            classes: their names.
            top: how many of them to name at most.
        """
        return {"value": rounded(scores)}

    def columns(self, top: int) -> list[str]:
        """Returns the names of the columns of a row in a table."""
        return list(self.fields)

    def cells(self, row: Mapping[str, Any]) -> dict[str, Any]:
        """Maps what `row` returned to columns; lists and dictionaries become JSON."""
        return {n: json.dumps(x) if isinstance(x, (list, dict)) else x for n, x in row.items()}

    def needs(self, data: DataSet, what: str) -> UsageError:
        """Returns the error of data that have no targets for this objective."""
        return UsageError(
            f"objective {type(self).__name__} needs {what}, but {type(data).__name__} has "
            f"{described(data)}: give other data, or another objective."
        )


def total(values: tf.Tensor, examples: tf.Tensor) -> tf.Tensor:
    """Sums values [b, ...], each example times its count in `examples` [b]; float64 []."""
    import tensorflow as tf

    flat = tf.reshape(tf.cast(values, tf.float64), [tf.shape(values)[0], -1])
    return tf.tensordot(tf.cast(examples, tf.float64), tf.reduce_sum(flat, 1), 1)


def described(data: DataSet) -> str:
    """Describes the targets of data, for a message."""
    spec = data.target_spec
    shape = "targets of its own" if not hasattr(spec, "shape") else (
        f"targets {spec.dtype.name} {list(spec.shape)}"
    )  # fmt: skip
    return f"{data.num_classes} classes and {shape}" if data.num_classes else shape


def rounded(values: np.ndarray) -> Any:
    """Returns values in lists; float32 ones as the shortest numbers that read as the same."""
    if values.ndim:
        return [rounded(value) for value in values]
    is_whole = np.issubdtype(values.dtype, np.integer)
    return int(values) if is_whole else float(str(np.float32(values)))
