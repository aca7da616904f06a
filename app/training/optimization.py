"""From summed gradients to weights: SGD with momentum, LARS or AdamW, and the learning rate."""

from __future__ import annotations

import math
from collections.abc import Sequence

import tensorflow as tf

from app.config import Optimization
from app.training import ordered

# Variables beside each weight.
SLOTS = {
    "sgd": ("momentum",),
    "lars": ("momentum",),
    "adamw": ("first_moment", "second_moment"),
}


def learning_rate(
    o: Optimization, step: int, global_batch: int, num_examples: int, total_steps: int
) -> float:
    """The rate of step `step`, from the examples seen before it.

    Linear scaling and gradual warm-up as in arXiv:1706.02677, 2.1 and 2.2: from nothing to
    `learning_rate * G / reference_batch`, by the same amount each step.
    """
    peak = o.learning_rate * global_batch / o.reference_batch
    seen = step * global_batch  # examples
    warmup = o.warmup_epochs * num_examples
    if seen + global_batch <= warmup:
        return peak * (seen + global_batch) / warmup
    if o.schedule == "constant":
        return peak
    if o.schedule == "steps":
        drops = sum(seen >= epochs * num_examples for epochs in o.decay_epochs)
        return peak * o.decay_factor**drops
    remaining = max(1.0, total_steps * global_batch - warmup)
    passed = min(1.0, max(0.0, (seen - warmup) / remaining))
    if o.schedule == "linear":
        return peak * (1 - passed)
    return peak * 0.5 * (1 + math.cos(math.pi * passed))


def is_decayed(variable: tf.Variable) -> bool:
    """Weight decay is for matrices and kernels, not for biases and normalisation."""
    return len(variable.shape) > 1


def clipping(o: Optimization, norm: tf.Tensor) -> tf.Tensor | None:
    """What gradients of this norm are multiplied by (arXiv:1211.5063, algorithm 1)."""
    return tf.minimum(1.0, o.clip_norm / (norm + 1e-6)) if o.clip_norm else None


def update(
    o: Optimization,
    weight: tf.Variable,
    slots: Sequence[tf.Variable],
    gradient: tf.Tensor,
    ratio: tf.Tensor | None,
    rate: tf.Tensor,
    count: tf.Tensor,
) -> None:
    """One step of a weight, in place.

    Args:
        o: which rule, and its numbers.
        weight: or a shard of one.
        slots: as SLOTS[o.optimizer] names them.
        gradient: of the weight.
        ratio: one of `trust_ratios`.
        rate: the learning rate.
        count: updates with this one, from 1; float32.
    """
    if o.optimizer == "adamw":
        _adamw(o, weight, gradient, slots, rate, count)
    else:
        _momentum(o, weight, gradient, slots, ratio, rate)


def _momentum(
    o: Optimization, w: tf.Variable, gradient: tf.Tensor, slots: Sequence[tf.Variable],
    ratio: tf.Tensor | None, rate: tf.Tensor,
) -> None:  # fmt: skip
    """SGD and LARS.

    g = gradient + weight_decay * w
    u = momentum * u + ratio * g          ratio: 1, or LARS' (arXiv:1708.03888, eq. 6)
    w = w - rate * u                      (arXiv:1706.02677, eq. 9: the rate is outside u,
                                           so a change of it needs no correction)
    """
    g = gradient
    if is_decayed(w):
        g = gradient + o.weight_decay * w
        if ratio is not None:
            g *= ratio
    tf.raw_ops.ResourceApplyMomentum(
        var=w.handle, accum=slots[0].handle, lr=rate, grad=g, momentum=o.momentum,
        use_nesterov=o.nesterov,
    )  # fmt: skip


def _adamw(
    o: Optimization, w: tf.Variable, gradient: tf.Tensor, slots: Sequence[tf.Variable],
    rate: tf.Tensor, count: tf.Tensor,
) -> None:  # fmt: skip
    """AdamW (arXiv:1711.05101, algorithm 2), the decay scaled by the rate.

    w = w - rate * weight_decay * w
    m = beta1 * m + (1 - beta1) * g       beta1: `momentum`
    v = beta2 * v + (1 - beta2) * g^2
    w = w - rate * (m / (1 - beta1^t)) / (sqrt(v / (1 - beta2^t)) + epsilon)
    """
    if is_decayed(w) and o.weight_decay:
        w.assign_sub(rate * o.weight_decay * w)
    power1, power2 = o.momentum**count, o.beta2**count
    first, second = slots
    tf.raw_ops.ResourceApplyAdam(
        var=w.handle, m=first.handle, v=second.handle, beta1_power=power1, beta2_power=power2,
        lr=rate, beta1=o.momentum, beta2=o.beta2,
        # The operator adds epsilon to sqrt(v), not to sqrt(v / (1 - beta2^t)).
        epsilon=o.epsilon * tf.sqrt(1 - power2), grad=gradient,
    )  # fmt: skip


def trust_ratios(
    o: Optimization, weights: Sequence[tf.Variable], gradient_norms: tf.Tensor
) -> list[tf.Tensor | None]:
    """Computes what LARS multiplies each weight's gradient by; None for what it leaves as it is.

    Eta |w| / (|g| + weight_decay |w|), or 1 where either norm is 0. All weights' in one go.

    Args:
        o: which rule, and its numbers.
        weights: each whole: a shard has not the norm.
        gradient_norms: |g| of each, [n].
    """
    places = [i for i, w in enumerate(weights) if is_decayed(w) and o.optimizer == "lars"]
    if not places:
        return [None] * len(weights)
    w = tf.stack([ordered.norm(weights[i]) for i in places])
    g = tf.gather(gradient_norms, places)
    ratio = o.trust_coefficient * w / (g + o.weight_decay * w + 1e-12)
    each = dict(zip(places, tf.unstack(tf.where((w > 0) & (g > 0), ratio, 1.0)), strict=True))
    return [each.get(i) for i in range(len(weights))]
