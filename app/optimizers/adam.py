"""AdamW, and LAMB, which scales its steps by the norms of weights."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

from app.bounds import Fraction, NonNegative, Positive
from app.optimizers.optimizer import Optimizer, is_decayed

if TYPE_CHECKING:
    import tensorflow as tf


@dataclass(frozen=True)
class AdamW(Optimizer):
    """Adam with decoupled weight decay, scaled by the rate (arXiv:1711.05101, algorithm 2).

    w = w - rate * weight_decay * w
    m = beta1 * m + (1 - beta1) * g       beta1: `momentum`
    v = beta2 * v + (1 - beta2) * g^2
    w = w - rate * (m / (1 - beta1^t)) / (sqrt(v / (1 - beta2^t)) + epsilon)
    """

    slots: ClassVar[tuple[str, ...]] = ("first_moment", "second_moment")

    momentum: Fraction = 0.9  # beta1
    beta2: Fraction = 0.999
    epsilon: Positive = 1e-8
    weight_decay: NonNegative = 1e-4  # not on biases and normalisation

    def update(
        self, weight: tf.Variable, gradient: tf.Tensor, slots: Sequence[tf.Variable],
        rate: tf.Tensor, count: tf.Tensor, ratio: tf.Tensor | None,
    ) -> None:  # fmt: skip
        """See base class."""
        import tensorflow as tf

        if is_decayed(weight) and self.weight_decay:
            weight.assign_sub(rate * self.weight_decay * weight)
        power1, power2 = self.momentum**count, self.beta2**count
        first, second = slots
        tf.raw_ops.ResourceApplyAdam(
            var=weight.handle, m=first.handle, v=second.handle, beta1_power=power1,
            beta2_power=power2, lr=rate, beta1=self.momentum, beta2=self.beta2,
            # The operator adds epsilon to sqrt(v), not to sqrt(v / (1 - beta2^t)).
            epsilon=self.epsilon * tf.sqrt(1 - power2), grad=gradient,
        )  # fmt: skip


@dataclass(frozen=True)
class LAMB(AdamW):
    """AdamW whose steps are as long as each weight (arXiv:1904.00962, algorithm 2; phi(z) = z).

    m = beta1 * m + (1 - beta1) * g       beta1: `momentum`
    v = beta2 * v + (1 - beta2) * g^2
    u = (m / (1 - beta1^t)) / (sqrt(v / (1 - beta2^t)) + epsilon) + weight_decay * w
    w = w - rate * ratio * u
    ratio = |w| / |u|, or 1 where a norm is 0

    Biases and normalisation have neither decay nor ratio, as in the authors' own code.
    """

    is_layerwise: ClassVar[bool] = True

    epsilon: Positive = 1e-6

    def update(
        self, weight: tf.Variable, gradient: tf.Tensor, slots: Sequence[tf.Variable],
        rate: tf.Tensor, count: tf.Tensor, ratio: tf.Tensor | None,
    ) -> None:  # fmt: skip
        """See base class."""
        import tensorflow as tf

        from app.training import ordered

        first, second = slots
        first.assign(self.momentum * first + (1 - self.momentum) * gradient)
        second.assign(self.beta2 * second + (1 - self.beta2) * tf.square(gradient))
        deviation = tf.sqrt(second / (1 - self.beta2**count)) + self.epsilon
        step = first / (1 - self.momentum**count) / deviation
        if is_decayed(weight):
            step += self.weight_decay * weight
            of_weight, of_step = ordered.norm(weight), ordered.norm(step)
            has_length = (of_weight > 0) & (of_step > 0)
            step *= tf.where(has_length, tf.math.divide_no_nan(of_weight, of_step), 1.0)
        weight.assign_sub(rate * step)
