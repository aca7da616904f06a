"""SGD with momentum, and LARS, which scales its steps by the norms of weights."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

from app.bounds import Fraction, NonNegative, Positive
from app.optimizers.optimizer import Optimizer, is_decayed

if TYPE_CHECKING:
    import tensorflow as tf


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
