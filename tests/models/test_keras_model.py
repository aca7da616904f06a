"""Whole Keras models are cut where few tensors cross, and train the same on every layout."""

import dataclasses
import functools
import json

import keras
import numpy as np
import pytest
import tensorflow as tf
from ranks import forked, succeeded
from steps import made

from app import config
from app.cli import validation
from app.config import Layout, Optimization
from app.optimizers import SGD, AdamW
from app.schedules import Constant
from models import ModelError, blocks, graph, whole
from models.keras_model import KerasModel
from models.stateful import move

RATE, STEPS = 0.05, 3
TINY = 1e-12  # as Keras adds epsilon elsewhere
L = keras.layers
BOTH = keras.regularizers.L1L2(0.03, 0.02)


def residual(num_outputs):
    """Rescaling, two residual branches, and a long skip connection."""
    image = keras.Input((16, 16, 3), name="image")
    x = L.Rescaling(2.0, offset=-1.0, name="rescaling")(image)
    x = L.Conv2D(4, 3, strides=4, padding="same", name="stem")(x)
    early = x
    for i in range(2):
        y = L.BatchNormalization(momentum=0.8, name=f"normalization{i}")(x)
        y = L.Conv2D(4, 3, padding="same", kernel_regularizer=BOTH, name=f"convolution{i}")(y)
        y = L.Dropout(0.3, name=f"dropout{i}")(keras.ops.relu(y))
        x = x + y
    x = L.Concatenate(name="both")([x, early, early * 0.5, keras.ops.tanh(early)])
    x = L.GlobalAveragePooling2D(name="pool")(x)
    return keras.Model(image, L.Dense(num_outputs, activity_regularizer=BOTH, name="head")(x))


@pytest.fixture
def experiment(tiny):
    plain = Optimization(SGD(momentum=0.0, weight_decay=0.0), Constant(), warmup_epochs=0)
    return dataclasses.replace(tiny, model=KerasModel(residual), optimization=plain, steps=STEPS)


def trained(experiment, layout=None):
    state, step, stream = made(experiment, layout)
    return state, [float(step(s, stream, RATE)["loss"]) for s in range(STEPS)]


def test_one_micro_batch_is_what_keras_trains(experiment):
    """The same updates as train_on_batch; without dropout, whose masks are keyed otherwise."""
    one = dataclasses.replace(experiment, model=KerasModel(undropped), micro_batch=24)
    for optimizer, own in (
        (keras.optimizers.SGD(RATE), SGD(momentum=0.0, weight_decay=0.0)),
        (keras.optimizers.AdamW(RATE, weight_decay=0.01, epsilon=TINY, beta_2=0.999),
         AdamW(weight_decay=0.01, epsilon=TINY, beta2=0.999)),
    ):  # fmt: skip
        rule = dataclasses.replace(one.optimization, optimizer=own)
        ours = dataclasses.replace(one, optimization=rule)
        state, step, stream = made(ours)
        theirs = undropped(7)
        for variable in theirs.weights:
            variable.assign(state.weights[variable.path])
        exempt = ["bias", "gamma", "beta"]
        if own.slots and hasattr(optimizer, "exclude_from_weight_decay"):
            optimizer.exclude_from_weight_decay(var_names=exempt)
        theirs.compile(optimizer, keras.losses.CategoricalCrossentropy(from_logits=True))
        _, _, again = made(ours)
        for s in range(STEPS):
            inputs, targets, _ = next(again)
            theirs.reset_metrics()
            expected = theirs.train_on_batch(inputs, targets)
            found = float(step(s, stream, RATE)["loss"])
            assert found == pytest.approx(float(expected), rel=1e-4)
        for variable in theirs.weights:
            np.testing.assert_allclose(
                state.weights[variable.path], variable, atol=2e-4, err_msg=variable.path
            )


def undropped(num_outputs):
    return keras.models.clone_model(
        residual(num_outputs),
        clone_function=lambda layer: layer.__class__.from_config(
            layer.get_config() | ({"rate": 0.0} if isinstance(layer, L.Dropout) else {})
        ),
    )


def test_the_result_is_a_function_of_the_experiment(experiment):
    expected, losses = trained(experiment)
    for layout in (Layout(stages=2), Layout(stages=3, recompute=True), Layout(stages=2, chunks=2)):
        state, found = trained(experiment, layout)
        np.testing.assert_allclose(found, losses, rtol=1e-5)
        for name, value in expected.weights.items():
            np.testing.assert_allclose(state.weights[name], value, atol=3e-6, err_msg=name)


@pytest.mark.parametrize("optimizer", [SGD(), AdamW()])
def test_exact_has_the_same_bits_for_any_cut(experiment, optimizer):
    rule = dataclasses.replace(experiment.optimization, optimizer=optimizer)
    experiment = dataclasses.replace(experiment, optimization=rule)
    count, found = len(experiment.model.blocks(7)), set()
    for cut in ((count,), (3, count - 3), (6, count - 6), (4, 3, count - 7)):
        layout = Layout(stages=len(cut), cut=cut, exact=True, recompute=len(cut) == 3)
        state, losses = trained(experiment, layout)
        found.add((state.sha256(), *losses))
    assert len(found) == 1


def test_weights_lie_on_the_device_of_their_stage(experiment):
    state, _, _ = made(experiment, Layout(stages=2))
    devices = [{v.device for v in part.variables} for part in state.parts]
    assert [len(own) for own in devices] == [1, 1] and devices[0] != devices[1]


def test_initial_weights_are_a_function_of_the_seed(experiment):
    digests = [made(dataclasses.replace(experiment, seed=s))[0].sha256() for s in (0, 0, 1)]
    assert digests[0] == digests[1] != digests[2]


def test_a_model_is_copied_with_fresh_weights(experiment):
    model = residual(7)
    kept = [v.numpy() for v in model.weights]
    copied = dataclasses.replace(experiment, model=KerasModel(model))
    state, _ = trained(copied)
    built, _ = trained(experiment)
    assert state.weights.keys() == built.weights.keys()
    assert all(np.array_equal(a, b) for a, b in zip(kept, model.weights, strict=True))
    assert made(copied)[0].sha256() == made(copied)[0].sha256()


def constrained(num_outputs):
    x = keras.Input((16, 16, 3))
    y = L.Conv2D(4, 3, strides=4, kernel_constraint=keras.constraints.MaxNorm(0.3), name="stem")(x)
    y = L.GlobalAveragePooling2D(name="pool")(y)
    return keras.Model(x, L.Dense(num_outputs, kernel_constraint="non_neg", name="head")(y))


@pytest.mark.parametrize("layout", [Layout(), Layout(stages=2, cut=(1, 2))], ids=str)
def test_constraints_are_applied(experiment, layout):
    state, _ = trained(dataclasses.replace(experiment, model=KerasModel(constrained)), layout)
    norms = np.linalg.norm(np.reshape(state.weights["stem/kernel"], [-1, 4]), axis=0)
    head = np.asarray(state.weights["head/kernel"])
    by_axis = np.linalg.norm(state.weights["stem/kernel"], axis=0)
    assert by_axis.max() <= 0.3 + 1e-6 and norms.min() > 0.1
    assert head.min() == 0 and head.max() > 0.1


OWN = """
import keras
from app.config import Experiment, Optimization
from input.images import Images
from models.keras_model import KerasModel
from tests.models.test_keras_model import residual

def tiny():
    return Experiment(
        model=KerasModel(residual), global_batch=24, micro_batch=4, steps=3,
        data=Images("synthetic", size=16, synthetic_examples=101, synthetic_classes=7),
        optimization=Optimization(warmup_epochs=0),
    )
"""


@pytest.mark.ranks
def test_ranks_and_stages_train_the_same_bits(tmp_path):
    (tmp_path / "whole.py").write_text(OWN)
    found = {}
    for ranks, stages, *flags in ((1, 1), (2, 1), (1, 2), (3, 2, "--recompute")):
        run = f"{ranks}x{stages}"
        options = ["--experiment=whole.py:tiny", f"--workdir={run}", f"--stages={stages}"]
        succeeded(forked(ranks, tmp_path, "train", "--exact", *options, *flags))
        found[run] = json.loads((tmp_path / run / "result.json").read_text())["weights_sha256"]
    assert len(set(found.values())) == 1, found


# --- The graph -----------------------------------------------------------------------------------


def names(model):
    return [step.operation.name for step in graph.graph_of(model).steps]


def test_the_graph_of_a_model_is_its_operations_in_order():
    found = names(residual(5))
    assert found[:2] == ["rescaling", "stem"] and found[-2:] == ["pool", "head"]
    assert len(found) == 2 + 2 * 5 + 5 - 2 + 2 - 1 + 1
    inner = keras.Sequential(
        [keras.Input((3,)), L.Dense(3, name="a"), L.Dense(2, name="b")], name="inner"
    )
    x = keras.Input((3,))
    assert names(keras.Model(x, L.Dense(1, name="c")(inner(x)))) == ["a", "b", "c"]


def test_blocks_begin_where_the_fewest_tensors_cross():
    x = keras.Input((4,))
    y = L.Dense(4, name="start")(x)
    for i in range(8):
        z = L.Dense(4, name=f"second{i}")(L.Dense(4, name=f"first{i}")(y))
        y = L.Add(name=f"add{i}")([y, z])
    found = whole.blocks_of(keras.Model(x, y))
    assert [block.name for block in found] == ["start", *(f"first{i}" for i in range(8))]
    assert [len(block.nested) for block in found] == [1] + 8 * [3]


def test_a_weight_that_is_used_twice_is_in_one_block():
    shared, x = L.Dense(4, name="shared"), keras.Input((4,))
    y = L.Dense(4, name="between")(shared(L.Dense(4, name="first")(x)))
    found = whole.blocks_of(keras.Model(x, L.Dense(2, name="last")(shared(y))))
    assert [block.name for block in found] == ["first", "shared", "last"]
    assert [v.path for v in found[1].weights if "kernel" in v.path] == [
        "shared/kernel", "between/kernel"
    ]  # fmt: skip


def test_a_long_chain_of_skips_is_cut_where_two_tensors_cross():
    x = keras.Input((4,))
    y = start = L.Dense(4, name="start")(x)
    for i in range(20):
        y = L.Dense(4, name=f"dense{i}")(y)
    model = keras.Model(x, L.Dense(2, name="end")(L.Add(name="add")([start, y])))
    found = whole.blocks_of(model)
    assert len(found) == 1 + 21 + 1
    x = tf.random.stateless_uniform([3, 4], [1, 2])
    y = blocks.forward(found, x, False, tf.zeros([2], tf.int32))
    np.testing.assert_allclose(y, model(x), rtol=1e-6)


def test_masks_travel_with_what_crosses():
    ids = keras.Input((None,), dtype="int32")
    x = L.Embedding(9, 4, mask_zero=True, name="embedding")(ids)
    x = L.Dropout(0.0, name="dropout")(x)
    y = L.LSTM(4, return_sequences=True, name="lstm")(x)
    x = L.Add(name="add")([x, y])
    x = L.GlobalAveragePooling1D(name="pool")(x)
    model = keras.Model(ids, L.Dense(2, name="head")(x))
    found = whole.blocks_of(model)
    assert len(found) >= 4
    values = tf.constant([[3, 4, 0, 0], [5, 1, 2, 0]])
    x, passed = values, []
    for block in found:
        x = tf.function(lambda x, block=block: block(x, training=False))(x)
        passed.append(x)
    np.testing.assert_allclose(x, model(values), rtol=1e-6)
    assert [isinstance(y, dict) for y in passed[:2]] == [True, True]
    longer = tf.constant([[3, 4, 0, 0, 0], [5, 1, 2, 0, 0]])
    np.testing.assert_allclose(
        blocks.forward(found, longer, False, tf.zeros([2], tf.int32)), x, rtol=1e-6
    )


def several(num_outputs):
    """Two inputs, one of which is used late, and two outputs, one of which is made early."""
    left, right = keras.Input((3,), name="left"), keras.Input((2,), name="right", dtype="int32")
    x = early = L.Dense(4, name="a")(left)
    x = L.Dense(4, name="c")(L.Dense(4, activation="relu", name="b")(x))
    x = L.Concatenate(name="join")([x, keras.ops.cast(right, "float32")])
    return keras.Model(
        {"left": left, "right": right}, {"early": early, "late": L.Dense(num_outputs, name="d")(x)}
    )


def test_inputs_are_matched_by_name_and_outputs_keep_their_structure():
    model = several(5)
    found = whole.blocks_of(model)
    assert len(found) >= 3
    x = {"right": tf.constant([[1.0, 2.0]]), "left": tf.ones([1, 3]), "other": tf.ones([1])}
    y = blocks.forward(found, x, False, tf.zeros([2], tf.int32))
    expected = model({"left": x["left"], "right": x["right"]})
    assert y.keys() == {"early", "late"}
    for name in y:
        np.testing.assert_allclose(y[name], expected[name], rtol=1e-6)


@pytest.mark.parametrize(
    ("inputs", "message"),
    [
        ({"left": np.ones([1, 3])}, "input 'right', but the data's inputs are 'left'"),
        (np.ones([1, 3]), "2 inputs \\(left, right\\), but the data give 1"),
        ((np.ones([1, 4]), np.ones([1, 2])), "'left'.*has shape \\[None, 3\\].*give \\[1, 4\\]"),
    ],
)
def test_inputs_that_do_not_fit_are_refused(inputs, message):
    with pytest.raises(ModelError, match=message):
        inputs = tf.nest.map_structure(lambda x: tf.constant(x, tf.float32), inputs)
        blocks.build(whole.blocks_of(several(5)), inputs, 0)


class Subclass(keras.Model):
    def call(self, x):
        return x


def chain(num_outputs):
    return keras.Sequential([L.Flatten(name="flat"), L.Dense(num_outputs, name="head")])


def masked(num_outputs):
    return keras.Sequential([L.Embedding(9, 4, mask_zero=True, name="words"), L.LSTM(num_outputs)])


@pytest.mark.parametrize(
    ("build", "message"),
    [
        (lambda n: Subclass(name="own"), "own is a Subclass whose call is Python code"),
        (lambda n: 3, "returns int, but KerasModel needs"),
        (masked, "words makes masks.*keras.Input"),
    ],
)
def test_what_is_no_graph_is_refused(build, message):
    with pytest.raises(ModelError, match=message):
        whole.blocks_of(whole.made(build, 3, True))


def test_a_sequential_model_without_an_input_is_its_layers(experiment):
    state, _ = trained(dataclasses.replace(experiment, model=KerasModel(chain)))
    assert [block.name for block in state.parts[0].blocks] == ["flat", "head"]


def test_moving_a_variable_keeps_everything_else(joined):
    """What `move` relies on: Keras reads a variable's value where this test replaces it."""
    layer = L.Dense(2, name="dense")
    layer.build((None, 3))
    before, value = layer.kernel.value, layer.kernel.numpy()
    with tf.device(tf.config.list_logical_devices("CPU")[2].name):
        move(layer.kernel)
    after = layer.kernel.value
    assert after is not before and after.device.endswith("CPU:2")
    assert np.array_equal(after, value) and after.trainable and layer.kernel.path == "dense/kernel"
    x = tf.ones([1, 3])
    with tf.GradientTape() as tape:
        y = layer(x)
    assert tape.gradient(y, after) is not None
    layer.kernel.assign(tf.zeros([3, 2]))
    assert np.array_equal(layer(x), [[0, 0]])


# --- The configuration ---------------------------------------------------------------------------


def test_a_run_records_the_function_or_the_configuration():
    def of(build):
        return config.plain(config.as_dict(KerasModel(build)))["build"]

    assert of(residual).endswith("test_keras_model.residual")
    part = functools.partial(keras.applications.ResNet50, weights=None)
    assert of(part)["weights"] == "None" and of(part)["function"].endswith(".ResNet50")
    model = residual(3)
    assert of(model)["class_name"] == "Functional" and of(model) == of(model)
    assert of(model) != of(residual(4))


def test_build_is_checked_before_tensorflow_is_needed(experiment):
    with pytest.raises(ValueError, match="must be a function"):
        KerasModel(3)
    with pytest.raises(ValueError, match="function with a name"):
        KerasModel(lambda n: chain(n))
    validation.validate(experiment, Layout())
