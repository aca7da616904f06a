"""The end of a step: norm, clipping, and the move of weights, statistics and averages.

apply               a model in one place: all of it inside the compiled step
norms, judge, move  a pipeline: each stage takes the norms of its gradients, one number is
made of all of them, each stage moves its own weights

Every replica does this for itself from the same sums, and must come to the same bits whatever its
threads and their timing: norms are reduced in one order (`ordered.py`), and no pass over the graph
may change an order of additions (`opening.join`).
"""

from __future__ import annotations

from collections.abc import Sequence

import tensorflow as tf

from app.config import Experiment
from app.training import optimization, ordered
from app.training.state import Part, State

GROWTH_STEPS = 2000  # good steps before the float16 loss scale doubles
Sums = Sequence[tf.Tensor]  # of one part: gradients, then statistics, then [loss, correct]


def apply(
    experiment: Experiment, state: State, sums: Sequence[Sums], rate: tf.Tensor
) -> dict[str, tf.Tensor]:
    """Moves the state by each part's sums over all micro-batches of all processes."""
    scale = state.loss_scale.read_value()
    each = [norms(part, values) for part, values in zip(state.parts, sums, strict=True)]
    metrics = judge(each, sums[-1][-1], scale, experiment.global_batch)
    count = tf.cast(state.updates + 1, tf.float32)

    def move_all() -> tf.Tensor:
        for part, values in zip(state.parts, sums, strict=True):
            move(experiment, part, values, rate, count, metrics["gradient_norm"], scale)
        return tf.constant(True)

    tf.cond(metrics["finite"], move_all, lambda: tf.constant(False))
    settle(experiment, state, metrics["finite"])
    return metrics


def norms(part: Part, values: Sums) -> tf.Tensor:
    """Computes the norm of each gradient of a part, [n]."""
    each = []
    for variable, gradient in zip(part.trainable, values, strict=False):
        with tf.device(variable.device):
            each.append(ordered.norm(tf.ensure_shape(gradient, variable.shape)))
    return tf.stack(each)


def judge(
    each: Sequence[tf.Tensor], loss_and_correct: tf.Tensor, scale: tf.Tensor, global_batch: int
) -> dict[str, tf.Tensor]:
    """Makes the step's metrics from the gradients' norms of all parts, first to last."""
    norm = ordered.norm(tf.concat(each, 0)) / scale
    loss, correct = tf.unstack(loss_and_correct)
    finite = tf.math.is_finite(norm) & tf.math.is_finite(loss)
    return {
        "loss": loss,
        "accuracy": correct / global_batch,
        "gradient_norm": norm,
        "finite": finite,
        "skipped": ~finite & (scale > 1),  # the next step runs at half the scale
    }


def move(
    experiment: Experiment,
    part: Part,
    values: Sums,
    rate: tf.Tensor,
    count: tf.Tensor,
    norm: tf.Tensor,
    scale: tf.Tensor,
) -> None:
    """Moves one part's weights by finite sums.

    Args:
        experiment: the rule.
        part: what is moved.
        values: the part's sums.
        rate: the learning rate.
        count: updates with this one.
        norm: of all gradients of all parts.
        scale: what the loss was multiplied by.
    """
    o, end = experiment.optimization, len(part.trainable)
    clip = optimization.clipping(o, norm)
    for variable, gradient, *slots in zip(part.trainable, values[:end], *part.slots, strict=True):
        with tf.device(variable.device):
            if experiment.precision == "float16":
                gradient = gradient / scale
            if clip is not None:
                gradient = gradient * clip
            optimization.update(o, variable, slots, gradient, rate, count)
    part.constrain()
    statistics = values[end : end + len(part.statistics)]
    for (variable, momentum), total in zip(part.statistics, statistics, strict=True):
        mean = total / experiment.num_micro_batches
        variable.assign(momentum * variable + (1 - momentum) * mean)
    for average, variable in zip(part.averages, part.variables, strict=bool(part.averages)):
        with tf.device(variable.device):
            average.assign_sub((1 - o.ema_decay) * (average - variable))


def settle(experiment: Experiment, state: State, finite: tf.Tensor) -> None:
    """Counts the update; dynamic loss scaling: halve on overflow, double after GROWTH_STEPS."""
    state.updates.assign_add(tf.cast(finite, tf.int32))
    state.skips.assign_add(tf.cast(~finite & (state.loss_scale <= 1), tf.int32))
    if experiment.precision != "float16":
        return
    scale, good = state.loss_scale, state.good_steps
    grown = finite & (good + 1 >= GROWTH_STEPS)
    scale.assign(tf.where(finite, tf.where(grown, scale * 2, scale), tf.maximum(scale / 2, 1)))
    good.assign(tf.where(finite & ~grown, good + 1, 0))
