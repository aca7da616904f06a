"""Losses and weight constraints of blocks count on every layout as a person would write them."""

import dataclasses
from dataclasses import dataclass

import keras
import numpy as np
import pytest
import tensorflow as tf
from steps import made

from app.config import Layout, Optimization
from app.errors import UsageError
from app.optimizers import OPTIMIZERS, SGD
from app.parallel.topology import Topology
from app.schedules import Constant
from app.strategies.local_sgd import LocalSGDStep
from app.training.differentiation import Differentiation, MicroBatch
from app.training.evaluation import Evaluator
from models import ModelError, blocks
from models.shards import Sharded

RATE, STEPS = 0.05, 3
BOTH = keras.regularizers.L1L2(0.03, 0.02)  # two uses of a tensor: their order shows in the bits
LAYOUTS = [
    Layout(),
    Layout(stages=2, cut=(2, 2)),
    Layout(stages=3, cut=(2, 1, 1), schedule="gpipe", recompute=True),
    Layout(stages=2, chunks=2),
    Layout(exact=True),
    Layout(stages=2, cut=(3, 1), exact=True),
]


class Residual(keras.layers.Layer):
    """Uses x twice, adds a loss of its own, and has a regularised layer inside."""

    def __init__(self, **kwargs):
        super().__init__(**kwargs)
        self.inner = keras.layers.Dense(6, activation="tanh", kernel_regularizer=BOTH, name="inner")

    def build(self, shape):
        self.inner.build(shape)

    def call(self, x):
        self.add_loss(0.1 * tf.reduce_mean(tf.square(x)))
        return x + self.inner(x)


@dataclass(frozen=True)
class Regularised:
    """Four blocks; `has_constraint` keeps the columns of the last to a norm of 0.5."""

    has_losses: bool = True
    has_constraint: bool = False

    def blocks(self, num_classes):
        both = BOTH if self.has_losses else None
        least = keras.constraints.MaxNorm(0.5) if self.has_constraint else None
        dense = keras.layers.Dense
        return [
            keras.layers.GlobalAveragePooling2D(name="pool"),
            dense(6, "relu", kernel_regularizer=both, activity_regularizer=both, name="wide"),
            Residual(name="residual") if self.has_losses else dense(6, name="plain"),
            dense(num_classes, bias_regularizer=both, kernel_constraint=least, name="head"),
        ]


@pytest.fixture
def experiment(tiny):
    plain = Optimization(SGD(momentum=0.0, weight_decay=0.0), Constant(), warmup_epochs=0)
    return dataclasses.replace(tiny, model=Regularised(), optimization=plain, steps=STEPS)


def trained(experiment, layout=None):
    """Returns the state after some steps, and each step's loss."""
    state, step, stream = made(experiment, layout)
    return state, [float(step(s, stream, RATE)["loss"]) for s in range(STEPS)]


def by_hand(experiment):
    """Trains by plain gradient descent on the objective as a person would write it."""
    state, _, stream = made(experiment)
    _, wide, residual, head = state.parts[0].blocks
    inner, total, losses = residual.inner, experiment.num_micro_batches, []

    def both(x):
        return 0.03 * tf.reduce_sum(tf.abs(x)) + 0.02 * tf.reduce_sum(tf.square(x))

    for _ in range(STEPS):
        with tf.GradientTape() as tape:
            objective = both(wide.kernel.value) + both(inner.kernel.value) + both(head.bias.value)
            for _ in range(total):
                x, targets, _ = next(stream)
                x = tf.reduce_mean(x, [1, 2])
                x = tf.nn.relu(x @ wide.kernel.value + wide.bias.value)
                added = both(x) / len(x) + 0.1 * tf.reduce_mean(tf.square(x))
                x = x + tf.tanh(x @ inner.kernel.value + inner.bias.value)
                x = x @ head.kernel.value + head.bias.value
                mean = tf.reduce_mean(tf.nn.softmax_cross_entropy_with_logits(targets, x))
                objective += (mean + added) / total
        losses.append(float(objective))
        gradients = tape.gradient(objective, state.trainable)
        for variable, gradient in zip(state.trainable, gradients, strict=True):
            variable.assign_sub(RATE * gradient)
    return state, losses


@pytest.mark.parametrize("layout", LAYOUTS, ids=str)
def test_the_objective_is_what_a_person_would_write(experiment, layout):
    expected, losses = by_hand(experiment)
    state, found = trained(experiment, layout)
    np.testing.assert_allclose(found, losses, rtol=1e-5)
    for name, value in expected.weights.items():
        np.testing.assert_allclose(state.weights[name], value, atol=2e-6, err_msg=name)


def test_exact_has_the_same_bits_for_any_cut(experiment):
    found = set()
    for cut in ((4,), (2, 2), (3, 1), (2, 1, 1)):
        layout = Layout(stages=len(cut), cut=cut, exact=True, recompute=len(cut) == 3)
        state, losses = trained(experiment, layout)
        found.add((state.sha256(), *losses))
    assert len(found) == 1


def test_the_loss_scale_scales_what_blocks_add(experiment):
    half = dataclasses.replace(experiment, precision="float16")
    for layout in (Layout(), Layout(stages=2, cut=(2, 2))):
        expected, losses = trained(experiment, layout)
        state, found = trained(half, layout)
        assert float(state.loss_scale) == 2.0**15
        np.testing.assert_allclose(found, losses, rtol=1e-2)
        for name, value in expected.weights.items():
            np.testing.assert_allclose(state.weights[name], value, atol=2e-3, err_msg=name)


def test_a_worker_of_a_parameter_server_adds_them_of_the_weights_it_has_read(experiment):
    state, _, stream = made(experiment)
    inputs, targets, _ = next(stream)
    model = Differentiation(experiment, state, 0)
    micro_batch = MicroBatch(tf.constant(0, tf.int64), targets, tf.constant(1.0))

    @tf.function(autograph=False)
    def values(weights):
        _, record = model.forward(inputs, micro_batch, weights)
        return [tf.convert_to_tensor(v) for v in model.backward(record, micro_batch)[1]]

    expected = values(())
    kept = [v.numpy() for v in state.trainable]
    for variable in state.trainable:
        variable.assign(tf.zeros_like(variable))  # others wrote meanwhile
    for a, b in zip(values(kept), expected, strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-7)


def test_local_steps_add_them_once_each(experiment):
    """A process that steps by its own mean has the objective of its own examples."""
    local = dataclasses.replace(experiment.update, kind="local_sgd", local_steps=2)
    averaging = dataclasses.replace(experiment, update=local)
    state, step, stream = made(averaging, Layout(processes=2), range(3))
    assert isinstance(step, LocalSGDStep)
    step(0, stream, RATE)
    own = dataclasses.replace(experiment, global_batch=experiment.global_batch // 2)
    expected, step, stream = made(own)
    step(0, stream, RATE)
    for name, value in expected.weights.items():
        np.testing.assert_allclose(state.weights[name], value, atol=1e-6, err_msg=name)


def test_evaluation_is_the_cross_entropy_without_losses_of_blocks(experiment):
    state, _, _ = made(experiment)
    data = experiment.data.open("")
    found = Evaluator(experiment, state, data, Topology())()
    entropies = []
    for inputs, targets, weights in data.evaluation(4, range(data.num_evaluation)):
        logits = np.asarray(state.outputs(inputs), np.float64)
        logs = np.log(np.exp(logits).sum(-1)) - (logits * np.asarray(targets)).sum(-1)
        entropies += logs[np.asarray(weights) > 0].tolist()
    assert found["loss"] == pytest.approx(np.mean(entropies), rel=1e-5)


@pytest.mark.parametrize("optimizer", ["sgd", "lars", "adamw"])
@pytest.mark.parametrize("layout", [Layout(), Layout(stages=2), Layout(exact=True)], ids=str)
def test_weights_keep_to_their_constraints(experiment, optimizer, layout):
    rule = OPTIMIZERS[optimizer](momentum=0.0, weight_decay=0.0)
    rule = dataclasses.replace(experiment.optimization, optimizer=rule)
    experiment = dataclasses.replace(experiment, optimization=rule)
    norms = []
    for has in (False, True):
        model = Regularised(has_losses=False, has_constraint=has)
        state, _ = trained(dataclasses.replace(experiment, model=model), layout)
        norms.append(np.linalg.norm(state.weights["head/kernel"], axis=0))
    assert norms[0].max() > 0.6 and norms[1].max() <= 0.5 and norms[1].min() > 0.1


def test_a_step_that_is_skipped_moves_no_weight_to_its_constraint(experiment):
    model = Regularised(has_losses=False, has_constraint=True)
    experiment = dataclasses.replace(experiment, model=model)
    state, step, stream = made(experiment)
    bias, kernel = state.weights["head/bias"], state.weights["head/kernel"]
    bias.assign(np.nan * bias)
    assert np.linalg.norm(kernel, axis=0).max() > 0.5
    before = state.sha256()
    assert not step(0, stream, RATE)["finite"]
    assert state.sha256() == before


def test_means_of_a_round_keep_to_the_constraints(experiment, monkeypatch):
    model = Regularised(has_losses=False, has_constraint=True)
    local = dataclasses.replace(experiment.update, kind="local_sgd", local_steps=1, outer_rate=2.0)
    experiment = dataclasses.replace(experiment, model=model, update=local)
    state, step, _ = made(experiment, Layout(processes=2), range(3))
    head = state.weights["head/kernel"]
    head.assign(tf.ones_like(head))
    step._average()  # of one process: the move there counts twice
    np.testing.assert_allclose(np.linalg.norm(head, axis=0), 0.5, rtol=1e-5)
    before = dict(zip(state.parts[0].names, step.before, strict=True))["head/kernel"]
    assert np.array_equal(before, head)


class Piece(keras.layers.Layer):
    """Some of the columns of one matrix, and the rows of the next."""

    def __init__(self, items, name, **extra):
        super().__init__(name=name)
        self.inner = keras.layers.Dense(len(items), use_bias=False, name="inner", **extra)
        self.outer = keras.layers.Dense(6, use_bias=False, name="outer")

    def build(self, shape):
        self.inner.build(shape)
        self.outer.build((None, self.inner.units))

    def call(self, x):
        return self.outer(self.inner(x))


@dataclass(frozen=True)
class Split:
    """A sum of shards that have what `extra` says, before a layer that is not split."""

    extra: str = ""

    def blocks(self, num_classes, shards=1):
        extra = {self.extra: "max_norm" if "constraint" in self.extra else BOTH}
        extra = extra if self.extra else {}
        return [
            keras.layers.GlobalAveragePooling2D(name="pool"),
            Sharded(lambda i, name: Piece(i, name, **extra), 4, shards, name="shared"),
            keras.layers.Dense(num_classes, kernel_regularizer=BOTH, name="head"),
        ]


@pytest.mark.parametrize(
    ("extra", "message"),
    [
        ("kernel_regularizer", "regularizer or other loss"),
        ("activity_regularizer", "regularizer or other loss"),
        ("kernel_constraint", "constraint"),
    ],
)
def test_what_needs_all_of_a_split_weight_is_refused_by_name(experiment, extra, message):
    experiment = dataclasses.replace(experiment, model=Split(extra))
    made(experiment)  # whole it is fine
    with pytest.raises((ModelError, UsageError), match=f"shared have a {message}.*--tensor"):
        made(experiment, Layout(tensor=2))


def test_what_is_not_split_may_have_losses_beside_what_is(experiment):
    experiment = dataclasses.replace(experiment, model=Split())
    expected, losses = trained(experiment)
    state, found = trained(experiment, Layout(tensor=2))
    np.testing.assert_allclose(found, losses, rtol=1e-5)
    for name, value in expected.weights.items():
        np.testing.assert_allclose(state.weights[name].numpy(), value, atol=1e-6, err_msg=name)


def test_losses_that_no_gradient_would_reach_are_refused():
    class Numbers(keras.layers.Layer):
        def call(self, x):
            self.add_loss(tf.reduce_sum(x))
            return tf.argmax(x, -1)

    with pytest.raises(ModelError, match="numbers adds to the loss"):
        blocks.build([Numbers(name="numbers")], tf.zeros([2, 3]), 0)
