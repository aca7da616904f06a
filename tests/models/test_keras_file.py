"""Training starts from the weights of a `.keras` file, by name; what may run code is refused."""

import dataclasses
import json
import zipfile

import keras
import numpy as np
import pytest
from steps import made
from test_keras_model import experiment, residual  # noqa: F401  (a fixture)

from app import config
from app.training.data import pretrained_weights
from app.training.state import State
from models import ModelError, keras_file, whole
from models.keras_model import KerasModel

L = keras.layers


@pytest.fixture
def saved(tmp_path):
    """A trained model's file, and its weights by name."""
    keras.utils.clear_session()
    model = residual(5)
    for i, variable in enumerate(model.weights):
        variable.assign(np.full(variable.shape, 0.01 * (i + 1)))
    model.save(tmp_path / "model.keras")
    return tmp_path / "model.keras", {v.path: np.asarray(v) for v in model.weights}


def test_weights_are_taken_by_name_and_a_new_head_is_fresh(experiment, saved):  # noqa: F811
    path, values = saved
    model = KerasModel(residual, init_from=str(path), fresh=("head/*",))
    started = dataclasses.replace(experiment, model=model)
    data = started.data.open("")
    source = pretrained_weights(started, data, "")
    state = State(started, data.input_spec, data.num_classes, None, source)
    anew, _, _ = made(experiment)
    for name, value in state.weights.items():
        expected = anew.weights[name] if name.startswith("head/") else values[name]
        assert np.array_equal(value, expected), name


def load(path, num_outputs=5, fresh=(), allow_code=False, build=residual):
    keras.utils.clear_session()
    keras_file.load(whole.blocks_of(build(num_outputs)), path, fresh, allow_code)


def other(num_outputs):
    return keras.Sequential([keras.Input((3,)), L.Dense(num_outputs, name="unknown")])


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (
            {"num_outputs": 7},
            "head/kernel has shape \\[16, 7\\] in the model, but \\[16, 5\\].*fresh",
        ),
        ({"build": other}, "has no weight '.*unknown/kernel'.*fresh"),
        ({"fresh": ("heed/*",)}, "fresh: 'heed/\\*' matches none.*nearest: head/"),
    ],
)
def test_what_does_not_fit_is_refused_by_name(saved, options, message):
    load(saved[0])
    with pytest.raises(ModelError, match=message):
        load(saved[0], **options)


def lambdas(num_outputs):
    x = keras.Input((3,), name="x")
    y = L.Lambda(lambda v: v * 2, output_shape=(3,), name="twice")(x)
    return keras.Model(x, L.Dense(num_outputs, name="head")(y))


def test_a_file_with_code_is_refused_unless_allowed(tmp_path):
    lambdas(4).save(tmp_path / "lambda.keras")
    with pytest.raises(ModelError, match=r"holds code \(Lambda.*allow_code=true"):
        load(tmp_path / "lambda.keras", 4, build=lambdas)
    load(tmp_path / "lambda.keras", 4, build=lambdas, allow_code=True)


def test_a_class_that_is_not_of_keras_is_code(saved, tmp_path):
    changed = tmp_path / "changed.keras"
    with zipfile.ZipFile(saved[0]) as old, zipfile.ZipFile(changed, "w") as new:
        for name in old.namelist():
            content = old.read(name)
            if name == "config.json":
                found = json.loads(content)
                found["config"]["layers"][1]["module"] = "os"
                found["config"]["layers"][1]["class_name"] = "system"
                content = json.dumps(found).encode()
            new.writestr(name, content)
    with pytest.raises(ModelError, match=r"holds code \(os\.system\)"):
        load(changed)


def damaged(content, how):
    half = len(content) // 2
    return {
        "empty": b"", "cut": content[:half], "text": b"not a zip", "zeros": bytes(len(content)),
        "hole": content[: half - 2000] + bytes(4000) + content[half + 2000 :],
    }[how]  # fmt: skip


@pytest.mark.parametrize("how", ["empty", "cut", "text", "zeros", "hole"])
def test_a_damaged_file_is_one_sentence(saved, how):
    saved[0].write_bytes(damaged(saved[0].read_bytes(), how))
    with pytest.raises(ModelError, match=r"is damaged, or not what|cannot be read") as caught:
        load(saved[0])
    assert "\n" not in str(caught.value)


def test_a_missing_file_is_named(tmp_path):
    with pytest.raises(ModelError, match=r"no file .*gone\.keras"):
        load(tmp_path / "gone.keras")


def test_the_configuration_is_checked():
    with pytest.raises(ValueError, match=r"init_from must be a \.keras file"):
        KerasModel(residual, init_from="weights.bin")
    with pytest.raises(ValueError, match="fresh and allow_code are of init_from"):
        KerasModel(residual, fresh=("head/*",))
    found = config.as_dict(KerasModel(residual, init_from="a.keras", fresh=("head/*",)))
    assert found["init_from"] == "a.keras" and found["fresh"] == ["head/*"]
