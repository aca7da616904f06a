"""Frozen weights keep their values on every layout, and cost neither gradients nor slots."""

import dataclasses
from dataclasses import dataclass

import keras
import numpy as np
import pytest
from steps import made

from app import config
from app.cli import overrides
from app.config import Layout, Optimization
from app.errors import UsageError
from app.optimizers import LARS, SGD, AdamW
from app.schedules import Constant
from models import ModelError
from models.normalization import BatchNormalization
from models.shards import Sharded

RATE, STEPS = 0.05, 3
LAYOUTS = [
    Layout(),
    Layout(stages=3, cut=(3, 1, 2)),
    Layout(stages=2, cut=(4, 2), recompute=True),
    Layout(exact=True),
    Layout(stages=2, cut=(4, 2), exact=True),
]


@dataclass(frozen=True)
class Frozen:
    """A stock and an own normalisation, in blocks that are easy to name."""

    def blocks(self, num_classes):
        return [
            keras.layers.Conv2D(6, 3, strides=4, name="convolution"),
            BatchNormalization(name="own"),
            keras.layers.BatchNormalization(name="stock"),
            keras.layers.GlobalAveragePooling2D(name="pool"),
            keras.layers.Dense(6, kernel_regularizer="l2", name="wide"),
            keras.layers.Dense(num_classes, name="head"),
        ]


@pytest.fixture
def experiment(tiny):
    plain = Optimization(SGD(), Constant(), warmup_epochs=0, ema_decay=0.5)
    return dataclasses.replace(tiny, model=Frozen(), optimization=plain, steps=STEPS)


def trained(experiment, layout=None):
    state, step, stream = made(experiment, layout)
    before = {name: v.numpy() for name, v in state.weights.items()}
    losses = [float(step(s, stream, RATE)["loss"]) for s in range(STEPS)]
    moved = {name for name, v in state.weights.items() if not np.array_equal(v, before[name])}
    return state, losses, moved


@pytest.mark.parametrize("layout", LAYOUTS, ids=str)
@pytest.mark.parametrize("optimizer", [SGD(), LARS(), AdamW()], ids=lambda o: type(o).__name__)
def test_only_what_is_not_frozen_moves(experiment, layout, optimizer):
    rule = dataclasses.replace(experiment.optimization, optimizer=optimizer)
    base = dataclasses.replace(experiment, optimization=rule)
    frozen = dataclasses.replace(base, frozen=("convolution/*", "own/*", "stock/*", "*/bias"))
    state, _, moved = trained(frozen, layout)
    assert moved == {"wide/kernel", "head/kernel"}
    names = {name for name in state.state_dict() if name.startswith(optimizer.slots[0])}
    assert names == {f"{optimizer.slots[0]}/{name}" for name in moved}
    assert len(state.weights) == 2 + 4 + 4 + 2 + 2


def test_any_layout_trains_the_same(experiment):
    frozen = dataclasses.replace(experiment, frozen=("convolution/*", "own/*", "stock/gamma"))
    expected, losses, _ = trained(frozen)
    for layout in LAYOUTS[1:3]:
        state, found, _ = trained(frozen, layout)
        np.testing.assert_allclose(found, losses, rtol=1e-5)
        for name, value in expected.weights.items():
            np.testing.assert_allclose(state.weights[name], value, atol=2e-6, err_msg=name)
    digests = {trained(frozen, layout)[0].sha256() for layout in LAYOUTS[3:]}
    assert len(digests) == 1


def test_local_steps_exchange_nothing_that_is_frozen(experiment):
    rule = dataclasses.replace(experiment.update, kind="local_sgd", local_steps=2)
    frozen = dataclasses.replace(experiment, frozen=("convolution/*", "own/*"), update=rule)
    state, step, _ = made(frozen, Layout(processes=2), range(3))
    own = {id(v): name for name, v in state.weights.items()}
    found = [own[id(v)] for v in step._averaged() if id(v) in own]
    assert found == [n for n in state.weights if not n.startswith(("convolution/", "own/"))]


def test_averages_stand_still_only_with_the_whole_layer(experiment):
    partly = dataclasses.replace(experiment, frozen=("stock/gamma", "own/beta"))
    _, _, moved = trained(partly)
    assert {"stock/moving_mean", "own/moving_mean", "stock/beta", "own/gamma"} < moved
    assert not {"stock/gamma", "own/beta"} & moved


def test_a_frozen_normalisation_normalises_by_its_averages(experiment):
    frozen = dataclasses.replace(experiment, frozen=("own/*", "stock/*"))
    state, _, _ = made(frozen)
    for block in state.parts[0].blocks[1:3]:
        x = np.random.default_rng(0).normal(3, 2, [4, 2, 2, 6]).astype(np.float32)
        np.testing.assert_allclose(block(x, training=True), x, atol=2e-2)


@pytest.mark.parametrize(
    ("patterns", "message"),
    [
        (("heed/*",), "'heed/\\*' matches none.*nearest: head/"),
        (("*",), "frozen=\\* freezes all 14 weights"),
    ],
)
def test_wrong_patterns_are_refused(experiment, patterns, message):
    with pytest.raises((ModelError, UsageError), match=message):
        made(dataclasses.replace(experiment, frozen=patterns))


@dataclass(frozen=True)
class Split:
    def blocks(self, num_classes, shards=1):
        def piece(items, name):
            return keras.Sequential(
                [
                    keras.layers.Dense(len(items), use_bias=False, name="inner"),
                    keras.layers.Dense(6, use_bias=False, name="outer"),
                ],
                name=name,
            )

        return [
            keras.layers.GlobalAveragePooling2D(name="pool"),
            Sharded(piece, 4, shards, name="shared"),
            keras.layers.Dense(num_classes, name="head"),
        ]


def test_shards_are_frozen_by_the_name_of_the_whole(experiment):
    frozen = dataclasses.replace(experiment, model=Split(), frozen=("shared/inner/kernel",))
    for layout in (Layout(), Layout(tensor=2)):
        state, step, stream = made(frozen, layout)
        before = {name: v.numpy() for name, v in state.weights.items()}
        step(0, stream, RATE)
        moved = {n for n, v in state.weights.items() if not np.array_equal(v.numpy(), before[n])}
        assert moved == {"shared/outer/kernel", "head/kernel", "head/bias"}


def test_patterns_are_set_and_recorded(experiment):
    assert "frozen" not in config.as_dict(experiment)
    found = overrides.override(experiment, ["frozen=stem/*,*/bias"])
    assert found.frozen == ("stem/*", "*/bias")
    assert config.as_dict(found)["frozen"] == ["stem/*", "*/bias"]
