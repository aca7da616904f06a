"""Optimizers: how a gradient moves a weight.

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
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

from app.bounds import Fraction, NonNegative, Positive

if TYPE_CHECKING:
    import tensorflow as tf


@dataclass(frozen=True)
class Optimizer(ABC):
    """Moves weights by their gradients.

    Attributes:
        slots: names of the variables beside each weight, of its shape and zero at first; they are
            saved in checkpoints as `<slot>/<weight>`.
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


@dataclass(frozen=True)
class SGD(Optimizer):
    """Stochastic gradient descent with momentum.

    g = gradient + weight_decay * w
    u = momentum * u + g
    w = w - rate * u                      (arXiv:1706.02677, eq. 9: the rate is outside u,
                                           so a change of it needs no correction)
    """

    slots: ClassVar[tuple[str, ...]] = ("momentum",)

    momentum: Fraction = 0.9
    nesterov: bool = False
    weight_decay: NonNegative = 1e-4  # not on biases and normalisation

    def update(
        self, weight: tf.Variable, gradient: tf.Tensor, slots: Sequence[tf.Variable],
        rate: tf.Tensor, count: tf.Tensor, ratio: tf.Tensor | None,
    ) -> None:  # fmt: skip
        """See base class."""
        import tensorflow as tf

        if is_decayed(weight):
            gradient = gradient + self.weight_decay * weight
            if ratio is not None:
                gradient *= ratio
        tf.raw_ops.ResourceApplyMomentum(
            var=weight.handle, accum=slots[0].handle, lr=rate, grad=gradient,
            momentum=self.momentum, use_nesterov=self.nesterov,
        )  # fmt: skip


@dataclass(frozen=True)
class LARS(SGD):
    """SGD whose steps are as long as each weight's norm allows (arXiv:1708.03888, eq. 6).

    u = momentum * u + ratio * g
    ratio = trust_coefficient * |w| / (|gradient| + weight_decay * |w|), or 1 where a norm is 0
    """

    is_layerwise: ClassVar[bool] = True

    trust_coefficient: Positive = 0.001

    def trust_ratios(
        self, weights: Sequence[tf.Variable], gradient_norms: tf.Tensor
    ) -> Sequence[tf.Tensor | None]:
        """See base class."""
        import tensorflow as tf

        from app.training import ordered

        places = [i for i, weight in enumerate(weights) if is_decayed(weight)]
        if not places:
            return [None] * len(weights)
        w = tf.stack([ordered.norm(weights[i]) for i in places])
        g = tf.gather(gradient_norms, places)
        ratio = self.trust_coefficient * w / (g + self.weight_decay * w + 1e-12)
        each = dict(zip(places, tf.unstack(tf.where((w > 0) & (g > 0), ratio, 1.0)), strict=True))
        return [each.get(i) for i in range(len(weights))]


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


OPTIMIZERS: Mapping[str, type[Optimizer]] = {"sgd": SGD, "lars": LARS, "adamw": AdamW}
