"""The trainer as a unit: when it evaluates, compares, saves, commits and stops.

A step is what a test says it is: nothing is computed.
"""

import dataclasses
import json
import time

import pytest
import tensorflow as tf

from app.config import Layout, Update
from app.errors import MembershipChangedError, NumbersError, PreemptedError
from app.parallel.topology import Topology
from app.recovery import manifest
from app.reporting.clock import Clock
from app.training import divergence, setup, trainer
from app.training.checkpoint import Checkpoints
from app.training.evaluation import Evaluator
from app.training.step import Step
from app.training.trainer import Run, Trainer, last_step

pytestmark = pytest.mark.fast
METRICS = {"test": {"accuracy": 0.5, "top5_accuracy": 1.0, "loss": 1.0, "examples": 1}}
STEPS = 8


class GivenStep(Step):
    """Reads its batches, and changes one weight; `values` are the metrics of some steps."""

    bytes_sent = 0.0

    def __init__(self, state, micro_batches, local_steps, values):
        self.state, self.micro_batches = state, micro_batches
        self.local_steps, self.values, self.taken = local_steps, values, []

    def __call__(self, step, batches, rate):
        for _ in self.micro_batches:
            next(batches)
        self.taken.append(step)
        self.state.updates.assign_add(1)
        values = {"loss": 1.0, "accuracy": 0.5, "gradient_norm": 1.0, "finite": True}
        values |= {"skipped": False} | self.values.get(step, {})
        if not values["finite"] and not values["skipped"]:
            self.state.skips.assign_add(1)
        return {name: tf.constant(value) for name, value in values.items()}

    def is_round(self, done):
        return done % self.local_steps == 0 or done == STEPS


@pytest.fixture
def events(monkeypatch):
    """What the trainer does, and after how many steps."""
    done = []
    compare, save = divergence.check, Checkpoints.save

    def evaluate(evaluator):
        done.append(("evaluate", int(evaluator.state.updates)))
        return METRICS

    def check(state, topology, step, is_repaired):
        done.append(("compare", step))
        return compare(state, topology, step, is_repaired)

    def record_save(checkpoints, step, *others):
        done.append(("save", step))
        return save(checkpoints, step, *others)

    monkeypatch.setattr(Evaluator, "evaluate", evaluate)
    monkeypatch.setattr(divergence, "check", check)
    monkeypatch.setattr(Checkpoints, "save", record_save)
    return done


@pytest.fixture
def make(linear, tmp_path, monkeypatch, events, stop):
    """Makes a trainer whose step is given."""

    def call(values=None, update=None, signals=None, commit=None, **options):
        chosen = dataclasses.replace(linear, steps=STEPS, update=update or Update())
        found = setup.open_run(chosen, Layout(), Topology(), "")
        steps = []

        def make_step(experiment, layout, state, micro_batches, order, furthest):
            local_steps = experiment.update.local_steps
            steps.append(GivenStep(state, micro_batches, local_steps, values or {}))
            steps[-1].order, steps[-1].furthest = list(order), furthest
            return steps[-1]

        monkeypatch.setattr(trainer, "make_step", make_step)
        (tmp_path / "run").mkdir(exist_ok=True)
        run = Run(tmp_path / "run", "", **options)
        made = Trainer(found, Layout(), Topology(), run, Clock(), signals, commit)
        made.steps = steps
        return made

    return call


def times(events, kind):
    return [step for what, step in events if what == kind]


def test_each_is_done_when_it_is_due_and_at_the_end(make, events, tmp_path):
    result = make(evaluate_every=3, checkpoint_every=4, compare_every=5).train(0)
    assert times(events, "evaluate") == [3, 6, 8]
    assert times(events, "compare") == [4, 5, 8]  # before every save too
    assert times(events, "save") == [4, 8]
    assert events[-3:] == [("evaluate", 8), ("compare", 8), ("save", 8)]
    assert result["steps"] == STEPS and result["metrics"] == METRICS
    assert json.loads((tmp_path / "run/result.json").read_text())["finished"]
    assert manifest.steps(tmp_path / "run/checkpoints") == [4, 8]


def test_local_steps_move_what_is_due_to_the_end_of_a_round(make, events):
    update = Update(kind="local_sgd", local_steps=3)
    make(update=update, evaluate_every=2, checkpoint_every=4).train(0)
    assert times(events, "evaluate") == [3, 6, 8]
    assert times(events, "save") == [6, 8]


def test_the_last_step_is_where_all_processes_hold_the_same():
    assert last_step(0, 1, 10) == 10 and last_step(4, 1, 10) == 4
    assert last_step(0, 4, 10) == 10 and last_step(3, 4, 10) == 4
    assert last_step(5, 4, 10) == 8 and last_step(9, 4, 10) == 10 and last_step(99, 1, 10) == 10


def test_a_run_that_is_to_be_continued_is_not_finished(make, events):
    result = make(stop_at_step=5).train(0)
    assert result["steps"] == 5 and not result["finished"] and times(events, "save") == [5]


def test_a_continued_run_begins_with_the_steps_that_are_missing(make):
    made = make()
    made.checkpoints.missing = [2, 4]
    made.begin(3)  # 3 are applied: 0, 1, 3
    made.close()
    assert made.steps[0].order == [2, 4, 5, 6, 7] and made.steps[0].furthest == 4


def test_a_stop_saves_and_writes_no_result(make, events, stop, tmp_path):
    made = make(evaluate_every=1)
    stop.set()
    with pytest.raises(PreemptedError, match="stopped after step 1 of 8 and saved") as raised:
        made.train(0)
    assert raised.value.everywhere and raised.value.speaker
    assert events == [("compare", 1), ("save", 1)]  # it is not evaluated
    assert not (tmp_path / "run/result.json").exists()


def test_a_stop_during_an_evaluation_saves_too(make, events, monkeypatch):
    made = make(evaluate_every=2)
    monkeypatch.setattr(Evaluator, "evaluate", lambda self: None)
    with pytest.raises(PreemptedError, match="after step 2"):
        made.train(0)
    assert times(events, "save") == [2]


def test_members_that_change_are_let_in_after_a_commit(make, events):
    changes, committed = iter([False, True]), []
    made = make(signals={"change": lambda: next(changes)}, commit=committed.append)
    with pytest.raises(MembershipChangedError):
        made.train(0)
    assert committed == [2] and not times(events, "save")


def test_at_the_last_step_members_may_change_as_they_like(make):
    committed = []
    made = make(signals={"change": lambda: True}, commit=committed.append, commit_every=8)
    assert made.train(STEPS - 1)["finished"] and committed == [8]


def test_a_repaired_state_is_committed(make, monkeypatch, capsys):
    committed = []
    monkeypatch.setattr(divergence, "check", lambda *_: "rank 1 was repaired")
    make(commit=committed.append, commit_every=0, compare_every=3, repair=True).train(0)
    assert committed == [3, 6, 8] and "warning: rank 1 was repaired" in capsys.readouterr().out


NOT_FINITE = {"loss": float("nan"), "gradient_norm": float("inf"), "finite": False}


def test_a_step_that_is_not_finite_stops_the_run_and_names_its_examples(make, events, tmp_path):
    with pytest.raises(NumbersError, match=r"step 3: loss nan .* must be finite") as raised:
        make({2: NOT_FINITE}).train(0)
    assert raised.value.everywhere and "set update.on_nonfinite=skip" in str(raised.value)
    (line,) = map(json.loads, (tmp_path / "run/nonfinite.jsonl").read_text().splitlines())
    assert line["step"] == 3 and line["loss"] == "nan" and line["gradient_norm"] == "inf"
    assert sorted(map(len, line["micro_batches"].values())) == [4, 4]
    assert not times(events, "save")


def test_steps_are_skipped_up_to_the_budget(make, capsys):
    update = Update(on_nonfinite="skip", skip_budget=2)
    result = make({1: NOT_FINITE, 4: NOT_FINITE}, update).train(0)
    assert result["changes_numbers"] == ["2 steps skipped that were not finite"]
    assert "(2 of 2 that may be skipped)" in capsys.readouterr().out
    with pytest.raises(NumbersError, match=r"more than update\.skip_budget=2 of them"):
        make({1: NOT_FINITE, 4: NOT_FINITE, 5: NOT_FINITE}, update).train(0)


def test_an_overflow_of_the_loss_scale_is_no_fault(make, tmp_path):
    assert make({3: NOT_FINITE | {"skipped": True}}).train(0)["finished"]
    assert not (tmp_path / "run/nonfinite.jsonl").exists()


def test_time_is_a_reason_to_save_unless_steps_are_given(make, events):
    made = make(checkpoint_seconds=0)
    made._saved_at = time.monotonic() - 1
    assert made._must_save()
    made.topology = Topology(1, 2)
    assert not made._must_save()  # rank 0 decides
    assert not make(checkpoint_every=4, checkpoint_seconds=0)._must_save()
    assert not make(checkpoint_seconds=1000)._must_save()


def test_lines_of_metrics_are_the_first_some_and_the_last(make, tmp_path):
    make(log_every=3).train(0)
    lines = map(json.loads, (tmp_path / "run/metrics.jsonl").read_text().splitlines())
    found = [line for line in lines if line["event"] == "train"]
    assert [line["step"] for line in found] == [1, 3, 6, 8]
    assert found[1]["epoch"] == 3 * 8 / 40 and "staleness" not in found[1]
