import dataclasses

import pytest

from app import experiments
from app.cli import validation
from app.cli.overrides import override
from app.config import Layout
from app.errors import DataError, UsageError

pytestmark = pytest.mark.fast


def test_settings_are_typed(tiny):
    settings = [
        "global_batch=32",
        "data.mixup=0.2",
        "optimization.nesterov=true",
        "model.stem=cifar",
    ]
    changed = override(tiny, [*settings, "optimization.decay_epochs=1,2.5"])
    assert changed.global_batch == 32
    assert changed.data.mixup == 0.2
    assert changed.optimization.nesterov is True
    assert changed.optimization.decay_epochs == (1.0, 2.5)
    assert changed.model.stem == "cifar"


def test_the_length_given_last_wins(tiny):
    changed = override(tiny, ["epochs=2"])
    assert (changed.steps, changed.epochs) == (None, 2.0)
    assert changed.total_steps(101) == 9  # 2 x 101 / 24, rounded up


@pytest.mark.parametrize(
    ("setting", "message"),
    [
        ("global_bach=3", "nearest: global_batch"),
        ("optimization.momentun=3", "nearest: optimization.momentum"),
        ("optimization=3", "optimization.*"),
        ("seed.x=3", "nearest: seed"),
        ("global_batch=2.5", "must be of type int"),
        ("precision=float8", "must be one of float32, bfloat16, float16"),
        ("model.depth=51", "must be one of 18, 34, 50"),
        ("seed", "needs field=value"),
    ],
)
def test_a_wrong_setting_says_what_is_right(tiny, setting, message):
    with pytest.raises(UsageError) as caught:
        override(tiny, [setting])
    assert message in str(caught.value)


@pytest.mark.parametrize(
    ("change", "processes", "message"),
    [
        ({"global_batch": 25}, 1, "set global_batch=24 or 28"),
        ({}, 7, "at most 6 processes"),
        ({"steps": 0}, 1, "steps must be more than 0"),
        ({"epochs": 1.0}, 1, "either steps or epochs"),
        ({"micro_batch": 0}, 1, "micro_batch must be at least 1"),
        ({"seed": -1}, 1, "seed must be in"),
    ],
)
def test_an_impossible_experiment_is_refused(tiny, change, processes, message):
    with pytest.raises(UsageError) as caught:
        validation.validate(dataclasses.replace(tiny, **change), Layout(processes))
    assert message in str(caught.value)


def test_exact_refuses_compression(tiny):
    compressed = override(tiny, ["update.compression=float16"])
    validation.validate(compressed, Layout())
    with pytest.raises(UsageError, match="--exact"):
        validation.validate(compressed, Layout(exact=True))


def test_fewer_examples_than_a_global_batch(tiny):
    with pytest.raises(DataError, match="23 examples, fewer than one global batch"):
        validation.validate_size(tiny, 23)


def test_an_unknown_experiment_names_the_nearest():
    with pytest.raises(UsageError, match="did you mean resnet50_digits"):
        experiments.load("resnet50_digit")


def test_settings_are_applied_together(sentences):
    for settings in (["model.width=30", "model.heads=3"], ["model.heads=3", "model.width=30"]):
        assert override(sentences, settings).model.heads == 3
    assert override(sentences, ["epochs=2", "steps=3"]).epochs is None
    assert override(sentences, ["steps=3", "epochs=2"]).steps is None
    with pytest.raises(UsageError, match=r"model\.width=31: .*multiple of heads \(2\)"):
        override(sentences, ["model.width=31"])
