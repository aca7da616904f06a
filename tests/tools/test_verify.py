import dataclasses
from dataclasses import dataclass

import numpy as np
import pytest
from shallow import Dense

from app.cli.overrides import override
from app.config import Layout
from app.errors import NUMBERS, NumbersError
from app.optimizers import Optimizer
from app.parallel.topology import Topology
from app.strategies import partition
from app.strategies.partition import Costs
from app.tools import verify
from app.training import update
from app.training.differentiation import Differentiation


@pytest.fixture
def small(shallow):
    return dataclasses.replace(shallow, global_batch=16)


@pytest.fixture
def dense(small):
    """Compiled sooner."""
    return dataclasses.replace(small, model=Dense())


def test_the_matrix_has_every_kind_of_layout():
    layouts = list(verify.layouts(Layout(processes=2, stages=4), 8, 8))
    assert layouts[0] == Layout()
    assert len(set(layouts)) == len(layouts)
    for name, values in {
        "processes": {1, 2}, "stages": {1, 2, 4}, "schedule": {"1f1b", "gpipe"},
        "recompute": {False, True}, "chunks": {1, 2},
    }.items():  # fmt: skip
        assert {getattr(layout, name) for layout in layouts} == values


def test_a_sound_model_passes(words, capsys):
    """With weights whose gradients are rounding only: the biases of attention's keys."""
    verify.main(override(words, ["global_batch=16"]), Layout(stages=2), Topology(), "")
    out = capsys.readouterr().out
    assert "every layout agrees" in out and "FAIL" not in out


@dataclass(frozen=True)
class Slotless(Optimizer):
    def update(self, weight, gradient, slots, rate, count, ratio):
        weight.assign_sub(rate * gradient)


def test_an_optimizer_without_slots_passes(small, capsys):
    rule = dataclasses.replace(small.optimization, optimizer=Slotless())
    experiment = dataclasses.replace(small, optimization=rule)
    verify.main(experiment, Layout(stages=2), Topology(), "")
    out = capsys.readouterr().out
    assert "every layout agrees" in out and "2 stages, 1f1b x 2 chunks" in out


@pytest.mark.parametrize("what", ["weights", "activations"])
def test_a_broken_gradient_of_one_stage_fails_loudly(dense, capsys, monkeypatch, what):
    right = Differentiation.backward

    def backward(self, record, micro_batch, gradient=None):
        inputs, values = right(self, record, micro_batch, gradient)
        if self.is_last and self.part.first > 0:  # the last of several stages
            if what == "weights":
                values[0] = values[0] * 1.1
            else:
                inputs = [g * 1.1 for g in inputs]
        return inputs, values

    monkeypatch.setattr(Differentiation, "backward", backward)
    with pytest.raises(NumbersError, match="2 stages, gpipe") as error:
        verify.main(dense, Layout(stages=2), Topology(), "")
    assert error.value.exit_code == NUMBERS
    out = capsys.readouterr().out
    assert "FAIL" in out and "1 process, 2 stages, 1f1b, recompute" in out


@pytest.mark.parametrize("slow", [0, 1, 3])
def test_weights_that_move_the_wrong_way_fail(small, capsys, monkeypatch, slow):
    """Wherever the measured times cut the model."""
    seconds = tuple(9.0 if block == slow else 1.0 for block in range(4))
    monkeypatch.setattr(partition, "measure", lambda *_: Costs(seconds, (1, 1, 1, 1)))
    right = update.move

    def move(experiment, part, values, norms, rate, *others):
        right(experiment, part, values, norms, -rate if part.first else rate, *others)

    monkeypatch.setattr(update, "move", move)
    with pytest.raises(NumbersError, match="2 stages, gpipe"):
        verify.main(small, Layout(stages=2), Topology(), "")
    assert "most in the movement of " in capsys.readouterr().out


def test_gradients_that_are_all_zero_are_compared():
    """As of a first step that was skipped, in a model without moving statistics."""
    zero = {"kernel": np.zeros(2)}
    found = [verify.Outcome(np.ones(3), zero, moves, True, "") for moves in (zero, zero)]
    differences = verify.compare(*found)
    assert list(differences.values()) == [0, 0, 0]


def test_steps_that_are_not_finite_agree_with_nothing(dense, monkeypatch, capsys):
    wild = override(dense, ["precision=float16", "optimization.learning_rate=1e30"])
    with pytest.raises(NumbersError, match="layouts differ"):
        verify.main(wild, Layout(stages=2), Topology(), "")
    assert "not finite" in capsys.readouterr().out
