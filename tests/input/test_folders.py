"""Folders of images as people have them: nothing is left out or invented without a word."""

import io
import os
import shutil

import numpy as np
import pytest
from PIL import Image

from input import InputError, labels
from input.images import Images

pytestmark = pytest.mark.fast


def encoded(kind="JPEG", seed=0):
    pixels = np.random.default_rng(seed).integers(0, 256, [20, 20, 3], np.uint8)
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, kind)
    return file.getvalue()


@pytest.fixture
def folder(tmp_path):
    """Two classes of six training images and two for validation."""
    for split, count in (("train", 6), ("val", 2)):
        for name in ("cat", "dog"):
            for i in range(count):
                put(tmp_path / "images", f"{split}/{name}/{i}.jpg", encoded(seed=i))
    return tmp_path / "images"


def put(folder, name, content):
    (folder / name).parent.mkdir(parents=True, exist_ok=True)
    (folder / name).write_bytes(content)


def prepare(folder, **changes):
    config = Images(str(folder), size=16, **changes)
    report = config.prepare(str(folder.parent / "data"))
    return report, config.open(str(folder.parent / "data"))


def test_a_table_shows_every_class_and_how_many_it_has(folder):
    report, _ = prepare(folder)
    lines = [line.split() for line in report.splitlines()]
    assert ["class", "train", "val"] in lines
    assert ["0", "cat", "6", "2"] in lines and ["1", "dog", "6", "2"] in lines
    assert "warning" not in report and "left out" not in report
    assert report == prepare(folder)[0]  # also where nothing is done again


def test_hidden_names_are_no_data(folder):
    for name in ("train/.ipynb_checkpoints/0.jpg", "train/cat/._0.jpg", "val/dog/.x/0.jpg"):
        put(folder, name, encoded())
    put(folder, "train/cat/.DS_Store", b"x")
    report, data = prepare(folder)
    assert data.classes == ("cat", "dog") and data.num_train == 12 and "left out" not in report


def test_what_is_left_out_is_named(folder):
    for i in range(10):
        put(folder, f"train/cat/w{i}.webp", encoded("WEBP", i))
    put(folder, "train/cat/notes.txt", b"a note")
    put(folder, "train/lone.jpg", encoded())
    report, data = prepare(folder)
    assert data.num_train == 12
    (webp,) = [line for line in report.splitlines() if ".webp" in line]
    assert webp.startswith("left out of train: 10 (train/cat/w0.webp, ") and "WebP" in webp
    assert "1 (train/cat/notes.txt)" in report
    assert "1 (train/lone.jpg): not in the folder of a class" in report


def test_images_of_other_names_and_in_folders_below_are_taken(folder):
    for name in ("train/cat/below/it/a.JPEG", "train/cat/b.jfif", "train/dog/no_suffix"):
        put(folder, name, encoded(seed=9))
    put(folder, "train/dog/really.webp", encoded("PNG"))
    report, data = prepare(folder)
    assert data.num_train == 16 and "left out" not in report
    os.symlink(folder / "train/cat", folder / "train/cat/loop")
    assert prepare(folder)[1].num_train == 16
    shutil.copytree(folder / "train/dog", folder.parent / "elsewhere")
    shutil.rmtree(folder / "train/dog")
    os.symlink(folder.parent / "elsewhere", folder / "train/dog")
    assert prepare(folder)[1].num_train == 16


def test_a_class_without_images_is_refused(folder):
    for split in ("train", "val"):
        put(folder, f"{split}/bird/0.webp", encoded("WEBP"))
    with pytest.raises(
        InputError, match=r"train has no image of 'bird' \(there: 1 \(.webp: .*WebP"
    ):
        prepare(folder)
    shutil.rmtree(folder / "train/bird")
    shutil.rmtree(folder / "val/bird")
    (folder / "train/empty").mkdir()
    with pytest.raises(InputError, match=r"'empty' .there: nothing.*val has .* .no folder"):
        prepare(folder)


def test_a_class_with_only_bad_images_is_refused(folder):
    for split in ("train", "val"):
        put(folder, f"{split}/bird/0.jpg", b"no image")
    with pytest.raises(InputError, match="'bird'"):
        prepare(folder, on_bad_image="skip")


def test_one_class_is_refused(folder):
    for split in ("train", "val"):
        shutil.rmtree(folder / split / "dog")
    with pytest.raises(InputError, match=r"has 1 class \(cat\): training needs 2 or more"):
        prepare(folder)


@pytest.mark.parametrize("kind", ["BMP", "GIF", "WEBP", "TIFF"])
def test_another_format_under_the_name_of_a_jpeg_is_a_bad_image(folder, kind):
    put(folder, "train/cat/x.jpg", encoded(kind))
    with pytest.raises(
        InputError, match=f"1 of 17 images cannot be used .*x.jpg: it is a (?i:{kind})"
    ):
        prepare(folder)
    report, data = prepare(folder, on_bad_image="skip")
    assert data.num_train == 12 and "1 skipped" in report and "skipped: " in report


def test_an_index_of_an_older_version_is_made_again(folder):
    prepare(folder)
    (path,) = (folder.parent / "data/image_folders").glob("*.json")
    path.write_text(path.read_text().replace('"format": 2, ', ""))
    with pytest.raises(InputError, match="not prepared by this version"):
        Images(str(folder), size=16).open(str(folder.parent / "data"))
    prepare(folder)


@pytest.mark.parametrize(
    ("names", "words"),
    [
        (["Cat", "cat", "dog"], "'Cat' and 'cat' differ only in case"),
        (["a b", "a  b"], "'a b' and 'a  b' differ"),
        (["good", "good\u200b"], "'good' and 'good\\u200b' differ"),
        (["1", "1.0", "2"], "'1' and '1.0' differ"),
        (["neg", "['neg']"], "differ only"),
        (['"pos"', "pos"], "differ only"),
        (["good", "nan"], "'nan' looks like a label that is missing"),
    ],
)
def test_classes_that_may_be_mistaken_are_warned_of(names, words):
    (found,) = labels.doubts(names, {"train": [9] * len(names)})
    assert words in found


def test_classes_as_they_should_be_are_not_warned_of():
    names = ["0", "1", "10", "cat", "cats", "über"]
    assert not list(labels.doubts(names, {"train": [5] * 6}))
    (few,) = labels.doubts(["a", "b"], {"train": [4, 900], "test": [1, 9]})
    assert few == "few examples in train: 'a' 4."


def test_a_table_of_many_classes_shows_the_smallest():
    names, counts = [f"class {i}" for i in range(1000)], [i + 10 for i in range(1000)]
    report = labels.report(names, {"train": counts, "val": [5] * 1000})
    assert len(report) < 20 and "class 0 " in report[1]
    assert "10 smallest of 1,000 (train: 10 to 1,009 a class; val: 5 to 5 a class)" in report[-1]
