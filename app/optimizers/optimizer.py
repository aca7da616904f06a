"""Defines what an optimizer is: how a gradient moves a weight.

An optimizer is a frozen dataclass: its fields are its numbers, each with its bound, and can be set
by `--set optimization.<field>`. Those of OPTIMIZERS are chosen by name
(`--set optimization.optimizer=adamw`); your own is an object in your experiment:

    @dataclass(frozen=True)
    class SignSGD(Optimizer):
        weight_decay: NonNegative = 0.0

        def update(self, weight, gradient, slots, rate, count, ratio):
            import tensorflow as tf

            weight.assign_sub(rate * (tf.sign(gradient) + self.weight_decay * weight))

    Optimization(optimizer=SignSGD(weight_decay=0.01), learning_rate=1e-4)

TensorFlow is imported when a step is built, so that reading an experiment does not need it.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

if TYPE_CHECKING:
    import tensorflow as tf


@dataclass(frozen=True)
class Optimizer(ABC):
    """Moves weights by their gradients.

    Attributes:
        slots: names of the variables beside each weight, of its shape, which begin as `initial`
            says; they are saved in checkpoints as `<slot>/<weight>`.
        is_layerwise: the rule needs whole weights, for their norms; `--tensor` splits them.
    """

    slots: ClassVar[tuple[str, ...]] = ()
    is_layerwise: ClassVar[bool] = False

    @abstractmethod
    def update(
        self,
        weight: tf.Variable,
        gradient: tf.Tensor,
        slots: Sequence[tf.Variable],
        rate: tf.Tensor,
        count: tf.Tensor,
        ratio: tf.Tensor | None,
    ) -> None:
        """Moves a weight by one step, in place.

        Args:
            weight: or a shard of one.
            gradient: of the mean loss, clipped; of the weight's shape.
            slots: a variable for each name in `slots`, of the weight's shape.
            rate: the learning rate.
            count: updates with this one, from 1; float32.
            ratio: what `trust_ratios` computed for this weight.
        """

    def initial(self, slot: str, weight: tf.Variable) -> tf.Tensor:
        """Returns what a slot of this name begins as, of the weight's shape and type: zeros."""
        import tensorflow as tf

        return tf.zeros(weight.shape, weight.dtype)

    def trust_ratios(
        self, weights: Sequence[tf.Variable], gradient_norms: tf.Tensor
    ) -> Sequence[tf.Tensor | None]:
        """Computes a factor for each weight's gradient, for all at once; None leaves it as it is.

        Args:
            weights: of one stage.
            gradient_norms: |g| of each, [n].
        """
        return [None] * len(weights)


def is_decayed(weight: tf.Variable) -> bool:
    """Whether weight decay applies: to matrices and kernels, not to biases and normalisation."""
    return len(weight.shape) > 1
