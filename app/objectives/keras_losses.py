"""Losses and metrics of Keras by name, where they have a value for each example.

Their mean over examples is a sum and a count, and so the same however a step's examples are
divided. Keras' other metrics (AUC, F1, R2) hold a state that is no such sum.
"""

from __future__ import annotations

import difflib
import inspect
import re
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from app.errors import UsageError
from app.objectives.objective import Objective, Outputs, Targets

if TYPE_CHECKING:
    import tensorflow as tf

    from input.batches import DataSet

OF_BATCHES = {"circle", "dice", "tversky"}  # functions whose values depend on the whole batch


@dataclass(frozen=True)
class KerasLoss(Objective):
    """A loss of Keras, and metrics beside it.

    Attributes:
        loss: name of a function of `keras.losses`, such as `log_cosh`, or of its class.
        metrics_of: names of functions of `keras.metrics`, such as `mean_absolute_error`.
        from_logits: of a loss that takes it: whether outputs are logits.
        outputs: number of the model's outputs; 0: that of the data's classes or targets.
    """

    loss: str = "mean_squared_error"
    metrics_of: tuple[str, ...] = ()
    from_logits: bool = True
    outputs: int = 0

    @property
    def reported(self) -> tuple[str, ...]:  # type: ignore[override]
        """See base class."""
        return self.metrics_of

    def num_outputs(self, data: DataSet) -> int:
        """See base class."""
        return self.outputs or super().num_outputs(data)

    def check(self, data: DataSet) -> None:
        """Finds the loss and the metrics in Keras.

        Raises:
            UsageError: it has none of that name, or one that is no mean over examples.
        """
        _found("losses", self.loss)
        for name in self.metrics_of:
            _found("metrics", name)

    def losses(self, outputs: Outputs, targets: Targets) -> tf.Tensor:
        """See base class."""
        function = _found("losses", self.loss)
        takes = inspect.signature(function).parameters
        options = {"from_logits": self.from_logits} if "from_logits" in takes else {}
        return _of_examples(function(targets, outputs, **options))

    def values(self, outputs: Outputs, targets: Targets) -> dict[str, tf.Tensor]:
        """See base class."""
        return {
            name: _of_examples(_found("metrics", name)(targets, outputs))
            for name in self.metrics_of
        }


def _found(module: str, name: str) -> Callable[..., Any]:
    """Returns a function of keras.losses or keras.metrics, by its name or its class's."""
    import keras

    members, field = vars(getattr(keras, module)), "loss" if module == "losses" else "metrics_of"
    functions = {n: f for n, f in members.items() if inspect.isfunction(f)}
    function = functions.get(re.sub("(?<!^)(?=[A-Z])", "_", name).lower())
    if function is not None and function.__name__ not in OF_BATCHES:
        return function
    if function is not None or name in members:
        raise UsageError(
            f"objective.{field}={name}: it has no value for each example, so its mean would depend "
            "on how examples are divided among processes: leave it out, or write an Objective "
            "with the sums that it is made of (MultiLabel has histograms for average precision)."
        )
    near = difflib.get_close_matches(name, members, n=1)
    hint = f" (nearest: {near[0]})" if near else ""
    raise UsageError(f"objective.{field}={name}: keras.{module} has no such name{hint}.")


def _of_examples(values: tf.Tensor) -> tf.Tensor:
    """Returns the mean of each example's values, [b]."""
    import tensorflow as tf

    values = tf.cast(values, tf.float32)
    return tf.reduce_mean(values, list(range(1, len(values.shape))))
