"""Stock Keras layers with random and moving state compute the same on every layout."""

import dataclasses
from dataclasses import dataclass

import keras
import numpy as np
import pytest
import tensorflow as tf
from steps import made

from app.config import Layout, Optimization
from app.optimizers import SGD
from app.schedules import Constant
from app.training import update
from models import ModelError, blocks, stateful

RATE, STEPS, MOMENTUM, DROPPED, NOISE = 0.05, 3, 0.8, 0.4, 0.3


class Nested(keras.layers.Layer):
    """Holds layers that need `training`, and takes none itself."""

    def __init__(self, **kwargs):
        super().__init__(**kwargs)
        self.inner = keras.Sequential(
            [
                keras.layers.Dense(6, name="dense"),
                keras.layers.BatchNormalization(momentum=MOMENTUM, name="normalization"),
                keras.layers.Dropout(DROPPED),
            ],
            name="inner",
        )
        self.noise = keras.layers.GaussianNoise(NOISE)

    def build(self, shape):
        self.inner.build(shape)
        self.factor = self.add_weight(
            name="factor", shape=(), initializer=keras.initializers.Constant(0.5), trainable=False
        )

    def call(self, x):
        return self.inner(x) * self.factor + self.noise(x)


@dataclass(frozen=True)
class Stock:
    """Normalisation and dropout as blocks, and inside a block."""

    def blocks(self, num_classes):
        return [
            keras.layers.Conv2D(6, 3, strides=4, name="convolution"),
            keras.layers.BatchNormalization(momentum=MOMENTUM, name="normalization"),
            keras.layers.GlobalAveragePooling2D(name="pool"),
            Nested(name="nested"),
            keras.layers.Dropout(DROPPED, name="dropout"),
            keras.layers.Dense(num_classes, name="head"),
        ]


@pytest.fixture
def experiment(tiny):
    plain = Optimization(SGD(momentum=0.0, weight_decay=0.0), Constant(), warmup_epochs=0)
    return dataclasses.replace(tiny, model=Stock(), optimization=plain, steps=STEPS)


def trained(experiment, layout=None):
    state, step, stream = made(experiment, layout)
    return state, [float(step(s, stream, RATE)["loss"]) for s in range(STEPS)]


def drawn(experiment, number, place, generator):
    """Returns what Keras draws from: of the seed, the micro-batch, the block, the generator."""
    fold = tf.random.experimental.stateless_fold_in
    seed = fold(tf.constant([experiment.seed, number], tf.int32), 0)
    key = fold(fold(seed, place), 2**20 + generator).numpy().astype(np.uint32)
    return (key.astype(np.int64) % (2**31 - 2)).astype(np.int32)


def dropped(x, rate, seed):
    """Dropout by its definition, from Keras' own kernel's mask."""
    mask = tf.nn.experimental.stateless_dropout(tf.ones_like(x), rate, seed=seed) > 0
    return tf.where(mask, x / (1 - rate), 0.0)


def normalized(x, weights, name, axes, moved):
    mean, variance = tf.nn.moments(x, axes)
    for statistic, value in (("moving_mean", mean), ("moving_variance", variance)):
        moved.setdefault(f"{name}/{statistic}", []).append(value)
    x = (x - mean) / tf.sqrt(variance + 1e-3)
    return x * weights[f"{name}/gamma"] + weights[f"{name}/beta"]


def by_hand(experiment):
    """Trains as a person would write it, with every mask and moving average by its definition."""
    state, _, stream = made(experiment)
    weights, total, losses = state.weights, experiment.num_micro_batches, []
    for step in range(STEPS):
        moved = {}
        with tf.GradientTape() as tape:
            objective = 0.0
            for place in range(total):
                x, targets, _ = next(stream)
                number = step * total + place
                x = tf.nn.conv2d(x, weights["convolution/kernel"], 4, "VALID")
                x = x + weights["convolution/bias"]
                x = normalized(x, weights, "normalization", [0, 1, 2], moved)
                x = tf.reduce_mean(x, [1, 2])
                noise = tf.random.stateless_normal(x.shape, drawn(experiment, number, 3, 1))
                dense, y = "nested/inner/dense", x
                y = y @ weights[f"{dense}/kernel"] + weights[f"{dense}/bias"]
                y = normalized(y, weights, "nested/inner/normalization", [0], moved)
                y = dropped(y, DROPPED, drawn(experiment, number, 3, 0))
                x = 0.5 * y + x + NOISE * noise
                x = dropped(x, DROPPED, drawn(experiment, number, 4, 0))
                x = x @ weights["head/kernel"] + weights["head/bias"]
                each = tf.nn.softmax_cross_entropy_with_logits(targets, x)
                objective += tf.reduce_mean(each) / total
        losses.append(float(objective))
        gradients = tape.gradient(objective, state.trainable)
        for variable, gradient in zip(state.trainable, gradients, strict=True):
            variable.assign_sub(RATE * gradient)
        for name, values in moved.items():
            mean = sum(values) / total
            weights[name].assign(MOMENTUM * weights[name] + (1 - MOMENTUM) * mean)
    return state, losses


LAYOUTS = [
    Layout(),
    Layout(stages=2, cut=(2, 4)),
    Layout(stages=3, cut=(3, 1, 2), recompute=True),
    Layout(stages=2, chunks=2),
    Layout(exact=True),
]


@pytest.fixture(scope="module")
def expected():
    return {}


@pytest.mark.parametrize("layout", LAYOUTS, ids=str)
def test_masks_and_moving_averages_are_what_a_person_would_write(experiment, expected, layout):
    if not expected:
        expected["state"], expected["losses"] = by_hand(experiment)
    state, losses = trained(experiment, layout)
    np.testing.assert_allclose(losses, expected["losses"], rtol=1e-5)
    for name, value in expected["state"].weights.items():
        np.testing.assert_allclose(state.weights[name], value, atol=3e-6, err_msg=name)


def test_exact_has_the_same_bits_for_any_cut(experiment):
    found = set()
    for cut in ((6,), (2, 4), (1, 3, 2)):
        layout = Layout(stages=len(cut), cut=cut, exact=True, recompute=len(cut) == 3)
        state, losses = trained(experiment, layout)
        found.add((state.sha256(), *losses))
    assert len(found) == 1


def test_states_of_generators_are_no_weights(experiment):
    state, _, _ = made(experiment)
    assert len(state.weights) == 4 + 4 + 2 + 4 + 1
    assert not [name for name in state.state_dict() if "seed" in name]


def test_outside_training_nothing_is_drawn_or_moved(experiment):
    state, _ = trained(experiment)
    before = state.sha256()
    inputs = tf.random.stateless_normal([4, 16, 16, 3], [1, 2])
    a, b = state.outputs(inputs), state.outputs(inputs)
    assert np.array_equal(a, b) and state.sha256() == before
    x = inputs
    for block in state.parts[0].blocks:  # as Keras computes it
        x = block(x, training=False)
    np.testing.assert_allclose(a, x, atol=1e-6)


def test_building_leaves_moving_averages_at_their_initial_values(experiment):
    state, _, _ = made(experiment)
    assert np.array_equal(state.weights["normalization/moving_mean"], np.zeros(6))
    assert np.array_equal(state.weights["normalization/moving_variance"], np.ones(6))


def test_a_constant_is_a_weight_that_stays(experiment):
    state, _ = trained(experiment)
    assert float(state.weights["nested/factor"]) == 0.5
    assert len(state.parts[0].statistics) == 4


class Ordered(keras.layers.Layer):
    """Puts features into an order that is a weight of integers."""

    def build(self, shape):
        def descending(shape, dtype):
            return tf.range(shape[0])[::-1]

        self.order = self.add_weight(
            name="order", shape=(shape[-1],), dtype="int32", trainable=False, initializer=descending
        )

    def call(self, x):
        return tf.gather(x, self.order.value, axis=-1)


@dataclass(frozen=True)
class Reversed:
    def blocks(self, num_classes):
        ordered = Ordered(name="ordered")
        return [
            keras.layers.GlobalAveragePooling2D(name="pool"),
            ordered,
            keras.layers.Dense(num_classes, name="head"),
        ]


@pytest.mark.parametrize("layout", [Layout(), Layout(stages=2, cut=(2, 1), exact=True)], ids=str)
def test_a_table_of_integers_is_a_weight_beside_averages(experiment, layout):
    rule = dataclasses.replace(experiment.optimization, ema_decay=0.5)
    tables = dataclasses.replace(experiment, model=Reversed(), optimization=rule)
    state, _ = trained(tables, layout)
    assert np.array_equal(state.weights["ordered/order"], [2, 1, 0])
    with state.averaged():
        assert np.array_equal(state.weights["ordered/order"], [2, 1, 0])


def test_with_momentum_0_an_infinite_old_value_is_forgotten(experiment):
    state, _, _ = made(experiment)
    mean = state.weights["normalization/moving_mean"]
    mean.assign(np.inf * tf.ones_like(mean))
    totals = [tf.ones_like(variable) for variable, _ in state.parts[0].statistics]
    update.follow(state.parts[0], totals, 2)
    assert np.array_equal(mean, np.full(6, 0.5))


class Assigning(keras.layers.Layer):
    """Assigns a weight of this type in its call."""

    def __init__(self, dtype, trainable=False, value="zeros", **kwargs):
        super().__init__(**kwargs)
        self.kind = {"dtype": dtype, "trainable": trainable, "initializer": value}

    def build(self, shape):
        self.seen = self.add_weight(name="seen", shape=(), **self.kind)

    def call(self, x):
        self.seen.assign(1 - keras.ops.cast(self.seen, "int32"))
        return x


class Drawing(keras.layers.Layer):
    def call(self, x):
        return x + keras.random.normal(keras.ops.shape(x))


class Hidden(keras.layers.Layer):
    def call(self, x):
        if not hasattr(self, "kept"):
            secret = tf.Variable(1.0, name="secret")
            self.kept = [lambda: secret]
        return x * self.kept[0]()


@pytest.mark.parametrize(
    ("block", "message"),
    [
        (lambda: Assigning("int32", name="counter"), "counter/seen of type int32.*float32"),
        (lambda: Assigning("bool", value="ones", name="flag"), "flag/seen of type bool.*float32"),
        (lambda: Assigning("float32", True, name="self"), "self/seen, which is a trainable weight"),
        (lambda: Drawing(name="drawing"), "drawing draws.*global generator.*SeedGenerator"),
        (lambda: Hidden(name="hidden"), "hidden makes the variable 'secret',.*add_weight"),
    ],
)
def test_what_cannot_be_averaged_is_refused_by_name(block, message):
    with pytest.raises(ModelError, match=message):
        blocks.build([block()], tf.zeros([2, 3]), 0)


LAYERS = {
    "dropout": lambda: keras.layers.Dropout(0.5),
    "spatial": lambda: keras.layers.SpatialDropout1D(0.5),
    "gaussian": lambda: keras.layers.GaussianDropout(0.5),
    "alpha": lambda: keras.layers.AlphaDropout(0.5),
    "noise": lambda: keras.layers.GaussianNoise(0.5),
    "lstm": lambda: keras.layers.LSTM(3, dropout=0.5, recurrent_dropout=0.5, return_sequences=True),
    "gru": lambda: keras.layers.Bidirectional(keras.layers.GRU(3, dropout=0.5)),
    "stacked": lambda: keras.layers.RNN(
        [keras.layers.SimpleRNNCell(3, dropout=0.5), keras.layers.LSTMCell(2, dropout=0.3)]
    ),
    "distributed": lambda: keras.layers.TimeDistributed(keras.layers.Dropout(0.5)),
    "attention": lambda: Attending(),
    "flip": lambda: keras.Sequential(
        [
            keras.layers.Reshape((4, 2, 3)),
            keras.layers.RandomFlip(),
            keras.layers.RandomRotation(0.3),
        ]
    ),
    "contrast": lambda: keras.Sequential(
        [keras.layers.Reshape((4, 2, 3)), keras.layers.RandomContrast(0.5)]
    ),
}


class Attending(keras.layers.Layer):
    def __init__(self, **kwargs):
        super().__init__(**kwargs)
        self.attention = keras.layers.MultiHeadAttention(2, 3, dropout=0.5)

    def build(self, shape):
        self.attention.build(shape, shape)

    def call(self, x):
        return self.attention(x, x)


@pytest.mark.parametrize("name", LAYERS)
def test_stock_layers_draw_as_a_function_of_the_micro_batch(name):
    x = tf.random.stateless_uniform([4, 6, 4], [3, 4])
    block = LAYERS[name]()
    blocks.build([block], x, 0)
    assert stateful.seed_states(block)

    @tf.function(autograph=False)
    def run(seed, training):
        return blocks.forward([block], x, training, seed)

    first, other = tf.constant([1, 2]), tf.constant([1, 3])
    once, again, different = run(first, True), run(first, True), run(other, True)
    assert np.array_equal(once, again)
    assert not np.allclose(once, different)
    assert np.array_equal(run(first, False), run(other, False))
