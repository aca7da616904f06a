"""The end of a step: norm, clipping, and the move of weights, statistics and averages.

    part 0   norms |       | move
    part 1   norms |       | move
                   | judge |      settle

Each part takes the norms of its gradients, one number is made of all of them; if it is finite,
each part moves its own weights.

Every replica does this for itself from the same sums, and must come to the same bits whatever its
threads and their timing: norms are reduced in one order (`ordered.py`), and no pass over the graph
may change an order of additions (`setup.join`).
"""

from __future__ import annotations

from collections.abc import Sequence

import tensorflow as tf

from app.config import Experiment
from app.training import ordered, per_weight
from app.training.joined import Joined
from app.training.state import Part, State

GROWTH_STEPS = 2000  # good steps before the float16 loss scale doubles
Sums = Sequence[tf.Tensor]  # of one part: gradients, then statistics, then `step_sums`


def norms(part: Part, values: Sums) -> tf.Tensor:
    """Computes the norm of each gradient of a part, [n]."""
    each = []
    for variable, gradient in zip(part.trainable, values, strict=False):
        gradient.set_shape(variable.shape)
        with tf.device(variable.device):
            each.append(ordered.norm(gradient))
    return tf.stack(each) if each else tf.zeros([0])


def move(
    experiment: Experiment,
    part: Part,
    values: Sums,
    each: tf.Tensor,
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
        each: the norm of each of its gradients, [n].
        rate: the learning rate.
        count: updates with this one.
        norm: of all gradients of all parts.
        scale: what the sums are larger by than the gradients of the mean loss (`step_sums`).
    """
    o, end = experiment.optimization, len(part.trainable)
    factor = clip_factor(o.clip_norm, norm)
    if experiment.precision == "float16" or experiment.objective.is_weighted:
        factor = 1 / scale if factor is None else factor / scale
    if factor is not None:
        each = each * factor
    rules = per_weight.rules(o, part.names)
    ratios = per_weight.trust_ratios(rules, part.trainable, each)
    moved = zip(part.trainable, values[:end], rules, ratios, *part.slots, strict=True)
    for variable, gradient, rule, ratio, *slots in moved:
        with tf.device(variable.device):
            if factor is not None:
                gradient = gradient * factor
            rule.optimizer.update(variable, gradient, slots, rule.rate(rate), count, ratio)
    part.constrain()
    follow(part, values[end : end + len(part.statistics)], experiment.num_micro_batches)
    for average, variable in zip(part.averages, part.variables, strict=bool(part.averages)):
        if not variable.dtype.is_floating:  # a constant, such as a table of indices
            continue
        with tf.device(variable.device):
            average.assign_sub((1 - o.ema_decay) * (average - variable))


def clip_factor(clip_norm: float, norm: tf.Tensor) -> tf.Tensor | None:
    """Returns what gradients of this norm are multiplied by (arXiv:1211.5063, algorithm 1).

    None where nothing is clipped.
    """
    return tf.minimum(1.0, clip_norm / (norm + 1e-6)) if clip_norm else None


def follow(part: Part, totals: Sums, count: int) -> None:
    """Moves statistics towards their means over `count` micro-batches."""
    for momentum in sorted({momentum for _, momentum in part.statistics}):
        pairs = zip(part.statistics, totals, strict=True)
        each = [(variable, total) for (variable, m), total in pairs if m == momentum]
        variables, sums = zip(*each, strict=True)
        joined = Joined([v.shape for v in variables], [True] * len(variables))
        old = joined.join(variables)
        means = [total / count for total in joined.join(sums)]
        new = means  # with momentum 0 whatever the old one is, as 0 * infinity is not 0
        if momentum:
            new = [momentum * a + (1 - momentum) * b for a, b in zip(old, means, strict=True)]
        for variable, value in zip(variables, joined.split(new), strict=True):
            variable.assign(value)


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
