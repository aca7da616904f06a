"""A pipeline is another layout: the same steps on several devices."""

import dataclasses
import re

import numpy as np
import pytest
import tensorflow as tf
from conftest import sentences_in
from shallow import Split
from steps import made

from app.cli.overrides import override
from app.config import Layout
from app.errors import UsageError
from app.parallel.pipeline import Pipeline
from app.parallel.schedule import orders
from app.parallel.topology import Topology
from app.strategies import partition
from app.training.data import open_data
from models.resnet import ResNet

LAYOUTS = [
    Layout(stages=2),
    Layout(stages=4, schedule="gpipe"),
    Layout(stages=4, recompute=True),
    Layout(stages=2, chunks=2),
    Layout(stages=3, cut=(1, 2, 1)),
    Layout(tensor=2),
    Layout(stages=2, tensor=2, recompute=True),
]


@pytest.fixture
def brief(tmp_path):
    """Sentences of two lengths of a batch, and two layers: four blocks."""
    return brief_in(tmp_path)


def brief_in(folder, longest=13):
    return override(sentences_in(folder, longest), ["model.layers=2"])


@pytest.fixture
def even(tmp_path):
    """The same, of one length."""
    return brief_in(tmp_path, longest=6)


@pytest.fixture
def images(tiny):
    """Eight micro-batches of images, four blocks, two slots and an average of each weight."""
    settings = ["global_batch=32", "optimization.optimizer=adamw", "optimization.ema_decay=0.9"]
    return override(tiny, settings)


@pytest.fixture(scope="module")
def serial(tmp_path_factory):
    """What the serial run of `brief` gives: the state's values, and the metrics of each step."""
    state, _, metrics = trained(brief_in(tmp_path_factory.mktemp("serial")), Layout())
    return {name: variable.numpy() for name, variable in state.state_dict().items()}, metrics


def trained(experiment, layout, steps=3):
    state, step, stream = made(experiment, layout)
    metrics = [step(s, stream, 0.01) for s in range(steps)]
    return state, step, metrics


@pytest.mark.parametrize("layout", LAYOUTS, ids=str)
def test_stages_change_no_number(brief, serial, layout):
    values, expected = serial
    state, _, metrics = trained(brief, layout)
    for a, b in zip(expected, metrics, strict=True):
        for name in ("loss", "accuracy", "gradient_norm"):
            assert float(b[name]) == pytest.approx(float(a[name]), rel=1e-4)
    assert state.state_dict().keys() == values.keys()
    for name, value in values.items():
        found, scale = state.state_dict()[name].numpy(), np.abs(value).max()
        atol = min(2e-5, 1e-3 * scale + 1e-9)  # second moments are far smaller than weights
        np.testing.assert_allclose(found, value, atol=atol, err_msg=name)


def test_a_resnet_is_cut_too(tiny):
    model = ResNet(depth=18, width=4)
    tiny = dataclasses.replace(tiny, model=model, precision="float16")  # statistics, a loss scale
    serial, _, _ = trained(tiny, Layout(), steps=1)
    state, _, (metrics,) = trained(tiny, Layout(stages=4, cut=(3, 3, 3, 1)), steps=1)
    assert metrics["finite"]
    assert float(state.loss_scale) == float(serial.loss_scale)
    for name, variable in serial.state_dict().items():
        np.testing.assert_allclose(state.state_dict()[name], variable, atol=1e-3, err_msg=name)


def test_every_variable_is_on_its_stage(images):
    state, _, _ = trained(images, Layout(stages=4), steps=1)
    for stage, part in enumerate(state.parts):
        variables = [*part.trainable, *(v for slot in part.slots for v in slot)]
        variables += part.averages
        assert {tf.DeviceSpec.from_string(v.device).device_index for v in variables} == {stage}


def test_a_split_layer_has_a_share_of_each_weight_on_each_device(even):
    state, step, _ = trained(even, Layout(stages=2, tensor=2, cut=(2, 2)), steps=1)
    rows = step.table()
    assert [(row["stage"], row["device"][-5:]) for row in rows] == [
        (0, "CPU:0"), (0, "CPU:1"), (1, "CPU:2"), (1, "CPU:3"),
    ]  # fmt: skip
    assert sum(row["parameters"] for row in rows) == sum(
        w.shape.num_elements() for w in state.weights.values()
    )
    for name, axis in {
        "embeddings/words/table": 0, "layer00/attention/qkv/kernel": 1,
        "layer00/attention/out/kernel": 0, "layer00/mlp/inner/bias": 0,
    }.items():  # fmt: skip
        for kind in ("weights", "average", "first_moment", "second_moment"):
            weight = state.state_dict()[f"{kind}/{name}"]
            assert weight.axis == axis
            assert [v.device[-5:] for v in weight.shards] == ["CPU:0", "CPU:1"]
    assert all(row["activation_bytes"] > 0 for row in rows)


def test_the_gradient_of_a_share_is_computed_where_the_share_is(even):
    _, step, _ = trained(even, Layout(tensor=2), steps=1)
    (part,) = step.parts

    @tf.function
    def both_ways(x, micro_batch):
        return part.backward(part.forward(x, micro_batch)[1], micro_batch)

    found = set()

    def look(graph):
        for op in graph.get_operations():
            share = re.search(r"gradient_tape/layer.*/share(\d)", op.name)
            if op.type == "MatMul" and share:
                found.add((share[1], op.device[-5:]))
            if "PartitionedCall" in op.type:
                look(graph._get_function(op.get_attr("f").name).graph)

    look(both_ways.get_concrete_function(*step.largest[0]).graph)
    assert found == {("0", "CPU:0"), ("1", "CPU:1")}


@pytest.mark.parametrize(("schedule", "alive"), [("1f1b", [4, 3, 2, 1]), ("gpipe", [8, 8, 8, 8])])
def test_memory_follows_the_schedule(images, schedule, alive):
    _, step, _ = trained(images, Layout(stages=4, schedule=schedule), steps=1)
    assert step.most_alive == alive


def test_tracing_does_not_grow_with_the_micro_batches(shallow):
    counts = []
    for global_batch in (8, 32):
        experiment = dataclasses.replace(shallow, global_batch=global_batch)
        _, step, _ = trained(experiment, Layout(stages=2), steps=2)
        counts.append([part.run.experimental_get_tracing_count() for part in step.parts])
    assert counts[0] == counts[1] and max(counts[0]) <= 2


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
        (Layout(cut=(9,)), ["--cut=9", "6 blocks"]),
        (Layout(servers=("a:1",)), ["--servers", "--stages"]),
        (Layout(stages=3, chunks=2), ["multiple of 3"]),
        (Layout(stages=0), ["--stages (0)"]),
        (Layout(tensor=3), ["attention has 2", "--tensor=2"]),
        (Layout(tensor=2, exact=True), ["--tensor=2", "--exact"]),
        (Layout(tensor=-1), ["--tensor (-1)"]),
    ],
    ids=str,
)
def test_what_cannot_be_cut_is_refused(sentences, train, layout, words):
    with pytest.raises(UsageError) as error:
        train(sentences, layout=layout)
    assert all(word in str(error.value) for word in words)


def test_a_checkpoint_does_not_know_the_cut(linear, train):
    settings = ["optimization.optimizer=adamw", "optimization.ema_decay=0.9"]
    split = override(dataclasses.replace(linear, model=Split()), settings)
    whole = train(split, "whole")
    train(split, "parts", Layout(stages=3), stop_at_step=1)
    train(split, "parts", Layout(stages=2, tensor=2), stop_at_step=2)
    parts = train(split, "parts")
    assert parts["finished"]
    for weights in ("test", "test_average"):
        loss = whole["metrics"][weights]["loss"]
        assert parts["metrics"][weights]["loss"] == pytest.approx(loss, 1e-4)


def test_blocks_are_measured_on_texts_that_the_model_can_read(sentences):
    short = override(sentences, ["data.max_length=16", "model.positions=16", "model.layers=1"])
    assert len(partition.measure(short, Topology(), open_data(short, "")).seconds) == 3
    long = override(sentences, ["model.positions=16"])
    with pytest.raises(UsageError, match=r"model\.positions is 16"):
        open_data(long, "")


def test_recomputation_holds_inputs_and_one_micro_batch(images):
    held = [
        trained(images, Layout(stages=2, schedule="gpipe", recompute=r), steps=1)[1].table()
        for r in (False, True)
    ]
    all_of_them, inputs = ([row["activation_bytes"] for row in rows] for rows in held)
    assert all(0 < b < a / 2 for a, b in zip(all_of_them, inputs, strict=True))
