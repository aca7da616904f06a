"""Each optimizer's arithmetic against another implementation, its slots, and its bounds."""

import dataclasses
import inspect
import textwrap

import keras
import numpy as np
import pytest
import tensorflow as tf

from app import bounds
from app.cli import validation
from app.config import Layout, Optimization
from app.errors import UsageError
from app.optimizers import LAMB, LARS, OPTIMIZERS, SGD, AdamW, optimizer

pytestmark = pytest.mark.fast

START = [np.array([[1.0, -2.0], [3.0, 4.0]]), np.array([1.0, -1.0])]  # a kernel, a bias
RATES = [0.1, 0.1, 0.05, 0.02, 0.02, 0.01, 0.3, 0.1]


def gradients():
    """A kernel's and a bias's for each of RATES, float64."""
    random = np.random.default_rng(7)
    return [[random.standard_normal(w.shape) for w in START] for _ in RATES]


def moved(optimizer, start=START):
    """The weights after as many steps as there are RATES."""
    weights = [tf.Variable(w, dtype=tf.float32) for w in start]
    slots = [[tf.Variable(optimizer.initial(s, w)) for s in optimizer.slots] for w in weights]
    for step, (rate, each) in enumerate(zip(RATES, gradients(), strict=True)):
        given = [tf.constant(g, tf.float32) for g in each]
        ratios = optimizer.trust_ratios(weights, tf.stack([tf.norm(g) for g in given]))
        for w, beside, g, ratio in zip(weights, slots, given, ratios, strict=True):
            optimizer.update(w, g, beside, tf.constant(rate), tf.constant(step + 1.0), ratio)
    return [w.numpy() for w in weights]


def assert_close(found, expected):
    for a, b in zip(found, expected, strict=True):
        np.testing.assert_allclose(a, b, rtol=2e-5, atol=1e-6)


@pytest.mark.parametrize("nesterov", [False, True])
@pytest.mark.parametrize("kind", [SGD, LARS])
def test_momentum_as_in_its_papers(kind, nesterov):
    expected, momenta = [w.copy() for w in START], [np.zeros_like(w) for w in START]
    for rate, each in zip(RATES, gradients(), strict=True):
        for w, u, g in zip(expected, momenta, each, strict=True):
            step = g.copy()
            if w.ndim > 1:
                step = g + 0.1 * w
                if kind is LARS:
                    norm, size = np.linalg.norm(g), np.linalg.norm(w)
                    step *= 0.02 * size / (norm + 0.1 * size)
            u[...] = 0.9 * u + step
            w -= rate * ((step + 0.9 * u) if nesterov else u)
    own = {"trust_coefficient": 0.02} if kind is LARS else {}
    assert_close(moved(kind(momentum=0.9, nesterov=nesterov, weight_decay=0.1, **own)), expected)


def test_lars_leaves_gradients_of_weights_or_steps_of_no_length_as_they_are():
    weights = [tf.zeros([2, 2]), tf.ones([2, 2]), tf.ones([2, 2]), tf.ones([2])]
    norms = tf.constant([1.0, 0.0, 4.0, 4.0])
    *kernels, bias = LARS(trust_coefficient=0.5, weight_decay=1.0).trust_ratios(weights, norms)
    assert [float(ratio) for ratio in kernels] == pytest.approx([1, 1, 0.5 * 2 / (4 + 2)])
    assert bias is None


@pytest.mark.parametrize("decay", [0.0, 0.3])
@pytest.mark.parametrize("epsilon", [1e-8, 0.1])
def test_adamw_as_in_its_paper(decay, epsilon):
    """arXiv:1711.05101, algorithm 2, with the schedule multiplier in the rate."""
    beta1, beta2 = 0.8, 0.95
    expected = [w.copy() for w in START]
    moments = [(np.zeros_like(w), np.zeros_like(w)) for w in START]
    for t, (rate, each) in enumerate(zip(RATES, gradients(), strict=True), 1):
        for w, (m, v), g in zip(expected, moments, each, strict=True):
            m[...] = beta1 * m + (1 - beta1) * g
            v[...] = beta2 * v + (1 - beta2) * g**2
            corrected, variance = m / (1 - beta1**t), v / (1 - beta2**t)
            decayed = rate * decay * w if w.ndim > 1 else 0
            w -= rate * corrected / (np.sqrt(variance) + epsilon) + decayed
    found = moved(AdamW(momentum=beta1, beta2=beta2, epsilon=epsilon, weight_decay=decay))
    assert_close(found, expected)


def test_adamw_as_keras_has_it():
    """With an epsilon of no effect: Keras adds it before the correction of the moments."""
    variables = [keras.Variable(w, dtype="float32", name=f"w{i}") for i, w in enumerate(START)]
    theirs = keras.optimizers.AdamW(
        weight_decay=0.3, beta_1=0.8, beta_2=0.95, epsilon=1e-12, learning_rate=0.1
    )
    theirs.exclude_from_weight_decay(var_list=variables[1:])
    theirs.build(variables)
    for rate, each in zip(RATES, gradients(), strict=True):
        theirs.learning_rate = rate
        theirs.apply([tf.constant(g, tf.float32) for g in each], variables)
    found = moved(AdamW(momentum=0.8, beta2=0.95, epsilon=1e-12, weight_decay=0.3))
    assert_close(found, [v.numpy() for v in variables])


@pytest.mark.parametrize("decay", [0.0, 0.3])
@pytest.mark.parametrize("epsilon", [1e-6, 0.1])
def test_lamb_as_in_its_paper(decay, epsilon):
    """arXiv:1904.00962, algorithm 2; biases as in the authors' code, without decay and ratio."""
    beta1, beta2 = 0.8, 0.95
    expected = [w.copy() for w in START]
    moments = [(np.zeros_like(w), np.zeros_like(w)) for w in START]
    for t, (rate, each) in enumerate(zip(RATES, gradients(), strict=True), 1):
        for w, (m, v), g in zip(expected, moments, each, strict=True):
            m[...] = beta1 * m + (1 - beta1) * g
            v[...] = beta2 * v + (1 - beta2) * g**2
            r = m / (1 - beta1**t) / (np.sqrt(v / (1 - beta2**t)) + epsilon)
            if w.ndim > 1:
                r += decay * w
                r *= np.linalg.norm(w) / np.linalg.norm(r)
            w -= rate * r
    found = moved(LAMB(momentum=beta1, beta2=beta2, epsilon=epsilon, weight_decay=decay))
    assert_close(found, expected)


def test_lamb_as_keras_has_it():
    """Of kernels: Keras scales the steps of biases too, and adds no decay to what it measures."""
    start = [START[0], START[0] * 3 + 1]
    variables = [keras.Variable(w, dtype="float32", name=f"w{i}") for i, w in enumerate(start)]
    theirs = keras.optimizers.Lamb(learning_rate=0.1, beta_1=0.8, beta_2=0.95, epsilon=1e-3)
    theirs.build(variables)
    for rate, (g, _) in zip(RATES, gradients(), strict=True):
        theirs.learning_rate = rate
        theirs.apply([tf.constant(g, tf.float32)] * 2, variables)
    ours = LAMB(momentum=0.8, beta2=0.95, epsilon=1e-3, weight_decay=0.0)
    for i, variable in enumerate(variables):
        assert_close(moved(ours, [start[i], START[1]])[:1], [variable.numpy()])


def test_lamb_takes_steps_as_adam_does_where_a_length_is_0():
    """A weight of zeros moves; a step of zeros leaves the weight as it is."""
    weights = [tf.Variable(tf.zeros([2, 2])), tf.Variable(tf.ones([2, 2]))]
    for weight, gradient in zip(weights, (2.0, 0.0), strict=True):
        slots = [tf.Variable(tf.zeros([2, 2])) for _ in LAMB.slots]
        gradient = tf.fill([2, 2], gradient)
        rule = LAMB(weight_decay=0.0)
        rule.update(weight, gradient, slots, tf.constant(0.5), tf.constant(1.0), None)
    np.testing.assert_allclose(weights[0], np.full([2, 2], -0.5), rtol=1e-5)
    np.testing.assert_array_equal(weights[1], np.ones([2, 2]))


def test_the_example_of_an_own_optimizer_runs():
    """The one in the module's docstring, as it stands there."""
    lines = inspect.getdoc(optimizer).splitlines()
    code = textwrap.dedent("\n".join(line for line in lines if line.startswith("    ")))
    names = {
        "dataclass": dataclasses.dataclass, "Optimizer": optimizer.Optimizer,
        "NonNegative": bounds.NonNegative, "Optimization": Optimization,
    }  # fmt: skip
    definition, _, use = code.partition("Optimization(")
    exec(f"{definition}rule = Optimization({use}", names)
    expected = [w.copy() for w in START]
    for rate, each in zip(RATES, gradients(), strict=True):
        for w, g in zip(expected, each, strict=True):
            w -= rate * (np.sign(g) + 0.01 * w)
    assert_close(moved(names["rule"].optimizer), expected)


def test_slots_are_what_checkpoints_call_them():
    assert {name: kind.slots for name, kind in OPTIMIZERS.items()} == {
        "sgd": ("momentum",),
        "lars": ("momentum",),
        "adamw": ("first_moment", "second_moment"),
        "lamb": ("first_moment", "second_moment"),
        "keras": (),  # those of the one that it names
    }


BOUNDS = {
    "momentum": ("in [0, 1)", [1.0, -0.1, float("nan")]),
    "beta2": ("in [0, 1)", [1.0, -0.1]),
    "epsilon": ("above 0 and finite", [0.0, float("inf")]),
    "trust_coefficient": ("above 0 and finite", [0.0, float("nan")]),
    "weight_decay": ("at least 0 and finite", [-0.1, float("inf")]),
}


@pytest.mark.parametrize("kind", OPTIMIZERS.values())
def test_each_number_is_kept_to_its_bounds(tiny, kind):
    fields = {f.name for f in dataclasses.fields(kind)} - {"nesterov", "name", "arguments"}
    assert fields <= BOUNDS.keys()
    for name in fields:
        rule, values = BOUNDS[name]
        for value in values:
            rules = Optimization(optimizer=kind(**{name: value}))
            with pytest.raises(UsageError) as caught:
                validation.validate(dataclasses.replace(tiny, optimization=rules), Layout())
            assert str(caught.value) == f"optimization.{name} must be {rule}, not {value}."


@pytest.mark.parametrize("given", ["adamw", AdamW, None])
def test_an_optimizer_is_an_object(tiny, given):
    rules = Optimization(optimizer=given)
    with pytest.raises(UsageError) as caught:
        validation.validate(dataclasses.replace(tiny, optimization=rules), Layout())
    assert str(caught.value) == (
        "optimization.optimizer must be an object such as SGD(), LARS(), AdamW(), LAMB(), "
        f"KerasOptimizer(), or of your own subclass of Optimizer, not {given!r}."
    )
