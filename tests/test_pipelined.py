"""A pipeline is another layout: the same steps on several devices."""

import dataclasses

import numpy as np
import pytest
import tensorflow as tf

from app import config
from app.config import Layout
from app.errors import UsageError
from app.parallel.pipeline import Pipeline
from app.parallel.schedule import orders
from app.parallel.topology import Topology
from app.training import loop
from app.training.pipelined import PipelinedStep
from app.training.state import State
from app.training.step import Step

LAYOUTS = [
    Layout(stages=2),
    Layout(stages=4, schedule="gpipe"),
    Layout(stages=4, recompute=True),
    Layout(stages=2, chunks=2),
    Layout(stages=3, cut=(1, 3, 2)),
]


def built(experiment, layout):
    data = experiment.data.open("")
    placement = loop.placed(experiment, layout, Topology(), data)
    state = State(experiment, data.input_spec, data.num_classes, placement)
    kind = PipelinedStep if layout.stages > 1 else Step
    step = kind(experiment, layout, state, range(experiment.num_micro_batches))
    return state, step, loop.training_batches(experiment, data, Topology(), 0, 3)


def trained(experiment, layout, steps=3):
    state, step, stream = built(experiment, layout)
    metrics = [step(s, stream, 0.01) for s in range(steps)]
    return state, step, metrics


@pytest.mark.parametrize("layout", LAYOUTS, ids=str)
def test_stages_change_no_number(sentences, layout):
    serial, _, expected = trained(sentences, Layout())
    state, _, metrics = trained(sentences, layout)
    for a, b in zip(expected, metrics, strict=True):
        for name in ("loss", "accuracy", "gradient_norm"):
            assert float(b[name]) == pytest.approx(float(a[name]), rel=1e-4)
    assert state.named().keys() == serial.named().keys()
    for name, variable in serial.named().items():
        np.testing.assert_allclose(state.named()[name], variable, atol=2e-5, err_msg=name)


def test_a_resnet_is_cut_too(tiny):
    tiny = dataclasses.replace(tiny, precision="float16")  # statistics and a loss scale
    serial, _, _ = trained(tiny, Layout(), steps=1)
    state, _, _ = trained(tiny, Layout(stages=4, cut=(3, 3, 3, 1)), steps=1)
    assert float(state.loss_scale) == float(serial.loss_scale)
    for name, variable in serial.named().items():
        np.testing.assert_allclose(state.named()[name], variable, atol=1e-2, err_msg=name)


def test_every_variable_is_on_its_stage(sentences):
    state, _, _ = trained(sentences, Layout(stages=4), steps=1)
    for stage, part in enumerate(state.parts):
        variables = [*part.trainable, *(v for slot in part.slots for v in slot)]
        variables += part.average.values()
        assert {tf.DeviceSpec.from_string(v.device).device_index for v in variables} == {stage}


@pytest.mark.parametrize(("schedule", "alive"), [("1f1b", [4, 3, 2, 1]), ("gpipe", [8, 8, 8, 8])])
def test_memory_follows_the_schedule(sentences, schedule, alive):
    _, step, _ = trained(sentences, Layout(stages=4, schedule=schedule), steps=1)
    assert step.most_alive == alive


def test_tracing_does_not_grow_with_the_micro_batches(sentences):
    counts = []
    for global_batch in (16, 64):
        experiment = dataclasses.replace(sentences, global_batch=global_batch)
        _, step, _ = trained(experiment, Layout(stages=2), steps=2)
        counts.append([part.run.experimental_get_tracing_count() for part in step.parts])
    assert counts[0] == counts[1] and max(counts[0]) <= 3


def test_a_stage_that_fails_stops_the_others():
    class Work:
        def forward(self, task, x):
            if task.part == 1 and task.micro_batch == 2:
                raise ArithmeticError("stage 1 fails")
            return 0

        def backward(self, task, gradient):
            return 0

        def finish(self, stage):
            return stage

    pipeline = Pipeline(orders("1f1b", 4, 1, 8), 4)
    with pytest.raises(ArithmeticError, match="stage 1 fails"):
        pipeline(Work())


@pytest.mark.parametrize(
    ("layout", "words"),
    [
        (Layout(stages=7), ["7 stages", "6", "--stages=6"]),
        (Layout(stages=2, cut=(1, 4)), ["--cut=1,4", "6 blocks"]),
        (Layout(stages=2, cut=(6,)), ["--cut=6", "2 numbers"]),
        (Layout(stages=3, chunks=2), ["multiple of 3"]),
        (Layout(stages=0), ["--stages (0)"]),
    ],
    ids=str,
)
def test_what_cannot_be_cut_is_refused(sentences, train, layout, words):
    with pytest.raises(UsageError) as error:
        train(sentences, layout=layout)
    assert all(word in str(error.value) for word in words)


def test_a_checkpoint_does_not_know_the_cut(sentences, train):
    whole = train(sentences, "whole")
    train(sentences, "parts", Layout(stages=4), stop_at_step=1)
    train(sentences, "parts", Layout(stages=2, schedule="gpipe"), stop_at_step=2)
    parts = train(sentences, "parts")
    assert parts["finished"]
    assert parts["metrics"]["test"]["loss"] == pytest.approx(whole["metrics"]["test"]["loss"], 1e-4)
    config.validate(sentences, Layout())
