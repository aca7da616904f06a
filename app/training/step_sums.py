"""The numbers that a step sums beside gradients, and what they become.

    micro-batch   [loss, a value ..., weight]   loss: sum of weights * losses / G
    step          the sum over V of them        metrics

G is the global batch. Where each example counts as one there is no weight, and the sums of losses
and gradients are their means already. Where tokens count, their number in the step is not known
until all micro-batches are summed; then all is multiplied by G / (sum of weights).
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from traceback import extract_tb
from typing import Any

import tensorflow as tf

from app.config import Experiment
from app.errors import UsageError, UserError
from app.objectives import Objective
from app.training import ordered


def size(objective: Objective) -> int:
    """Returns how many numbers there are."""
    return 1 + len(objective.reported) + objective.is_weighted


def names(objective: Objective) -> list[str]:
    """Returns the names of a step's metrics: the loss, what is reported, the gradients' norm."""
    return ["loss", *objective.reported, "gradient_norm"]


def weight(experiment: Experiment, targets: Any) -> tf.Tensor | None:
    """Returns the sum of a micro-batch's weights over G, float32 []; None if examples count."""
    objective = experiment.objective
    if not objective.is_weighted:
        return None
    return tf.reduce_sum(objective.weights(targets)) / experiment.global_batch


def of_micro_batch(
    experiment: Experiment, outputs: Any, targets: Any
) -> tuple[tf.Tensor, list[tf.Tensor]]:
    """Computes a micro-batch's loss, which is differentiated, and its numbers, each float32 []."""
    objective = experiment.objective
    outputs = tf.nest.map_structure(lambda y: tf.cast(y, tf.float32), outputs)
    losses, values = objective.losses(outputs, targets), objective.values(outputs, targets)
    each = [losses, *(values[name] for name in objective.reported)]
    if objective.is_weighted:
        weights = objective.weights(targets)
        each = [value * weights for value in each] + [weights]
    loss, *sums = [tf.reduce_sum(value) for value in each]
    loss /= experiment.global_batch  # so parts of the batch add up
    return loss, [loss, *sums]


def check_losses(objective: Objective, outputs: Any, targets: Any) -> None:
    """Computes the losses of an objective once, in a graph that is thrown away.

    Args:
        objective: may be a user's own.
        outputs: specs of the model's, of a batch.
        targets: specs of the data's, of any batch.

    Raises:
        UsageError: they fail, or are not one for each example, or token.
    """
    name = f"{type(objective).__name__}.losses"
    floats = tf.nest.map_structure(lambda y: tf.TensorSpec(y.shape, tf.float32), outputs)
    try:
        function = tf.function(objective.losses, autograph=False)
        losses = function.get_concrete_function(floats, targets).structured_outputs
        shape = losses.shape.as_list()
    except UserError:
        raise
    except Exception as error:  # of whatever kind: it is a person's own code
        at = next(
            reversed([f for f in extract_tb(error.__traceback__) if _is_own(f.filename)]), None
        )
        where = f" in {at.filename}, line {at.lineno}," if at else ""
        first = str(error).strip().partition("\n")[0]
        raise UsageError(
            f"{name} fails{where} with {type(error).__name__}: {first}; the outputs are "
            f"{_shapes(outputs)}, the targets {_shapes(targets)}."
        ) from None
    wanted = 2 if objective.is_of_tokens else 1
    if len(shape) != wanted:
        rule = "[b, T], one for each token" if wanted == 2 else "[b], one for each example"
        raise UsageError(
            f"{name} must return losses {rule}, not of shape {shape}: the step sums them, and "
            "divides by what counts in the whole step."
        )


def _is_own(path: str) -> bool:
    return "site-packages" not in path and not path.startswith(str(Path(__file__).parents[1]))


def _shapes(specs: Any) -> str:
    return ", ".join(str(spec.shape.as_list()) for spec in tf.nest.flatten(specs))


def judge(
    experiment: Experiment, norms: Sequence[tf.Tensor], sums: tf.Tensor, loss_scale: tf.Tensor
) -> dict[str, tf.Tensor]:
    """Makes the step's metrics from its numbers and the norms of all gradients.

    Args:
        experiment: with its objective.
        norms: of the gradients of each part, [n], first part to last.
        sums: over the step, float32 [size].
        loss_scale: of float16.

    Returns:
        `scale` is what the gradients' sums are larger by than the gradients of the mean loss.
    """
    objective, batch = experiment.objective, experiment.global_batch
    loss, *values = tf.unstack(sums)
    scale, count = loss_scale, batch
    if objective.is_weighted:
        # Not a number if nothing counts in the whole step, which is then not finite.
        *values, count = values
        loss, scale = loss * (batch / count), loss_scale * (count / batch)
    norm = ordered.norm(tf.concat(norms, 0)) / scale
    finite = tf.math.is_finite(norm) & tf.math.is_finite(loss)
    return {
        "loss": loss,
        **{n: value / count for n, value in zip(objective.reported, values, strict=True)},
        "gradient_norm": norm,
        "finite": finite,
        "skipped": ~finite & (loss_scale > 1),  # the next step runs at half the scale
        "scale": scale,
    }
