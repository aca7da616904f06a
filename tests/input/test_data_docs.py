"""The manual's table of formats: each line is tried on such data."""

import json
import re
import shutil
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import tensorflow as tf
from test_tables import FIXTURE, write_shards

from input.images import Images
from input.tables import Table
from input.text import Text

pytestmark = pytest.mark.fast

DOCS = (Path(__file__).parents[2] / "docs" / "data.md").read_text()
TABLE = DOCS.partition("## Find your format")[2].partition("## What targets")[0]
LINES = re.findall(r"`((?:Images|Text|Table)\(.*?\))`", TABLE)
ELSEWHERE = ("s3://", "movie_sentences", "cifar10", "glue/sst2")  # need a server or a download
BERT = Path(__file__).parents[1] / "fixtures" / "bert"


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    folder = tmp_path_factory.mktemp("docs")
    image = tf.io.encode_png(np.zeros([8, 8, 3], np.uint8)).numpy()
    for split in ("train", "val"):
        for name in ("bag", "shoe"):
            (folder / "photos" / split / name).mkdir(parents=True)
            (folder / "photos" / split / name / "a.png").write_bytes(image)
    (folder / "shards").mkdir()
    write_shards(folder / "shards")
    shutil.copytree(FIXTURE, folder / "reviews_saved")
    moods = ["good", "bad"] * 20
    texts = [f"a {mood} film {i}" for i, mood in enumerate(moods)]
    pq.write_table(pa.table({"text": texts, "mood": moods}), folder / "reviews.parquet")
    photos = {"image": [image] * 40, "label": moods}
    pq.write_table(pa.table(photos), folder / "photos.parquet")
    rows = [f"{text},{mood}" for text, mood in zip(texts, moods, strict=True)]
    (folder / "reviews.csv").write_text("\n".join(["text,label", *rows]))
    (folder / "ratings.csv").write_text("\n".join(["text,stars", *(f"{t},3.5" for t in texts)]))
    numbers = {name: np.arange(40.0) for name in ("area", "rooms", "price")}
    rows = [f"{x},{x},{x}" for x in range(40)]
    (folder / "houses.csv").write_text("\n".join([",".join(numbers), *rows]))
    houses = numbers | {"kind": moods, "street": texts}
    pq.write_table(pa.table(houses), folder / "houses.parquet")
    marks = [json.dumps({"a": 1, "b": 2.5, "red": i % 2, "big": 1}) for i in range(40)]
    (folder / "marks.jsonl").write_text("\n".join(marks))
    (folder / "arrays").mkdir()
    np.savez(folder / "arrays/0.npz", x=np.zeros([40, 2, 3]), y=np.ones([40]))
    return folder


def test_every_format_of_the_code_is_in_the_table():
    assert len(LINES) == 21
    for word in ("parquet", "tar", "arrays", "csv", "jsonl", "saved", "s3://", "diabetes"):
        assert any(word in line for line in LINES)


@pytest.mark.parametrize("line", LINES)
def test_a_line_of_the_table_works(line, data, monkeypatch):
    monkeypatch.chdir(data)
    config = eval(line)
    if any(word in line for word in ELSEWHERE):
        return
    if isinstance(config, Text):
        config = Text(**vars(config) | {"vocabulary": str(BERT)})
    assert config.prepare("data")
    opened = config.open("data")
    assert isinstance(config, Images | Text | Table)
    (x, y, ids), *_ = opened.train(0, 2, lambda k: k, 1)
    for found, spec in ((x, opened.input_spec), (y, opened.target_spec)):
        tf.nest.map_structure(lambda a, b: b.is_compatible_with(a) or pytest.fail(), found, spec)
    assert ids.shape == [2]
