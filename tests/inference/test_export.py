"""An exported model: what clients have goes in, and nothing of this project is needed."""

import base64
import dataclasses
import json
import shutil
import subprocess
import sys

import numpy as np
import pytest
import tensorflow as tf
from pictures import (
    LARGE,
    OPAQUE,
    PHOTO,
    PLAIN,
    SMALL,
    exif,
    gradient,
    pillows,
    saved,
    with_exif,
)
from served import Served
from shallow import Shallow

from app.commands import export as command
from app.config import Layout
from app.errors import NumbersError, UsageError
from app.inference import checking, clients, export, litert, predict, saved_model
from app.training import trained
from input.raw import Limits

LIMITS = Limits(pixels=100_000, text=1000)
SESSION = """
import sys, tensorflow as tf
v1 = tf.compat.v1
with v1.Session(graph=tf.Graph()) as session:
    meta = v1.saved_model.loader.load(session, ["serve"], sys.argv[1])
    graph = session.graph.as_graph_def()
    nodes = [*graph.node, *(n for f in graph.library.function for n in f.node_def)]
    assert not [n.op for n in nodes if "orovod" in n.op or "PyFunc" in n.op]
    assert meta.signature_def["classify"].method_name == "tensorflow/serving/classify"
    signature = meta.signature_def["serving_default"]
    feed = {signature.inputs["image_bytes"].name: [sys.stdin.buffer.read()]}
    print(session.run(signature.outputs["probability"].name, feed)[0])
"""


@pytest.fixture
def exported(train, joined, tmp_path):
    """Trains and exports; returns the model's folder, the step's name and the restored run."""

    def run(experiment, names=("float32",), which="best"):
        if not (tmp_path / "run").exists():
            train(experiment)
        data_dir = str(tmp_path / "data")
        restored = trained.restore(experiment, Layout(), joined, tmp_path / "run", data_dir)
        output = tmp_path / "exports/mine"
        export.main(experiment, restored, output, which, names, LIMITS, "./run.sh export")
        return output, str(restored.step), restored

    return run


def signatures(folder):
    return tf.saved_model.load(str(folder)).signatures


@pytest.fixture
def in_this_process(monkeypatch):
    """Runs what is exported here: a process of its own takes its time to start."""

    def outputs(folder, data, like):
        function = signatures(folder)["outputs"]
        every = [sent for sent, _ in clients.batches(data)]
        given = [{name: tf.constant(x) for name, x in sent.items()} for sent in every]
        return [function(**sent)["outputs"].numpy() for sent in given]

    monkeypatch.setattr(checking, "saved_model_outputs", outputs)


def test_the_command_line_knows_the_variants():
    assert (*saved_model.VARIANTS, *export.LITERT) == command.VARIANTS


def test_images(exported, shallow):
    names = ("float32", "int8", "litert")
    experiment = dataclasses.replace(shallow, model=Shallow(1000))  # weights to be stored small
    output, step, run = exported(experiment, names)
    card = (output / "README.md").read_text()
    for name in names:
        assert f"| `{name}` |" in card
    about = json.loads((output / "float32" / step / "assets.extra/scaleproof.json").read_text())
    assert about["kind"] == "image" and about["classes"] == list("0123456")
    assert about["weights_sha256"] == run.setup.state.sha256() and about["weights_sha256"] in card

    raws, _ = run.setup.data.held_out.fetch(range(5))
    s = signatures(output / "float32" / step)
    batch = s["serving_default"](image_bytes=tf.constant(raws))
    wanted = run.setup.state.outputs(run.setup.data.preprocess(tf.constant(raws), LIMITS))
    best = tf.argmax(wanted, -1).numpy()
    assert [int(name) for name in batch["class"].numpy()] == best.tolist()
    assert batch["classes"].shape == batch["scores"].shape == (5, 5)
    assert np.allclose(batch["probability"], tf.reduce_max(tf.nn.softmax(wanted), -1), atol=1e-6)
    logits = s["logits"](image_bytes=tf.constant(raws))
    assert np.allclose(logits["logits"], wanted, atol=1e-5)

    one = s["single"](image_bytes=tf.constant(raws[3]))
    assert one["class"].numpy() == batch["class"].numpy()[3] and one["scores"].shape == (5,)
    images = tf.stack([tf.io.decode_image(raw, channels=3) for raw in raws])
    assert np.allclose(s["arrays"](images=images)["scores"], batch["scores"], atol=1e-6)
    feature = tf.train.Feature(bytes_list=tf.train.BytesList(value=[raws[3]]))
    example = tf.train.Example(features=tf.train.Features(feature={"image_bytes": feature}))
    found = s["classify"](inputs=tf.constant([example.SerializeToString()]))
    assert found["classes"].numpy()[0].tolist() == batch["classes"].numpy()[3].tolist()

    sizes = {
        name: (output / name / step / "variables/variables.data-00000-of-00001").stat().st_size
        for name in ("float32", "int8")
    }
    weights = sum(v.shape.num_elements() * 4 for v in run.setup.state.weights.values())
    assert sizes["float32"] < 1.2 * weights  # each once
    assert sizes["int8"] < 0.6 * sizes["float32"]
    inputs = run.setup.data.preprocess(tf.constant(raws), LIMITS)
    lite = litert.outputs(output / "litert" / step, inputs.numpy())
    assert np.allclose(lite, wanted, atol=1e-4)

    large = tf.io.encode_png(tf.zeros([400, 400, 3], tf.uint8)).numpy()
    for raw in (large, b"", b"no image"):
        with pytest.raises(tf.errors.InvalidArgumentError):
            s["serving_default"](image_bytes=tf.constant([raw]))
    must_run_in_a_session(output / "int8" / step, raws[0], s)
    with pytest.raises(UsageError, match="exists"):
        exported(experiment)
    exported(experiment, ("litert_int8",))  # beside the others: the card knows them all
    card = (output / "README.md").read_text()
    assert all(f"| `{name}` |" in card for name in (*names, "litert_int8"))


def kinds_of_images():
    """Files by name, each of a kind that is decoded in another way."""
    files = {f"{name}.jpg": content for name, content in OPAQUE.items()}
    for kind, content in PLAIN.items():
        for i in range(1, 9):
            files[f"{kind} held {i}"] = with_exif(content, exif(i, SMALL if i % 2 else LARGE))
    for mode in ("RGBA", "LA"):
        files[f"{mode} held 6"] = with_exif(saved(gradient(mode, "ramp"), "PNG"), exif(6))
    palette = saved(PHOTO.quantize(16), "PNG", bits=4, transparency=bytes([0, 128]))
    return files | {"clear palette": palette}


def test_every_kind_of_image_is_the_same_to_all(
    exported, shallow, joined, tmp_path, in_this_process
):
    """Predictions, the exported model and its server see one image, and a viewer's."""
    output, step, run = exported(shallow)
    files, photos = kinds_of_images(), tmp_path / "photos"
    photos.mkdir()
    for name, content in files.items():
        (photos / name).write_bytes(content)
    job = predict.Job(
        str(photos), tmp_path / "out.jsonl", None, None, 7, "best", 4, 1, LIMITS
    )  # fmt: skip
    data_dir = str(tmp_path / "data")
    predict.main(shallow, Layout(), joined, tmp_path / "run", data_dir, job)
    lines = (tmp_path / "out.jsonl").read_text().splitlines()
    rows = {row["item"]: row for row in map(json.loads, lines)}
    function = signatures(output / "float32" / step)["logits"]
    path = "/v1/models/mine:predict"
    with Served(output / "float32") as server:
        for name, content in files.items():
            ours = [rows[name]["probabilities"][c] for c in run.setup.data.classes]
            exports = function(image_bytes=tf.constant([content]))["probabilities"][0]
            np.testing.assert_allclose(ours, exports, atol=1e-5, err_msg=name)
            instance = {"b64": base64.b64encode(content).decode()}
            body = {"instances": [instance], "signature_name": "logits"}
            status, answer = server.post(path, body)
            assert status == 200, answer
            served = answer["predictions"][0]["probabilities"]
            np.testing.assert_allclose(served, exports, atol=1e-5, err_msg=name)
            seen = run.setup.data.preprocess(tf.constant([content]), LIMITS)
            wanted = run.setup.data.preprocess_arrays(tf.constant(pillows(content)[None]))
            difference = np.abs(seen - wanted) * shallow.data.std * 255  # of 256 shades
            assert difference.max() <= (14 if content.startswith(b"\xff\xd8") else 1.01), name
            assert difference.mean() <= 2, name
    sideways = rows["PNG held 1"]["probabilities"], rows["PNG held 6"]["probabilities"]
    assert sideways[0] != sideways[1]  # else the test would prove nothing


def must_run_in_a_session(folder, raw, signatures):
    """By the loader that TensorFlow Serving has; it fills what int8 stores small."""
    assert b"orovod" not in (folder / "saved_model.pb").read_bytes()
    done = subprocess.run(
        [sys.executable, "-I", "-c", SESSION, str(folder)], input=raw, capture_output=True,
        timeout=120,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-2000:]
    wanted = signatures["serving_default"](image_bytes=tf.constant([raw]))
    assert float(done.stdout) == pytest.approx(float(wanted["probability"][0]), abs=0.02)


def test_texts(exported, words, in_this_process):
    output, step, run = exported(words, ("float32", "float16", "bfloat16"))
    texts = tf.constant(["a b c good", "größe", "j " * 100])
    with run.weights("best"):
        wanted = run.setup.state.outputs(run.setup.data.preprocess(texts, LIMITS))
    near = {"float32": 1e-5, "float16": 1e-2, "bfloat16": 5e-2}
    for name, most in near.items():
        s = signatures(output / name / step)
        assert np.allclose(s["logits"](text=texts)["logits"], wanted, atol=most), name
    one = s["single"](text=tf.constant("a b c good"))
    assert one["class"].numpy() in (b"0", b"1") and one["probability"].shape == ()
    with pytest.raises(tf.errors.InvalidArgumentError, match="more than 1000 bytes"):
        s["serving_default"](text=tf.constant(["x" * 1001]))

    # The last step's weights, in the place of their average.
    shutil.rmtree(output)
    output, step, _ = exported(words, which="trained")
    about = json.loads((output / "float32" / step / "assets.extra/scaleproof.json").read_text())
    assert about["weights"] == "trained"
    wanted = run.setup.state.outputs(run.setup.data.preprocess(texts, LIMITS))
    found = signatures(output / "float32" / step)["logits"](text=texts)["logits"]
    assert np.allclose(found, wanted, atol=1e-5)


def test_a_model_that_needs_the_project_is_found_out(exported, shallow, monkeypatch):
    monkeypatch.setattr(
        saved_model, "save", lambda model, data, limits, folder, about: folder.mkdir()
    )
    with pytest.raises(NumbersError, match="does not run in a process of its own"):
        exported(shallow)


def test_a_model_that_computes_something_else_is_found_out(
    exported, shallow, tmp_path, monkeypatch, in_this_process
):
    answers = saved_model.Model.outputs
    monkeypatch.setattr(saved_model.Model, "outputs", lambda self, x: answers(self, x) * 1.01)
    with pytest.raises(NumbersError, match="more than rounding explains"):
        exported(shallow)
    assert not list((tmp_path / "exports/mine/float32").glob("[0-9]*"))
