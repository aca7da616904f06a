"""Columns of every format give the same examples in the same order."""

import csv
import json
import os
import shutil
import tarfile
from io import BytesIO
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import tensorflow as tf
from pictures import everything

from input import InputError
from input.images import Images
from input.tables import Table, arrow, opening
from input.text import Text

pytestmark = pytest.mark.fast

FIXTURE = Path(__file__).parents[1] / "fixtures" / "datasets_folder"  # by datasets 5.2.0
N = 40
RANDOM = np.random.default_rng(0)
COLUMNS = {
    "area": RANDOM.normal(size=N).round(3),
    "rooms": np.arange(N),
    "price": RANDOM.normal(size=N).round(3),
    "kind": np.arange(N) % 3,
}


def as_csv(folder):
    with (folder / "houses.csv").open("w", newline="") as file:
        csv.writer(file).writerows([COLUMNS, *zip(*COLUMNS.values(), strict=True)])
    return "houses.csv"


def as_jsonl(folder):
    rows = ({k: v[i].item() for k, v in COLUMNS.items()} for i in range(N))
    (folder / "houses.jsonl").write_text("\n".join(map(json.dumps, rows)))
    return "houses.jsonl"


def as_parquet(folder):
    pq.write_table(pa.table(COLUMNS), folder / "houses.parquet", row_group_size=7)
    return "houses.parquet"


def as_parquet_files(folder):
    for start in range(0, N, 16):
        part = {name: x[start : start + 16] for name, x in COLUMNS.items()}
        pq.write_table(pa.table(part), folder / f"houses-{start:02}.parquet")
    return "houses-*.parquet"


def as_npz(folder, save=np.savez):
    (folder / "houses").mkdir()
    for start in range(0, N, 16):
        part = {name: x[start : start + 16] for name, x in COLUMNS.items()}
        save(folder / f"houses/{start:02}.npz", **part)
    return "houses"


def as_compressed_npz(folder):
    return as_npz(folder, np.savez_compressed)


FORMATS = [as_csv, as_jsonl, as_parquet, as_parquet_files, as_npz, as_compressed_npz]


@pytest.fixture
def here(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.mark.parametrize("write", FORMATS)
def test_every_format_gives_the_same(here, write):
    config = Table(write(here), inputs=("rooms", "area"), targets=("price",))
    assert "(train 32, test 8): inputs float32 [2]; targets float32 [1]" in config.prepare("data")
    data = config.open("data")
    assert data.meaning == {"inputs": ["rooms", "area"], "targets": ["price"]}
    assert (data.num_classes, data.num_train, data.num_evaluation) == (0, 32, 8)
    is_held = np.arange(N) % 5 == 4
    x = np.stack([COLUMNS["rooms"], COLUMNS["area"]], 1).astype(np.float32)
    y = COLUMNS["price"][:, np.newaxis].astype(np.float32)
    for inputs, targets, ids in data.train(3, 8, lambda k: k, 8):
        assert np.array_equal(inputs, x[~is_held][ids]) and np.array_equal(
            targets, y[~is_held][ids]
        )
    inputs, targets, _ = everything(data.evaluation(4, range(8)))
    assert np.array_equal(inputs, x[is_held]) and np.array_equal(targets, y[is_held])


@pytest.mark.parametrize("write", FORMATS)
def test_classes_and_an_unknown_column(here, write):
    name = write(here)
    config = Table(name, inputs=("area", "rooms"), targets=("kind",), predicts="class")
    config.prepare("data")
    data = config.open("data")
    assert data.classes == ("0", "1", "2") and data.target_spec == tf.TensorSpec([None, 3])
    _, targets, _ = everything(data.evaluation(8, range(8)))
    assert targets.argmax(1).tolist() == COLUMNS["kind"][4::5].tolist()
    with pytest.raises(InputError, match=r"no column 'prise', only .*did you mean 'price'\?"):
        Table(name, inputs=("area",), targets=("prise",)).prepare("data")
    few = Table(name, inputs=("area",), targets=("kind",), predicts="class", classes=("0", "1"))
    with pytest.raises(InputError, match=r"houses.*: label '2' is none of the classes 0, 1: corr"):
        few.prepare("data")


def test_labels_and_all_other_columns(here):
    marks = RANDOM.integers(0, 2, [20, 2])
    columns = {
        "a": RANDOM.normal(size=20),
        "b": np.ones(20),
        "red": marks[:, 0],
        "big": marks[:, 1],
    }
    pq.write_table(pa.table(columns), "marks.parquet")
    config = Table("marks.parquet", targets=("red", "big"), predicts="labels")
    report = config.prepare("data")
    assert f"{marks[[i for i in range(20) if i % 5 < 4], 0].mean():.1%}" in report
    data = config.open("data")
    assert data.classes == ("red", "big") and data.input_spec == tf.TensorSpec([None, 2])
    assert np.array_equal(everything(data.evaluation(4, range(4)))[1], marks[4::5])


def test_lists_texts_and_bytes_are_inputs_by_name(here):
    table = pa.table(
        {
            "vector": pa.FixedSizeListArray.from_arrays(pa.array(range(60), pa.float32()), 3),
            "text": [f"text {i}" for i in range(20)],
            "image": [b"image %d" % i for i in range(20)],
            "age": range(20),
            "target": np.arange(20.0),
        }
    )
    pq.write_table(table, "some.parquet")
    config = Table("some.parquet", ("vector", "age"), ("target",), raw=("text", "image"))
    config.prepare("data")
    data, string = config.open("data"), tf.TensorSpec([None], tf.string)
    numbers = tf.TensorSpec([None, 4])
    assert data.input_spec == {"numbers": numbers, "text": string, "image": string}
    (x, y, _), *_ = data.evaluation(4, range(4))
    assert x["text"].numpy().tolist() == [b"text %d" % i for i in (4, 9, 14, 19)]
    assert x["image"][1] == b"image 9" and y[:, 0].numpy().tolist() == [4, 9, 14, 19]
    assert x["numbers"][1].numpy().tolist() == [27, 28, 29, 9]
    only = Table("some.parquet", ("vector",), ("target",)).open("data")
    assert only.input_spec == tf.TensorSpec([None, 3])


@pytest.mark.parametrize(
    ("column", "message"),
    [
        ([1.0, 2, None, 4, 5, 6], r"^row 2 of bad\.parquet: column 'x' is empty or NaN"),
        ([1.0, 2, np.nan, 4, 5, 6], r"^row 2 of bad\.parquet: column 'x' is empty or NaN"),
        (["1", "2", "three", "4", "5", "6"], r"^row 2 of bad\.parquet: column 'x' is 'three', no"),
        ([[1], [2], [3, 4], [5], [6], [7]],
         r"row 2 of bad\.parquet: the inputs have the shape \[2\], not \[1\]"),
        (pa.array([0] * 6, pa.timestamp("s")), r"column 'x' is timestamp\[ms\]: make it numbers"),
    ],
)  # fmt: skip
def test_what_cannot_be_an_input_is_named(here, column, message):
    pq.write_table(pa.table({"x": column, "y": np.arange(6.0)}), "bad.parquet")
    with pytest.raises(InputError, match=message):
        Table("bad.parquet", ("x",), ("y",)).prepare("data")


def test_a_target_that_is_missing_is_named(here):
    pq.write_table(pa.table({"x": range(6), "y": [1.0, 2, np.nan, 4, 5, 6]}), "bad.parquet")
    with pytest.raises(InputError, match=r"^row 2 of bad\.parquet: column 'y' is empty or NaN"):
        Table("bad.parquet", ("x",), ("y",)).prepare("data")
    Path("bad.csv").write_text("x,y\n1,2\n2,\n3,4\n5,6\n7,8\n")
    with pytest.raises(InputError, match=r"^bad\.csv, line 3: column 'y' is empty or NaN"):
        Table("bad.csv", ("x",), ("y",)).prepare("data")


def test_a_parquet_file_must_be_prepared_again_when_it_changes(here):
    config = Table(as_parquet(here), ("area",), ("price",))
    with pytest.raises(InputError, match=r"houses\.parquet is not prepared"):
        config.open("data")
    config.prepare("data")
    config.open("data")
    os.utime("houses.parquet", ns=(1, 1))
    with pytest.raises(InputError, match=r"houses\.parquet is not prepared, or changed since"):
        config.open("data")
    Path("houses.parquet").write_bytes(b"PAR1 no more")
    with pytest.raises(InputError, match=r"cannot read houses\.parquet: .*[^.]\.$"):
        config.prepare("data")


def test_diabetes_is_scikit_learns():
    from sklearn.datasets import load_diabetes

    data = Table("diabetes").open("")
    assert (data.num_train, data.num_evaluation, data.num_classes) == (354, 88, 0)
    x, y, _ = everything(data.evaluation(8, range(88)))
    theirs = load_diabetes()
    assert np.array_equal(x, theirs.data[4::5].astype(np.float32))
    assert np.array_equal(y[:, 0], theirs.target[4::5].astype(np.float32))


def test_a_folder_of_datasets(here):
    """The folder was written by the package itself: shuffled, in two shards."""
    config = Table(str(FIXTURE), ("numbers", "count"), ("label",), "class", raw=("text", "image"))
    assert "(train 20, test 6)" in config.prepare("data")
    data = config.open("data")
    assert data.classes == ("bad", "good") and data.evaluation_split == "test"
    (x, y, _), *_ = data.evaluation(6, range(6))
    assert x["text"][1] == b"text 101 good" and x["image"][1] == b"png101"
    assert x["numbers"][1].numpy().tolist() == [101, 101.5, -101, 101] and y[1].numpy()[1] == 1
    train = arrow.datasets_folder(FIXTURE)["train"]
    order = [1, 10, 18, 16, 7, 11, 12, 17, 15, 2, 3, 4, 5, 8, 0, 9, 14, 13, 6, 19]
    assert list(train.values(range(20), "count")) == order
    shutil.copytree(FIXTURE, "copy")
    Path("copy/train/data-00001-of-00002.arrow").write_bytes(b"damaged")
    with pytest.raises(InputError, match=r"cannot read copy as a `datasets` folder"):
        Table("copy", ("count",), ("label",), "class").open("data")


def add(archive, name, content):
    member = tarfile.TarInfo(name)
    member.size = len(content)
    archive.addfile(member, BytesIO(content))


def write_shards(folder, count=20, shards=2):
    for shard in range(shards):
        with tarfile.open(folder / f"train-{shard}.tar", "w") as archive:
            for i in range(shard * count // shards, (shard + 1) * count // shards):
                add(archive, f"a/{i:04}.png", png(i))
                add(archive, f"a/{i:04}.cls", b"%d\n" % (i % 2))
                add(archive, f"a/{i:04}.txt", f"text {i} {'good' if i % 2 else 'bad'}".encode())
                array = BytesIO()
                np.save(array, np.full([2], i, np.float32))
                add(archive, f"a/{i:04}.npy", array.getvalue())
    return str(folder / "train-*.tar")


def png(i):
    return tf.io.encode_png(np.full([4, 4, 3], 10 * i, np.uint8)).numpy()


def test_tar_shards_are_read_by_index(here):
    config = Table(write_shards(here), ("npy",), ("cls",), "class", raw=("txt",))
    assert "(train 16, test 4)" in config.prepare("data")
    data = config.open("data")
    held = [i for i in range(20) if i % 5 == 4]
    (x, y, _), *_ = data.evaluation(4, range(4))
    assert x["numbers"].numpy().tolist() == [[i, i] for i in held]
    assert y.numpy().argmax(1).tolist() == [i % 2 for i in held]
    assert x["txt"][0] == b"text 4 bad"
    trained = [i for i in range(20) if i % 5 < 4]
    for x, _, ids in data.train(2, 4, lambda k: k, 8):
        assert x["numbers"][:, 0].numpy().tolist() == [trained[i] for i in ids.numpy()]


def test_a_shard_that_changed_or_lacks_a_file_is_refused(here):
    config = Table(write_shards(here), ("npy",), ("cls",), "class")
    with pytest.raises(InputError, match=r"not prepared"):
        config.open("data")
    config.prepare("data")
    with tarfile.open("train-1.tar", "a") as archive:
        add(archive, "a/0099.cls", b"1")
    with pytest.raises(InputError, match=r"a shard changed since: run"):
        config.open("data")
    message = r"^a/0099 in .*train-1\.tar has no \.npy: add it"
    with pytest.raises(InputError, match=message):
        config.prepare("data")
    Path("train-1.tar").write_bytes(b"no tar")
    with pytest.raises(InputError, match=r"cannot read .*train-1\.tar: .*must be a tar file that"):
        config.prepare("data")


def test_images_of_shards_and_of_parquet_are_those_of_a_folder(here):
    rows = [(png(i), i % 2) for i in range(20)]
    column = pa.array([{"bytes": x, "path": None} for x, _ in rows])
    pq.write_table(pa.table({"image": column, "label": [y for _, y in rows]}), "images.parquet")
    found = []
    for dataset in (write_shards(here), "images.parquet"):
        config = Images(dataset, size=4, mean=(0.0,) * 3, std=(1 / 255,) * 3)
        report = config.prepare("data")
        assert "(train 16, test 4)" in report and "    0 0 " in report
        data = config.open("data")
        assert data.kind == "image" and data.classes == ("0", "1")
        found.append(everything(data.train(1, 4, lambda k: k, 4)))
        x, y, _ = everything(data.evaluation(4, range(4)))
        assert x[:, 0, 0, 0].tolist() == [40, 90, 140, 190] and y.argmax(1).tolist() == [0, 1, 0, 1]
    for a, b in zip(*found, strict=True):
        assert np.array_equal(a, b)


def test_texts_of_a_datasets_folder(here):
    words = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "text", "good", "bad"]
    Path("vocab.txt").write_text("\n".join(words))
    config = Text(str(FIXTURE), vocabulary=".", has_baseline=False)
    assert "training: 20 texts" in config.prepare("data")
    data = config.open("data")
    assert data.classes == ("bad", "good")
    (ids, y, _), *_ = data.evaluation(6, range(6))
    assert ids[1].numpy().tolist() == [2, 4, 1, 5, 3, 0, 0, 0] and y[1].numpy()[1] == 1


def test_a_damaged_image_of_a_shard_is_named(here):
    with tarfile.open("x.tar", "w") as archive:
        for i in range(10):
            add(archive, f"{i}.png", b"GIF89a" if i == 3 else png(i))
            add(archive, f"{i}.cls", b"%d" % (i % 2))
    config = Images("x.tar", size=4)
    config.prepare("data")
    with pytest.raises(InputError, match=r"cannot read 3 in x\.tar: it is a GIF image"):
        list(config.open("data").train(1, 8, lambda k: k, 1))


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("none.parquet", r"no file none\.parquet"),
        ("x.docx", r"x\.docx may be of any format: name a \.csv"),
        (".", r"has neither \.npz files nor"),
    ],
)
def test_data_that_are_not_there(here, name, message):
    with pytest.raises(InputError, match=message):
        opening.parts(name, None, "data", ("a",), prepares=True)


@pytest.mark.parametrize("kind", [Images, Text, lambda name: Table(name, ("a",), ("b",))])
def test_credentials_in_a_url_are_refused_and_not_repeated(kind):
    with pytest.raises(ValueError, match="has credentials in it") as error:
        kind("s3://key:hush@bucket/x.parquet")
    assert "hush" not in str(error.value)
