"""One process, one micro-batch: the steps of this project are those of `keras.Model.fit`."""

import dataclasses
from dataclasses import dataclass

import keras
import numpy as np
import pytest
from steps import made

from app.config import Optimization
from app.optimizers import SGD, AdamW, KerasOptimizer
from app.schedules import Constant

STEPS, BATCH, RATE = 20, 16, 0.05
NEGLIGIBLE = 1e-12  # an epsilon that moves no digit: Keras adds it before the correction of moments


@dataclass(frozen=True)
class Dense:
    """Stock layers only."""

    def blocks(self, num_classes):
        return [
            keras.layers.Flatten(),
            keras.layers.Dense(32, activation="relu"),
            keras.layers.Dense(16, activation="gelu"),
            keras.layers.Dense(num_classes),
        ]


def adamw(**numbers):
    """Keras', which decays what this project decays: kernels."""
    optimizer = keras.optimizers.AdamW(RATE / 10, **numbers)
    optimizer.exclude_from_weight_decay(var_names=["bias"])
    return optimizer


CASES = {
    "plain": (SGD(momentum=0.0, weight_decay=0.0), lambda: keras.optimizers.SGD(RATE)),
    "momentum": (SGD(weight_decay=0.0), lambda: keras.optimizers.SGD(RATE, momentum=0.9)),
    "nesterov": (
        SGD(nesterov=True, weight_decay=0.0),
        lambda: keras.optimizers.SGD(RATE, momentum=0.9, nesterov=True),
    ),
    "adamw": (
        AdamW(weight_decay=0.1, epsilon=NEGLIGIBLE),
        lambda: adamw(weight_decay=0.1, epsilon=NEGLIGIBLE),
    ),
    "keras adamw": (KerasOptimizer("adamw", weight_decay=0.1), lambda: adamw(weight_decay=0.1)),
    "clipped": (
        SGD(weight_decay=0.0),
        lambda: keras.optimizers.SGD(RATE, momentum=0.9, global_clipnorm=0.05),
    ),
}


@pytest.mark.parametrize("case", CASES)
def test_twenty_steps_are_those_of_fit(linear, case):
    optimizer, theirs = CASES[case]
    rate = RATE / 10 if "adamw" in case else RATE
    clip = 0.05 if case == "clipped" else 0.0
    rule = Optimization(optimizer, Constant(), rate, BATCH, warmup_epochs=0, clip_norm=clip)
    experiment = dataclasses.replace(
        linear, model=Dense(), global_batch=BATCH, micro_batch=BATCH, steps=STEPS, optimization=rule
    )
    state, step, stream = made(experiment)
    batches = [next(stream) for _ in range(STEPS)]
    start = [v.numpy() for v in state.trainable]
    rates = [rule.rate_at(s, BATCH, 10 * BATCH, STEPS) for s in range(STEPS)]
    assert rates == pytest.approx([rate] * STEPS)
    losses = [float(step(s, iter(batches[s:]), rates[s])["loss"]) for s in range(STEPS)]

    images, targets = (np.concatenate([batch[i] for batch in batches]) for i in (0, 1))
    model = keras.Sequential([keras.Input(images.shape[1:]), *Dense().blocks(targets.shape[1])])
    model.set_weights(start)
    loss = keras.losses.CategoricalCrossentropy(from_logits=True)
    model.compile(theirs(), loss, jit_compile=False)
    seen = model.fit(images, targets, batch_size=BATCH, shuffle=False, verbose=0)

    moved = {}
    for variable, weight, before in zip(
        model.trainable_variables, state.trainable, start, strict=True
    ):
        expected = variable.numpy()
        distance = np.linalg.norm(weight.numpy() - expected)
        moved[variable.path] = distance / np.linalg.norm(expected - before)
    worst = max(moved.values())
    print(f"\n{case}: 20 steps differ from fit's by {worst:.1e} of a weight's movement")
    assert worst < 2e-5
    assert np.mean(losses) == pytest.approx(seen.history["loss"][0], rel=1e-5)
    assert losses[-1] < losses[0]
