"""From summed gradients to weights: SGD with momentum or LARS, and the learning rate."""

from __future__ import annotations

import math
from collections.abc import Sequence

import tensorflow as tf

from app.config import Optimization


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
        passed = sum(seen >= epochs * num_examples for epochs in o.decay_epochs)
        return peak * o.decay_factor**passed
    remaining = max(1.0, total_steps * global_batch - warmup)
    return peak * 0.5 * (1 + math.cos(math.pi * min(1.0, (seen - warmup) / remaining)))


def is_decayed(variable: tf.Variable) -> bool:
    """Weight decay is for matrices and kernels, not for biases and normalisation."""
    return len(variable.shape) > 1


def update(
    o: Optimization,
    weights: Sequence[tf.Variable],
    momentum: Sequence[tf.Variable],
    gradients: Sequence[tf.Tensor],
    rate: tf.Tensor,
) -> None:
    """One step of every weight, in place.

    g = gradient + weight_decay * w
    u = momentum * u + ratio * g          ratio: 1, or LARS' (arXiv:1708.03888, eq. 6)
    w = w - rate * u                      (arXiv:1706.02677, eq. 9: the rate is outside u,
                                           so a change of it needs no correction)
    """
    for w, u, gradient in zip(weights, momentum, gradients, strict=True):
        if is_decayed(w):
            g = gradient + o.weight_decay * w
            if o.optimizer == "lars":
                g *= trust_ratio(o, w, gradient)
        else:
            g = gradient
        tf.raw_ops.ResourceApplyMomentum(
            var=w.handle, accum=u.handle, lr=rate, grad=g, momentum=o.momentum,
            use_nesterov=o.nesterov,
        )  # fmt: skip


def trust_ratio(o: Optimization, weight: tf.Tensor, gradient: tf.Tensor) -> tf.Tensor:
    """Eta |w| / (|g| + weight_decay |w|); 1 where either norm is 0."""
    w, g = tf.norm(weight), tf.norm(gradient)
    ratio = o.trust_coefficient * w / (g + o.weight_decay * w + 1e-12)
    return tf.where((w > 0) & (g > 0), ratio, 1.0)
