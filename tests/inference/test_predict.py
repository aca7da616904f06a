"""Predictions: in order, the same on every layout, with what cannot be read in its place."""

import csv
import json
from types import SimpleNamespace

import numpy as np
import pytest
import tensorflow as tf
from conftest import write_sentences
from ranks import SHALLOW, TEXTS, forked, start, succeeded

from app.config import Layout
from app.errors import UsageError
from app.inference import predict
from app.inference.predict import Job
from app.inference.predictor import TensorReader
from app.inference.shards import Shards
from input.items import OfRows
from input.raw import Limits


def read(path):
    return [json.loads(line) for line in path.read_text().splitlines()]


@pytest.fixture
def predicted(train, joined, tmp_path):
    """Trains an experiment, then predicts in this process; returns the rows."""

    def run(experiment, source, output="out.jsonl", **changes):
        if not (tmp_path / "run").exists():
            train(experiment)
        job = Job(
            **{
                "source": str(source), "output": tmp_path / output, "form": None, "field": None,
                "top": 3, "weights": "best", "batch": 4, "threads": 2, "limits": Limits(),
            }
            | changes
        )  # fmt: skip
        data_dir = str(tmp_path / "data")
        predict.main(experiment, Layout(), joined, tmp_path / "run", data_dir, job)
        return read(job.output) if output.endswith(".jsonl") else None

    return run


def test_a_split_is_predicted_as_it_is_evaluated(predicted, shallow, tmp_path):
    rows = predicted(shallow, "split:test")
    assert [row["index"] for row in rows] == list(range(101))
    assert [row["label"] for row in rows] == [str(i % 7) for i in range(101)]
    for row in rows:
        scores = list(row["probabilities"].values())
        assert len(scores) == 3 and scores == sorted(scores, reverse=True)
        assert row["class"] == next(iter(row["probabilities"]))
    result = json.loads((tmp_path / "run/result.json").read_text())
    right = np.mean([row["class"] == row["label"] for row in rows])
    assert right == pytest.approx(result["metrics"]["test"]["accuracy"])
    assert not (tmp_path / "out.jsonl.partial").exists()


def test_what_cannot_be_read_stays_in_its_place(predicted, shallow, tmp_path, capfd):
    folder = tmp_path / "images"
    folder.mkdir()
    good = shallow.data.open("").held_out.fetch([0, 1])[0]
    for i in range(13):
        (folder / f"{i:02d}.jpg").write_bytes(good[i % 2])
    (folder / "03.jpg").write_bytes(good[1][: len(good[1]) // 2])  # the header is whole
    (folder / "04.jpg").write_bytes(b"")
    (folder / "05.jpg").write_text("no image")
    for i in range(8, 12):  # a whole batch
        (folder / f"{i:02d}.jpg").write_bytes(b"no image")
    rows = predicted(shallow, folder)
    assert [row["item"] for row in rows] == [f"{i:02d}.jpg" for i in range(13)]
    wrong = [i for i, row in enumerate(rows) if "error" in row]
    assert wrong == [3, 4, 5, 8, 9, 10, 11]
    assert not any(mark in rows[3]["error"] for mark in ("{{", "[Op", "[[", "device"))
    assert "cannot be decoded" in rows[3]["error"] and rows[4]["error"] == "the image is empty"
    assert rows[0]["probabilities"] == rows[2]["probabilities"] == rows[12]["probabilities"]
    assert "7 could not be read" in capfd.readouterr().err


def test_texts_of_any_length_stay_in_order(predicted, words, tmp_path):
    lines = [" ".join("abcdefghij"[: i % 10 + 1]) for i in range(30)] + ["", "x" * 200_000]
    (tmp_path / "in.txt").write_text("\n".join(lines))
    rows = predicted(words, tmp_path / "in.txt")
    assert [row["item"] for row in rows] == list(range(1, 33))
    for i in range(10):  # equal texts: equal but for what is padded beside them
        assert rows[i]["probabilities"]["1"] == pytest.approx(
            rows[i + 20]["probabilities"]["1"], abs=1e-6
        )
    assert rows[30]["error"] == "the text is empty" and "200000 bytes" in rows[31]["error"]

    # As columns; of the average, which is the best; and of the last step's weights.
    predicted(words, tmp_path / "in.txt", output="out.csv", weights="average")
    table = list(csv.DictReader((tmp_path / "out.csv").open()))
    assert [row["class_1"] for row in table[:30]] == [row["class"] for row in rows[:30]]
    assert float(table[3]["probability_1"]) == rows[3]["probabilities"][rows[3]["class"]]
    assert table[30]["error"] == "the text is empty" and not table[30]["class_1"]
    last = predicted(words, tmp_path / "in.txt", output="last.jsonl", weights="trained")
    assert last[0]["probabilities"] != rows[0]["probabilities"]


def test_items_are_read_as_they_are_needed(predicted, words, tmp_path, monkeypatch):
    (tmp_path / "in.txt").write_text("\n".join("abcdefghij"[i % 10] for i in range(400)))
    read: set[int] = set()
    when_written: list[int] = []
    fetch, write = OfRows.fetch, Shards.write

    def fetching(self, i):
        read.add(i)
        return fetch(self, i)

    def writing(self, shard, rows):
        when_written.append(len(read))
        write(self, shard, rows)

    monkeypatch.setattr(OfRows, "fetch", fetching)
    monkeypatch.setattr(Shards, "write", writing)
    assert len(predicted(words, tmp_path / "in.txt", threads=1)) == 400
    # Shards of two batches of four: one is done, and those of the two batches after it are begun.
    assert when_written[0] <= 3 * 8 and when_written[-1] == 400


def test_finished_shards_are_not_done_again(predicted, shallow, tmp_path, monkeypatch, capfd):
    written: list[int] = []
    write = Shards.write

    def breaking(self, shard, rows):
        if len(written) >= 5:
            raise UsageError("the disk is full")
        write(self, shard, rows)
        written.append(shard)

    whole = predicted(shallow, "split:test", output="whole.jsonl")
    monkeypatch.setattr(Shards, "write", breaking)
    with pytest.raises(UsageError, match="the disk is full"):
        predicted(shallow, "split:test")
    assert 5 <= len(written) <= 6 and not (tmp_path / "out.jsonl").exists()
    with pytest.raises(UsageError, match=r"another job: top: 2 here, 3 there"):
        predicted(shallow, "split:test", top=2)

    def noting(self, shard, rows):
        written.append(shard)
        write(self, shard, rows)

    monkeypatch.setattr(Shards, "write", noting)
    with pytest.raises(UsageError, match=r"another job: pixels: 99 here"):
        predicted(shallow, "split:test", limits=Limits(pixels=99))
    capfd.readouterr()
    assert predicted(shallow, "split:test") == whole
    printed = capfd.readouterr().err
    right = sum(row["class"] == row["label"] for row in whole) / 101
    assert "101 items" in printed and f"accuracy {right:.4f} of 101" in printed
    assert sorted(written) == list(range(26))  # 101 items, 4 in each: once each
    with pytest.raises(UsageError, match="exists"):
        predicted(shallow, "split:test")


@pytest.mark.parametrize("items", [1, 31, 32, 33, 1000, 131_072, 131_073, 1_000_000])
def test_shards_are_whole_batches_and_hold_every_item_once(items, tmp_path):
    shards = Shards(tmp_path / "out.jsonl", items, 32, [])
    ranges = [shards.indices(i) for i in range(shards.count)]
    assert [p.start for p in ranges[1:]] == [p.stop for p in ranges[:-1]]
    assert ranges[0].start == 0 and ranges[-1].stop == items and shards.size % 32 == 0
    assert shards.size <= 32 * 64 and (items < 10_000 or shards.count >= 32)


@pytest.mark.ranks
def test_predictions_are_the_same_bits_on_any_layout(tmp_path):
    (tmp_path / "mine.py").write_text(SHALLOW)
    (tmp_path / "texts.py").write_text(TEXTS)
    write_sentences(tmp_path)
    _, *rows = (tmp_path / "train.tsv").read_text().splitlines()
    (tmp_path / "in.txt").write_text("\n".join(row.partition("\t")[0] for row in rows))
    for experiment, source, layouts in (
        ("mine.py:tiny", "split:test", [(1, 1), (2, 4)]),
        ("texts.py:tiny", "in.txt", [(1, 1), (3, 1)]),
    ):
        flags = [f"--experiment={experiment}", "--set", "steps=2", "--workdir=run"]
        done = succeeded(forked(1, tmp_path, "train", *flags))
        outputs = set()
        for np_, stages in layouts:
            name = f"{np_}x{stages}.jsonl"
            flags = ["--workdir=run", f"--input={source}", f"--output={name}"]
            done = succeeded(forked(np_, tmp_path, "predict", *flags, f"--stages={stages}"))
            outputs.add((tmp_path / name).read_text())
            (tmp_path / name).unlink()
        assert len(outputs) == 1
        assert len(outputs.pop().splitlines()) == (101 if source.startswith("split") else 200)
        (tmp_path / "run").rename(tmp_path / f"run-{experiment[:4]}")

    # Through standard input and output, as a person types it; and the file's end without a line's.
    command = "printf 'a b\\n\\nc d' | python -m app launch predict --workdir=run-text --input=-"
    done = succeeded(start(["bash", "-c", command], tmp_path, NP="2"))
    rows = [json.loads(line) for line in done.stdout.splitlines()]
    assert [row["item"] for row in rows] == [1, 2, 3] and "error" in rows[1]
    assert {name.name for name in tmp_path.glob("*.partial")} == set()


@pytest.mark.parametrize("are_classes", [True, False])
def test_a_label_is_a_class_only_where_targets_are_classes(are_classes):
    """Of several labels an example may have just one, which looks like a class."""
    rows = tf.constant([[0.0, 1.0, 0.0], [1.0, 0.0, 0.0]])
    data = SimpleNamespace(
        kind="", num_classes=3, classes=("a", "b", "c"),
        evaluation=lambda batch, run: [(tf.zeros([2, 4]), rows, tf.ones([2]))],
    )  # fmt: skip
    reader = TensorReader(None, data, SimpleNamespace(batch=2), Limits(), are_classes)
    expected = {0: "b", 1: "a"} if are_classes else {0: [0.0, 1.0, 0.0], 1: [1.0, 0.0, 0.0]}
    assert reader.read(0, [0, 1]).labels == expected
