"""Clipping, and training with a custom optimizer and schedule."""

import dataclasses
import json
from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

import numpy as np
import pytest
import tensorflow as tf

from app import config, experiments
from app.bounds import Fraction, Positive
from app.cli import validation
from app.cli.overrides import override
from app.config import Layout, Optimization
from app.errors import UsageError
from app.optimizers import OPTIMIZERS, SGD, Optimizer
from app.recovery import manifest
from app.schedules import Constant, Progress, Schedule
from app.training import step_sums, update
from app.training.state import State


@dataclass(frozen=True)
class Lion(Optimizer):
    """arXiv:2302.06675, without weight decay."""

    slots: ClassVar[tuple[str, ...]] = ("lion",)

    beta1: Fraction = 0.9
    decay: Fraction = 0.99

    def update(self, weight, gradient, slots, rate, count, ratio):
        (moment,) = slots
        weight.assign_sub(rate * tf.sign(self.beta1 * moment + (1 - self.beta1) * gradient))
        moment.assign(self.decay * moment + (1 - self.decay) * gradient)


@dataclass(frozen=True)
class Polynomial(Schedule):
    power: Positive = 2.0

    def factor(self, progress: Progress) -> float:
        return (1 - progress.fraction) ** self.power


@pytest.fixture
def own(shallow):
    rule = Optimization(
        optimizer=Lion(), schedule=Polynomial(power=3.0), learning_rate=0.01, warmup_epochs=0
    )
    return dataclasses.replace(shallow, optimization=rule)


@pytest.mark.parametrize("limit", [0.0, 1.0, 1e6])
def test_all_gradients_are_clipped_by_their_common_norm(shallow, limit):
    rule = Optimization(SGD(momentum=0.0, weight_decay=0.0), Constant(), clip_norm=limit)
    experiment = dataclasses.replace(shallow, optimization=rule)
    part = State(experiment, tf.TensorSpec([None, 16, 16, 3]), 7).parts[0]
    random = np.random.default_rng(3)
    gradients = [random.standard_normal(v.shape).astype(np.float32) for v in part.trainable]
    still = [v.read_value() * experiment.num_micro_batches for v, _ in part.statistics]
    sums = [*map(tf.constant, gradients), *still, tf.constant([1.0, 2.0])]
    before = [v.numpy() for v in part.trainable]

    each, one = update.norms(part, sums), tf.constant(1.0)
    norm = step_sums.judge(experiment, [each], sums[-1], one)["gradient_norm"]
    update.move(experiment, part, sums, each, tf.constant(0.1), one, norm, one)

    expected = np.sqrt(sum(np.sum(np.square(g, dtype=np.float64)) for g in gradients))
    assert float(norm) == pytest.approx(expected, rel=1e-6)  # before it is clipped
    factor = limit / expected if limit == 1 else 1
    for old, new, g in zip(before, part.trainable, gradients, strict=True):
        np.testing.assert_allclose(new, old - 0.1 * factor * g, rtol=1e-4, atol=1e-6)


@pytest.mark.fast
def test_the_factor_of_clipping():
    assert update.clip_factor(0.0, tf.constant(5.0)) is None
    found = [float(update.clip_factor(2.0, tf.constant(n))) for n in (0.0, 1.0, 2.0, 4.0, 8.0)]
    assert found == pytest.approx([1, 1, 1, 0.5, 0.25], rel=1e-5)


def test_a_custom_optimizer_and_schedule_train_and_continue(own, train, tmp_path):
    whole = train(own, "whole")
    assert whole["finished"]
    train(own, "parted", stop_at_step=2)
    assert train(own, "parted")["weights_sha256"] == whole["weights_sha256"]
    changed = override(own, ["optimization.power=1"])
    assert train(changed, "changed")["weights_sha256"] != whole["weights_sha256"]

    folder = manifest.folder_of(tmp_path / "whole/checkpoints", 4)
    names = {name for name, _ in tf.train.list_variables(str(folder / "state"))}
    assert any(name.startswith("lion/") for name in names)
    for record in (whole["experiment"], json.loads((folder / "manifest.json").read_text())):
        record = record.get("content", {}).get("experiment", record)["optimization"]
        assert record["optimizer"] == f"{__name__}.Lion" and record["decay"] == 0.99
        assert record["schedule"] == f"{__name__}.Polynomial" and record["power"] == 3.0

    lines = map(json.loads, (tmp_path / "whole/metrics.jsonl").read_text().splitlines())
    rates = {line["step"]: line["learning_rate"] for line in lines if "learning_rate" in line}
    assert rates == pytest.approx({1: 0.01 * 24 / 256, 4: 0.01 * 24 / 256 * 0.25**3})


MINE = """
import dataclasses
from dataclasses import dataclass
from typing import ClassVar

from app import experiments
from app.bounds import Positive
from app.config import Optimization
from app.optimizers import Optimizer
from app.schedules import Schedule

@dataclass(frozen=True)
class Plain(Optimizer):
    strength: Positive = 1.0

    def update(self, weight, gradient, slots, rate, count, ratio):
        weight.assign_sub(rate * self.strength * gradient)

@dataclass(frozen=True)
class Halved(Schedule):
    part: Positive = 0.5

    def factor(self, progress):
        return 1.0 if progress.fraction < self.part else 0.5

def mine():
    rule = Optimization(optimizer=Plain(), schedule=Halved())
    return dataclasses.replace(experiments.resnet50_synthetic(), optimization=rule)
"""


@pytest.mark.fast
def test_custom_fields_are_set_and_checked(tmp_path):
    (tmp_path / "mine.py").write_text(MINE)
    mine = experiments.load(f"{tmp_path}/mine.py:mine")
    changed = override(mine, ["optimization.strength=2", "optimization.part=0.75"])
    record = config.as_dict(changed)["optimization"]
    assert (record["optimizer"], record["strength"]) == ("experiment_mine.Plain", 2.0)
    assert (record["schedule"], record["part"]) == ("experiment_mine.Halved", 0.75)
    validation.validate(changed, Layout())
    assert override(changed, ["optimization.optimizer=experiment_mine.Plain"]) == changed
    assert override(changed, ["optimization.optimizer=sgd"]).optimization.optimizer == SGD()
    for setting, message in {
        "optimization.strength=0": "optimization.strength must be above 0 and finite, not 0.0.",
        "optimization.strength=x": "optimization.strength=x: must be a finite number.",
        "optimization.strenght=1": "nearest: optimization.strength",
        "optimization.momentum=0.9": "is a field of optimizer=sgd or lars or adamw or lamb, but "
        "the optimizer is experiment_mine.Plain",
    }.items():
        with pytest.raises(UsageError) as caught:
            validation.validate(override(mine, [setting]), Layout())
        assert message in str(caught.value)


@dataclass(frozen=True)
class Clashing(SGD):
    clip_norm: float = 1.0


@dataclass(frozen=True)
class Misnamed(SGD):
    slots: ClassVar[Sequence[str]] = ("average",)


@pytest.mark.fast
@pytest.mark.parametrize(
    ("optimizer", "message"),
    [
        (Clashing(), "Clashing.clip_norm and Optimization.clip_norm would both be set"),
        (Misnamed(), "Misnamed.slots names 'average', under which checkpoints hold other"),
    ],
)
def test_a_name_has_one_meaning(tiny, optimizer, message):
    rule = dataclasses.replace(tiny.optimization, optimizer=optimizer)
    with pytest.raises(UsageError) as caught:
        validation.validate(dataclasses.replace(tiny, optimization=rule), Layout())
    assert message in str(caught.value)


@pytest.mark.fast
@pytest.mark.parametrize("name", OPTIMIZERS)
def test_what_needs_whole_weights_is_not_split(sentences, name):
    experiment = override(sentences, [f"optimization.optimizer={name}"])
    if name not in ("lars", "lamb"):
        return validation.validate(experiment, Layout(tensor=2))
    with pytest.raises(UsageError, match=f"optimizer={name} needs the norms of whole weights"):
        validation.validate(experiment, Layout(tensor=2))
