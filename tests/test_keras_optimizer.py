"""Keras' own optimizers by name: the same numbers as in Keras, and the same bits on any layout."""

import dataclasses
import inspect

import keras
import numpy as np
import pytest
import tensorflow as tf
from ranks import SHALLOW, forked, served, succeeded
from steps import made

from app import config
from app.cli import validation
from app.cli.overrides import override
from app.config import Layout, Optimization
from app.errors import UsageError
from app.optimizers import AdamW, KerasOptimizer
from app.optimizers.keras_rules import ELSEWHERE, REFUSED, RULES

STEPS = 5
START = [np.array([[1.0, -2.0, 0.5], [3.0, 4.0, -1.0]]), np.array([1.0, -1.0])]
RATES = [0.1, 0.05, 0.02, 0.3, 0.1]

# Each accepted one as it is, and with what changes its slots or its formula.
CASES = [
    *((name, ()) for name in RULES),
    ("sgd", (("momentum", 0.9),)),
    ("sgd", (("momentum", 0.9), ("nesterov", True))),
    ("rmsprop", (("rho", 0.8), ("momentum", 0.5), ("centered", True), ("epsilon", 1e-3))),
    ("adam", (("amsgrad", True), ("beta_1", 0.5), ("beta_2", 0.7))),
    ("adagrad", (("initial_accumulator_value", 0.7),)),
    ("ftrl", (("l1_regularization_strength", 0.01), ("initial_accumulator_value", 1))),
    ("ftrl", (("l2_shrinkage_regularization_strength", 0.1), ("beta", 0.2))),
]


def theirs(name, arguments, **others):
    given = {n: v if isinstance(v, bool) else float(v) for n, v in arguments}
    return getattr(keras.optimizers, RULES[name].kind)(learning_rate=0.1, **given, **others)


def gradients(step):
    random = np.random.default_rng(step)
    return [tf.constant(random.standard_normal(w.shape), tf.float32) for w in START]


@pytest.mark.fast
@pytest.mark.parametrize("decay", [None, 0.02])
@pytest.mark.parametrize(("name", "arguments"), CASES)
def test_moves_as_in_keras(name, arguments, decay):
    variables = [keras.Variable(w, dtype="float32") for w in START]
    optimizer = theirs(name, arguments, **({} if decay is None else {"weight_decay": decay}))
    optimizer.exclude_from_weight_decay(var_list=variables[1:])
    optimizer.build(variables)

    ours = KerasOptimizer(name, arguments, decay)
    weights = [tf.Variable(w, dtype=tf.float32) for w in START]
    slots = [[tf.Variable(ours.initial(s, w)) for s in ours.slots] for w in weights]

    @tf.function(autograph=False)
    def step(given, rate, count):
        for weight, gradient, own in zip(weights, given, slots, strict=True):
            ours.update(weight, gradient, own, rate, count, None)

    for i, rate in enumerate(RATES):
        optimizer.learning_rate = rate
        optimizer.apply(gradients(i), variables)
        step(gradients(i), tf.constant(rate), tf.constant(i + 1.0))
    for start, weight, variable in zip(START, weights, variables, strict=True):
        assert np.abs(weight - start).max() > 1e-6  # Adadelta's first steps are as small
        np.testing.assert_allclose(weight, variable.numpy(), rtol=1e-6, atol=1e-7)


@pytest.mark.fast
@pytest.mark.parametrize(("name", "arguments"), CASES)
def test_the_table_has_the_slots_and_arguments_of_keras(name, arguments):
    weight = keras.Variable(START[0], dtype="float32", name="w")
    optimizer, created = theirs(name, arguments), {}
    make = optimizer.add_variable_from_reference

    def noted(reference_variable, name=None, initializer="zeros"):
        created[name] = make(reference_variable, name=name, initializer=initializer)
        return created[name]

    optimizer.add_variable_from_reference = noted
    before = {id(v) for v in optimizer.variables}
    optimizer.build([weight])
    ours = KerasOptimizer(name, arguments)
    assert set(ours.slots) == created.keys()
    # There is no other state: none that is shared by weights, none of another shape.
    assert {id(v) for v in optimizer.variables} - before == {id(v) for v in created.values()}
    others = [v for v in vars(optimizer).values() if isinstance(v, keras.Variable)]
    assert {id(v) for v in others} <= before
    for slot, variable in created.items():
        np.testing.assert_array_equal(ours.initial(slot, weight.value), variable.numpy())

    known = inspect.signature(type(optimizer).__init__).parameters.keys() - {"self", "kwargs"}
    assert known == RULES[name].arguments.keys() | (ELSEWHERE.keys() - {"warmup_steps"})
    assert (optimizer.weight_decay or 0.0) == RULES[name].weight_decay


@pytest.mark.fast
def test_every_optimizer_of_keras_is_accepted_or_refused():
    found = [getattr(keras.optimizers, name) for name in dir(keras.optimizers)]
    kinds = [k for k in found if inspect.isclass(k) and issubclass(k, keras.Optimizer)]
    names = {k.__name__.lower() for k in kinds if k is not keras.Optimizer}
    assert names == RULES.keys() | REFUSED.keys()


@pytest.mark.fast
def test_what_keras_does_that_is_refused():
    """The reasons of REFUSED, as experiments."""
    weight, other = (keras.Variable(START[0], dtype="float32") for _ in range(2))
    adafactor = keras.optimizers.Adafactor()
    adafactor.build([weight])
    assert {tuple(v.shape) for v in adafactor.variables} >= {(2,), (3,)}

    nadam = keras.optimizers.Nadam()
    nadam.build([weight, other])
    shared = [v for v in vars(nadam).values() if isinstance(v, keras.Variable)]
    before = nadam._u_product.numpy()
    assert any(v is nadam._u_product for v in shared)
    nadam.update_step(tf.ones([2, 3]), weight, 0.1)  # of a weight
    assert nadam._u_product.numpy() == before
    nadam.apply([tf.ones([2, 3])] * 2, [weight, other])  # of all together
    assert nadam._u_product.numpy() < before


def trained(experiment, layout):
    state, step, batches = made(experiment, layout)
    for i in range(STEPS):
        assert step(i, batches, 0.05)["finite"]
    step.close()
    return state


@pytest.mark.parametrize("name", RULES)
def test_has_the_same_bits_on_one_and_two_stages(shallow, name):
    arguments = (("momentum", 0.9),) if name in ("sgd", "rmsprop") else ()
    rule = Optimization(KerasOptimizer(name, arguments, weight_decay=0.01), warmup_epochs=0)
    experiment = dataclasses.replace(shallow, optimization=rule, steps=STEPS)
    whole = trained(experiment, Layout(exact=True))
    cut = trained(experiment, Layout(stages=2, cut=(2, 2), exact=True))
    assert whole.sha256() == cut.sha256()
    slots = {n for n in whole.state_dict() if n.split("/")[0] in rule.optimizer.slots}
    assert slots and slots <= cut.state_dict().keys()
    for slot in slots:
        np.testing.assert_array_equal(whole.state_dict()[slot], cut.state_dict()[slot])


def test_continues_from_a_checkpoint(shallow, train):
    rule = Optimization(KerasOptimizer("adagrad"), warmup_epochs=0)
    experiment = dataclasses.replace(shallow, optimization=rule)
    whole = train(experiment, "whole")
    train(experiment, "parted", stop_at_step=2)
    assert train(experiment, "parted")["weights_sha256"] == whole["weights_sha256"]
    record = whole["experiment"]["optimization"]
    assert (record["optimizer"], record["name"]) == ("keras", "adagrad")


@pytest.mark.fast
def test_is_set_by_flags(tiny):
    chosen = ["optimization.optimizer=keras", "optimization.name=rmsprop"]
    chosen += ["optimization.arguments=rho:0.95,centered:true"]
    changed = override(tiny, chosen)
    validation.validate(changed, Layout())
    # Weight decay is taken over from SGD, as between any two optimizers.
    expected = KerasOptimizer("rmsprop", (("rho", 0.95), ("centered", True)), 1e-4)
    assert changed.optimization.optimizer == expected
    assert expected.slots == ("velocity", "average_gradient")
    record = config.plain(config.as_dict(changed))["optimization"]
    assert record["arguments"] == [["rho", 0.95], ["centered", True]]
    none = override(changed, ["optimization.weight_decay=none"])
    assert none.optimization.optimizer.weight_decay is None
    back = override(none, ["optimization.optimizer=adamw"])
    assert back.optimization.optimizer == AdamW()  # not with a weight decay of None


@pytest.mark.fast
@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ("name=nadam", "Keras' nadam cannot be taken: it keeps one number for all weights"),
        ("name=Adam", "name must be in lower case, 'adam', not 'Adam'."),
        ("name=rmsprob", "not 'rmsprob' (nearest: rmsprop)."),
        ("arguments=beta1:0.9", "but no argument 'beta1' (nearest: beta_1)."),
        ("arguments=beta_1:1", "beta_1 must be in [0, 1), not 1.0."),
        ("arguments=amsgrad:0.5", "amsgrad must be true or false, not 0.5."),
        ("arguments=epsilon:true", "epsilon must be a number, not True."),
        ("arguments=epsilon:much", "epsilon:much: must be of type float | bool."),
        ("arguments=epsilon", "must have 2 parts with a colon between, not 'epsilon'."),
        ("arguments=clipnorm:1", "set optimization.clip_norm, of all gradients together"),
        ("arguments=weight_decay:0.1", "set optimization.weight_decay, and no_decay"),
        ("weight_decay=-1", "optimization.weight_decay must be at least 0 and finite, not -1.0."),
    ],
)  # fmt: skip
def test_wrong_values_are_named(tiny, settings, message):
    with pytest.raises(UsageError) as caught:
        changed = override(tiny, ["optimization.optimizer=keras", f"optimization.{settings}"])
        validation.validate(changed, Layout())
    assert message in str(caught.value)


@pytest.mark.fast
@pytest.mark.parametrize("name", REFUSED)
def test_the_reason_of_a_refusal_is_said(name):
    with pytest.raises(ValueError, match="cannot be taken: ") as caught:
        KerasOptimizer(name)
    assert REFUSED[name] in str(caught.value)


@pytest.mark.fast
def test_arguments_are_pairs():
    with pytest.raises(ValueError, match="arguments must be pairs of a name and a value"):
        KerasOptimizer("adam", ("beta_1", 0.9))


@pytest.mark.ranks
def test_moves_weights_that_are_on_parameter_servers(tmp_path):
    (tmp_path / "mine.py").write_text(SHALLOW)
    run = ["train", "--experiment=mine.py:tiny", "--set=optimization.optimizer=keras"]
    run += ["--set=optimization.name=adagrad", "--set=optimization.rate_factors=*/kernel:0.5"]
    succeeded(forked(1, tmp_path, *run, "--workdir=one"))
    succeeded(served(2, 2, tmp_path, *run, "--workdir=two", "--set=update.kind=parameter_server"))
    one, two = (
        tf.train.load_checkpoint(str(max((tmp_path / name).glob("checkpoints/step-*")) / "state"))
        for name in ("one", "two")
    )
    names = [n for n in one.get_variable_to_shape_map() if n.startswith(("weights", "accumulator"))]
    assert len(names) > 4
    for name in names:
        found, expected = two.get_tensor(name), one.get_tensor(name)
        np.testing.assert_allclose(found, expected, rtol=2e-4, atol=1e-5, err_msg=name)
