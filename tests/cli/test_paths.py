"""Whatever a file system allows in a path: TensorFlow takes some of it for a pattern."""

import dataclasses
import errno
import json
import os
import sys

import numpy as np
import pytest
import tensorflow as tf
from conftest import sentences_in
from ranks import start

from app.cli import flags
from app.commands import chaos
from app.config import Layout
from app.inference import export, litert, predict
from app.inference.predict import Job
from app.launch import launcher
from app.launch.launcher import Start
from app.serving import versions
from app.serving.model import load
from app.training import trained
from input import InputError, failures, labels, paths
from input.images import Images
from input.raw import Limits
from models.pretrained import Weights

EVERYTHING = os.fsdecode(b"*?{a,b} \\ %41 '\"\n\t\xc3\xa9 \xff")


@pytest.mark.parametrize("name", ["[1]", EVERYTHING], ids=["brackets", "everything"])
def test_a_run_is_continued_exported_and_served_anywhere(train, joined, shallow, tmp_path, name):
    run = f"{name}/run"
    train(shallow, run, stop_at_step=2)
    result = train(shallow, run)
    assert result["steps"] == 4
    folder, data_dir = tmp_path / run, str(tmp_path / name / "data")
    assert list((folder / "tensorboard").iterdir())
    restored = trained.restore(shallow, Layout(), joined, folder, data_dir)
    assert restored.step == 4

    photos = tmp_path / name / "photos"
    photos.mkdir()
    raws, _ = shallow.data.open("").held_out.fetch([0, 1])
    for i, raw in enumerate(raws):
        (photos / f"{name}{i}.jpg").write_bytes(raw)
    job = Job(
        source=str(photos), output=folder / "out.jsonl", form=None, field=None, top=3,
        weights="best", batch=4, threads=2, limits=Limits(),
    )  # fmt: skip
    predict.main(shallow, Layout(), joined, folder, data_dir, job)
    rows = [json.loads(line) for line in (folder / "out.jsonl").read_bytes().splitlines()]
    assert [row["item"] for row in rows] == [paths.shown(f"{name}{i}.jpg") for i in range(2)]

    output = tmp_path / name / "exported"
    export.main(shallow, restored, output, "best", ["float32", "litert"], Limits(), "export")
    assert "outputs within" in (output / "README.md").read_text(encoding="utf-8")
    model = load(versions.find(output / "float32"))
    answer = model.run("serving_default", {"image_bytes": np.array(raws, object)})
    assert [c.decode() for c in answer["class"]] == [row["class"] for row in rows]
    assert litert.outputs(output / "litert/4", np.zeros([1, 16, 16, 3], np.float32)).shape == (1, 7)


def test_a_graph_may_read_its_assets_whenever_it_is_asked(tmp_path):
    words = tmp_path / "words.txt"
    words.write_text("a few words")
    module = tf.Module()
    module.asset = tf.saved_model.Asset(str(words))
    read = tf.function(
        lambda x: {"y": tf.strings.join([tf.io.read_file(module.asset.asset_path), x])},
        input_signature=[tf.TensorSpec([], tf.string, "x")],
    )
    place = tmp_path / "exported/1"
    tf.saved_model.save(module, str(place), {"serving_default": read})
    words.unlink()
    place.parent.rename(tmp_path / "[1]")
    model = load(versions.find(tmp_path / "[1]", "mine"))
    assert model.run("serving_default", {"x": np.array(b"!", object)})["y"] == b"a few words!"


def test_no_name_is_left_behind(tmp_path):
    before = len(os.listdir("/proc/self/fd"))
    with paths.plain(tmp_path) as place:
        assert os.path.samefile(place, tmp_path)
    assert len(os.listdir("/proc/self/fd")) == before
    with pytest.raises(FileNotFoundError):
        paths.plain(tmp_path / "none").__enter__()


MESSAGES = [
    ("{{function_node __wrapped__DecodeJpeg_device_/job:localhost/replica:0/task:0/device:CPU:0}} "
     "Input is empty. [Op:DecodeJpeg] name: ", "it is neither a JPEG nor a PNG image"),
    ("Graph execution error:\n\nDetected at node decode defined at (most recent call last):\n"
     "<stack traces unavailable>\nUnknown image file format. One of JPEG, PNG, GIF, BMP required.\n"
     "\t [[{{node decode}}]] [Op:__inference_f_7]",
     "Unknown image file format. One of JPEG, PNG, GIF, BMP required"),
    ("2 root error(s) found.\n  (0) INVALID_ARGUMENT:  it is negative\n\t [[{{node a}}]]\n"
     "  (1) INVALID_ARGUMENT:  another", "it is negative"),
    ("/proc/self/fd/17/state.index; No such file or directory",
     "state.index; No such file or directory"),
    ("OOM when allocating tensor on /job:localhost/replica:0/task:0/device:CPU:0 by allocator cpu",
     "OOM when allocating tensor on by allocator cpu"),
]  # fmt: skip


@pytest.mark.fast
@pytest.mark.parametrize(("message", "wanted"), MESSAGES)
def test_a_sentence_has_nothing_of_tensorflow_inside(message, wanted):
    found = failures.sentence(tf.errors.InvalidArgumentError(None, None, message))
    assert found.replace("  ", " ") == wanted


@pytest.mark.fast
def test_a_sentence_of_a_file_is_its_reason():
    assert failures.sentence(OSError(errno.EIO, "Input/output error", "x")) == "Input/output error"
    assert failures.sentence(ValueError()) == "ValueError"


@pytest.fixture
def photos(tmp_path):
    """A folder of images of two classes, none of whose other names is UTF-8."""
    root = tmp_path / EVERYTHING
    for split in ("train", "val"):
        for label in ("cat", "dog"):
            folder = root / split / label
            folder.mkdir(parents=True)
            for i in range(4):
                image = np.full([20, 20, 3], 60 * i, np.uint8)
                (folder / f"{EVERYTHING}{i}.jpg").write_bytes(tf.io.encode_jpeg(image).numpy())
    return root


def test_images_are_used_whatever_their_names(photos, train, joined, shallow, tmp_path):
    data = Images(str(photos), size=16)
    experiment = dataclasses.replace(shallow, data=data, global_batch=4, steps=2)
    data_dir = str(tmp_path / "data")
    assert "(train 8, val 8, 0 skipped)" in data.prepare(data_dir)
    train(experiment)
    restored = trained.restore(experiment, Layout(), joined, tmp_path / "run", data_dir)
    limits = Limits()
    export.main(experiment, restored, tmp_path / "out", "best", ["litert"], limits, EVERYTHING)
    assert "| `litert` |" in (tmp_path / "out/README.md").read_text(encoding="utf-8")
    bad = next((photos / "train/cat").iterdir())
    bad.write_bytes(b"no image")
    with pytest.raises(InputError, match="cannot be used") as caught:
        data.prepare(data_dir)
    assert paths.shown(str(bad)) in str(caught.value)


def test_a_name_that_is_not_utf_8_can_be_printed_anywhere(photos, tmp_path):
    code = f"from input.images import Images\ndef shop(): return Images({str(photos)!a}, size=16)\n"
    (tmp_path / "shop.py").write_text(
        f"from app.config import Experiment\nfrom tests.shallow import Shallow\n{code}"
        "def run(): return Experiment(model=Shallow(), data=shop(), global_batch=4, micro_batch=4,"
        " steps=1)\n"
    )
    command = [sys.executable, "-m", "app", "prepare", "--experiment=shop.py:run", "--data_dir=d"]
    done = start(command, tmp_path, PYTHONIOENCODING="ascii:strict")
    assert done.returncode == 0 and r"\udcff (train 8, val 8" in done.stdout, done.stderr


@pytest.mark.fast
def test_names_of_classes_are_text(tmp_path):
    labels.require_text(["cat", "\N{CAT FACE}"], tmp_path)
    with pytest.raises(InputError, match=r"'caf\ufffd+' is the name of a class.*rename it.*convmv"):
        labels.require_text(["cat", os.fsdecode(b"caf\xe9")], tmp_path)
    with pytest.raises(InputError, match=r"'a\\nb' has a line break"):
        labels.require_text(["a\nb"], tmp_path)


@pytest.mark.parametrize("name", ["[1]", os.fsdecode(b"\xff")])
def test_a_place_that_tfds_cannot_use_is_refused(tmp_path, name):
    with pytest.raises(InputError, match=r"TensorFlow Datasets finds nothing .*another --data_dir"):
        Images("digits", size=8).prepare(str(tmp_path / name))
    assert not (tmp_path / name).exists()


@pytest.mark.fast
def test_flags_reach_other_processes_as_they_were_given():
    given = ["--set=a=1\n2", "--set=b=2", f"--data_dir={EVERYTHING}"]
    script = "--host_discovery_script=my hosts.sh"
    flags.parse(chaos.FLAGS, "chaos", [*given, script])
    passed = flags.to_arguments(chaos.FLAGS, ("host_discovery_script",))
    assert sorted(passed) == sorted(given)
    start = Start(1, max_processes=1, discovery_script="my hosts.sh")
    assert "'my hosts.sh'" in launcher.elastic(start, "a:1", {})


def test_texts_vocabulary_and_weights_are_read_from_anywhere(tmp_path):
    folder = tmp_path / EVERYTHING
    folder.mkdir()
    experiment = sentences_in(folder)
    data_dir = str(folder / "data")
    experiment.data.prepare(data_dir)
    data = experiment.data.open(data_dir)
    assert data.num_train + data.num_evaluation == 200
    assert list((folder / "data/text_lengths").glob("*.npy"))
    header = b'{"bert.a": {"dtype": "F32", "shape": [3], "data_offsets": [0, 12]}}'
    content = len(header).to_bytes(8, "little") + header + np.ones(3, np.float32).tobytes()
    (folder / "model.safetensors").write_bytes(content)
    assert Weights(folder)["a"].tolist() == [1, 1, 1]
