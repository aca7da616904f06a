import dataclasses
import json

import pytest

from app import config, experiments
from app.cli import validation, workdir
from app.cli.overrides import override
from app.config import Layout, Optimization
from app.errors import DataError, UsageError
from app.optimizers import LARS, SGD, AdamW
from app.schedules import SCHEDULES, Linear, Steps

pytestmark = pytest.mark.fast


def test_settings_are_typed(tiny):
    settings = [
        "global_batch=32",
        "data.mixup=0.2",
        "model.stem=cifar",
    ]
    changed = override(tiny, [*settings, "optimization.clip_norm=1"])
    assert changed.global_batch == 32
    assert changed.data.mixup == 0.2
    assert changed.optimization.clip_norm == 1.0
    assert changed.model.stem == "cifar"


def test_fields_of_what_is_chosen_are_set_beside_it(tiny):
    """In any order, and only those that the chosen one has."""
    settings = ["optimization.beta2=0.99", "optimization.optimizer=adamw"]
    settings += ["optimization.decay_epochs=1,2.5", "optimization.schedule=steps"]
    for given in (settings, settings[::-1]):
        rule = override(tiny, given).optimization
        assert rule.optimizer == AdamW(beta2=0.99)
        assert rule.schedule == Steps(decay_epochs=(1.0, 2.5))
    assert override(tiny, ["optimization.nesterov=true"]).optimization.optimizer == SGD(
        nesterov=True
    )


def test_what_is_chosen_keeps_the_values_that_the_one_before_had(tiny):
    strong = override(tiny, ["optimization.weight_decay=0.01", "optimization.nesterov=true"])
    changed = override(strong, ["optimization.optimizer=lars", "optimization.momentum=0.8"])
    expected = LARS(momentum=0.8, nesterov=True, weight_decay=0.01)
    assert changed.optimization.optimizer == expected
    again = override(changed, ["optimization.optimizer=lars"])  # by its own name
    assert again == changed


OLD = {
    "optimizer": "sgd", "learning_rate": 0.1, "reference_batch": 256, "schedule": "cosine",
    "warmup_epochs": 0, "decay_epochs": [30.0, 60.0, 80.0], "decay_factor": 0.1, "momentum": 0.9,
    "nesterov": False, "weight_decay": 0.0001, "trust_coefficient": 0.001, "beta2": 0.999,
    "epsilon": 1e-8, "clip_norm": 0.0, "label_smoothing": 0.0, "ema_decay": 0.0,
}  # fmt: skip


@pytest.mark.parametrize("optimizer", ["sgd", "lars", "adamw"])  # those that there were
@pytest.mark.parametrize("schedule", SCHEDULES)
def test_a_run_that_recorded_the_fields_of_all_optimizers_goes_on(
    tiny, optimizer, schedule, tmp_path
):
    """As versions did in which these had no fields of their own."""
    chosen = {"optimizer": optimizer, "schedule": schedule}
    settings = [f"optimization.{name}={value}" for name, value in chosen.items()]
    ours = override(tiny, settings)
    record = config.plain(config.as_dict(ours))
    record["optimization"] = {"type": "app.config.Optimization", **OLD, **chosen}
    written = {"reference": "x", "set": [], "experiment": record, "layout": {"exact": False}}
    (tmp_path / "config.json").write_text(json.dumps(written))
    workdir.check(tmp_path, ours, Layout())
    record["optimization"]["label_smoothing"] = 0.1
    (tmp_path / "config.json").write_text(json.dumps(written))
    workdir.check(tmp_path, override(ours, ["optimization.label_smoothing=0.1"]), Layout())
    record["optimization"]["label_smoothing"] = 0.0
    (tmp_path / "config.json").write_text(json.dumps(written))
    other = override(ours, ["optimization.learning_rate=0.2"])
    with pytest.raises(UsageError, match=r": optimization\.learning_rate: 0\.2 here, 0\.1"):
        workdir.check(tmp_path, other, Layout())


def test_what_is_chosen_is_recorded_as_it_is_set(tiny):
    rule = Optimization(optimizer=AdamW(beta2=0.99), schedule=Linear(), warmup_epochs=1)
    assert config.as_dict(rule) == {
        "type": "app.config.Optimization", "optimizer": "adamw", "momentum": 0.9, "beta2": 0.99,
        "epsilon": 1e-8, "weight_decay": 1e-4, "schedule": "linear", "learning_rate": 0.1,
        "reference_batch": 256, "warmup_epochs": 1, "clip_norm": 0.0, "ema_decay": 0.0,
    }  # fmt: skip
    record = config.as_dict(dataclasses.replace(tiny, optimization=rule))
    assert config.recorded(record) == record
    assert config.recorded({}) == {}


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
        (
            "optimization.beta2=0.99",
            "optimization.beta2 is a field of optimizer=adamw or lamb, but the optimizer is "
            "sgd: set optimization.optimizer=adamw or lamb, or leave optimization.beta2 out.",
        ),
        ("optimization.decay_factor=2", "is a field of schedule=steps, but the schedule is const"),
        ("optimization.beta3=1", "valid: optimization.optimizer, optimization.schedule, "),
        ("optimization.optimizer.beta2=1", "no field 'optimization.optimizer.beta2'"),
        ("optimization.nesterov.x=1", "(nearest: optimization.nesterov)"),
        ("optimization.schedule=polynomial", "must be one of constant, cosine, linear, steps"),
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
