"""Exceptions from weight decay and factors of the learning rate, by patterns of names."""

import dataclasses
import json

import numpy as np
import pytest
import tensorflow as tf
from steps import made

from app import config
from app.cli import validation
from app.cli.overrides import override
from app.config import Layout, Optimization
from app.errors import UsageError
from app.optimizers import LAMB, LARS, SGD, AdamW, KerasOptimizer, Optimizer
from app.schedules import Constant
from app.training import per_weight, step_sums, update
from app.training.state import State

SPEC = tf.TensorSpec([None, 16, 16, 3])
RATE = 0.1
OPTIMIZERS = [
    SGD(momentum=0.0, weight_decay=0.1),
    LARS(momentum=0.0, weight_decay=0.1, trust_coefficient=0.5),
    AdamW(weight_decay=0.1),
    LAMB(weight_decay=0.1),
    KerasOptimizer("adam", weight_decay=0.1),
]


def moves(experiment, **patterns):
    """How far one step moves each weight, by name; the same gradients every time."""
    rule = dataclasses.replace(experiment.optimization, **patterns)
    experiment = dataclasses.replace(experiment, optimization=rule)
    part = State(experiment, SPEC, 7).parts[0]
    random = np.random.default_rng(3)
    values = [random.standard_normal(v.shape).astype(np.float32) for v in part.trainable]
    still = [v.read_value() * experiment.num_micro_batches for v, _ in part.statistics]
    sums = [*map(tf.constant, values), *still, tf.constant([1.0, 2.0])]
    before = [v.numpy() for v in part.trainable]
    each, one = update.norms(part, sums), tf.constant(1.0)
    norm = step_sums.judge(experiment, [each], sums[-1], one)["gradient_norm"]
    move = tf.function(update.move, autograph=False)
    move(experiment, part, sums, each, tf.constant(RATE), one, norm, one)
    after = zip(part.names, part.trainable, before, strict=True)
    return {name: v.numpy() - old for name, v, old in after}


@pytest.fixture
def of(shallow):
    def make(optimizer):
        rule = Optimization(optimizer, Constant())
        return dataclasses.replace(shallow, optimization=rule)

    return make


@pytest.mark.fast
@pytest.mark.parametrize("optimizer", OPTIMIZERS, ids=lambda o: type(o).__name__)
def test_what_is_excluded_moves_as_without_decay(of, optimizer):
    decayed = moves(of(optimizer))
    plain = moves(of(dataclasses.replace(optimizer, weight_decay=0.0)))
    found = moves(of(optimizer), no_decay=("dense*/kernel",))
    (dense,) = [name for name in found if name.startswith("dense") and "kernel" in name]
    (conv,) = [name for name in found if name.startswith("conv") and "kernel" in name]
    assert not np.array_equal(decayed[dense], plain[dense])
    assert not np.array_equal(decayed[conv], plain[conv])
    for name, move in found.items():
        np.testing.assert_array_equal(move, (plain if name == dense else decayed)[name])


@pytest.mark.fast
@pytest.mark.parametrize("optimizer", OPTIMIZERS, ids=lambda o: type(o).__name__)
def test_the_first_factor_that_matches_counts(of, optimizer):
    plain = moves(of(optimizer))
    factors = (("dense/bias", 2.0), ("dense/*", 0.25), ("*bias", 8.0))
    found = moves(of(optimizer), rate_factors=factors)
    by_name = {"dense/bias": 2.0, "dense/kernel": 0.25, "conv2d/bias": 8.0}
    assert by_name.keys() < found.keys()
    for name, move in found.items():  # a power of two changes no bit of the step
        np.testing.assert_allclose(move, by_name.get(name, 1.0) * plain[name], atol=3e-7)
        assert name in by_name or np.array_equal(move, plain[name])


def operations(experiment):
    """The types of all operations of the update, in order."""
    part = State(experiment, SPEC, 7).parts[0]
    values = [v.read_value() for v in part.trainable]
    values += [v.read_value() for v, _ in part.statistics] + [tf.constant([1.0, 2.0])]
    one = tf.constant(1.0)
    graph = tf.function(update.move, autograph=False).get_concrete_function(
        experiment, part, values, update.norms(part, values), one, one, one, one
    ).graph  # fmt: skip
    return [op.type for op in graph.get_operations()]


@pytest.mark.fast
@pytest.mark.parametrize("optimizer", OPTIMIZERS[:3], ids=lambda o: type(o).__name__)
def test_patterns_cost_nothing_where_there_are_none(of, optimizer, monkeypatch):
    """The graph is that of one rule for all weights: no gather, no multiplication more."""
    found = operations(of(optimizer))
    rule = per_weight.Rule(optimizer, None)
    monkeypatch.setattr(per_weight, "rules", lambda _, names: [rule for _ in names])
    monkeypatch.setattr(
        per_weight, "trust_ratios", lambda _, *given: optimizer.trust_ratios(*given)
    )
    assert found == operations(of(optimizer))
    monkeypatch.undo()
    changed = dataclasses.replace(of(optimizer).optimization, rate_factors=(("dense/*", 0.5),))
    with_factor = operations(dataclasses.replace(of(optimizer), optimization=changed))
    assert len(with_factor) > len(found)


@pytest.mark.parametrize(
    ("field", "value"), [("no_decay", ("*ense/kern",)), ("rate_factors", (("dense_1/*", 2.0),))]
)
def test_a_pattern_matches_a_weight(of, train, field, value):
    rule = dataclasses.replace(of(SGD()).optimization, **{field: value})
    pattern = value[0] if field == "no_decay" else value[0][0]
    with pytest.raises(UsageError) as caught:
        train(dataclasses.replace(of(SGD()), optimization=rule))
    message = str(caught.value)
    assert message.startswith(
        f"optimization.{field}: no trained weight has a name like {pattern!r} (nearest: dense/"
    )


def test_patterns_hold_on_any_layout(shallow):
    rule = Optimization(
        LARS(trust_coefficient=0.05, weight_decay=0.1), warmup_epochs=0,
        no_decay=("conv2d/*",), rate_factors=(("dense/*", 0.5), ("conv2d/*", 3.0)),
    )  # fmt: skip
    experiment = dataclasses.replace(shallow, optimization=rule)
    digests = set()
    for layout in (Layout(exact=True), Layout(stages=2, cut=(2, 2), exact=True)):
        state, step, batches = made(experiment, layout)
        for i in range(3):
            step(i, batches, 0.5)
        step.close()
        digests.add(state.sha256())
    assert len(digests) == 1


def test_a_shard_has_the_rule_of_its_whole_weight(sentences):
    name = "layer00/*"
    rule = dataclasses.replace(sentences.optimization, rate_factors=((name, 0.5),))
    experiment = dataclasses.replace(sentences, optimization=rule)
    state, *_ = made(experiment, Layout(tensor=2))
    part = state.parts[0]
    rules = per_weight.rules(rule, part.names)
    assert len(set(part.names)) < len(part.names)
    for own, variable in zip(rules, part.names, strict=True):
        assert own.rate_factor == (0.5 if variable.startswith("layer00/") else None)
    assert {0.5, None} == {own.rate_factor for own in rules}


@pytest.mark.fast
def test_are_set_and_recorded(tiny):
    settings = ["optimization.no_decay=embed*, *[a-c]/kernel"]
    settings += ["optimization.rate_factors=stem/*:0.1,head/a:b:10"]
    changed = override(tiny, settings).optimization
    assert changed.no_decay == ("embed*", "*[a-c]/kernel")
    assert changed.rate_factors == (("stem/*", 0.1), ("head/a:b", 10.0))
    record = config.plain(config.as_dict(changed))
    assert record["rate_factors"] == [["stem/*", 0.1], ["head/a:b", 10.0]]
    # Older runs have neither, and continue.
    assert not {"no_decay", "rate_factors"} & config.as_dict(tiny.optimization).keys()
    assert json.loads(json.dumps(record)) == record
    assert override(tiny, ["optimization.no_decay=[a,b]"]).optimization.no_decay == ("a", "b")


@dataclasses.dataclass(frozen=True)
class Plain(Optimizer):
    def update(self, weight, gradient, slots, rate, count, ratio):
        weight.assign_sub(rate * gradient)


@pytest.mark.fast
@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"rate_factors": (("a", 0.0),)}, "rate_factors must be above 0 and finite (to keep"),
        ({"rate_factors": (("a", float("nan")),)}, "rate_factors must be above 0 and finite"),
        ({"rate_factors": (("a", "b"),)}, "rate_factors must be of type "),
        ({"rate_factors": ("a",)}, "rate_factors must be of type "),
        ({"no_decay": (1,)}, "no_decay must be of type tuple[str, ...], not (1,)."),
        ({"no_decay": ("a",), "optimizer": Plain()}, "no_decay names weights that do not decay"),
    ],
)
def test_wrong_values_are_named(tiny, changes, message):
    rule = dataclasses.replace(tiny.optimization, **changes)
    with pytest.raises(UsageError) as caught:
        validation.validate(dataclasses.replace(tiny, optimization=rule), Layout())
    assert str(caught.value).startswith(f"optimization.{message}")


@pytest.mark.fast
@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("stem/*", "must have 2 parts with a colon between, not 'stem/*'."),
        ("stem/*:fast", "must be a finite number."),
        ("stem/*:inf", "must be a finite number."),
    ],
)
def test_wrong_texts_are_named(tiny, text, message):
    with pytest.raises(UsageError) as caught:
        override(tiny, [f"optimization.rate_factors={text}"])
    assert str(caught.value) == f"optimization.rate_factors={text}: {message}"


@pytest.mark.fast
@pytest.mark.parametrize(
    ("pattern", "name"),
    [
        ("encoder1/*", "encoder01/attention/kernel"),
        ("encoder01/attn*", "encoder01/attention/kernel"),
        ("Head*", "head/bias"),
        ("*/beta", "encoder00/beta"),
    ],
)
def test_the_nearest_name_is_found_by_its_beginning(pattern, name):
    names = ["embeddings/words/table", "encoder00/beta", "encoder01/attention/kernel", "head/bias"]
    assert per_weight.nearest(pattern, names) == name
