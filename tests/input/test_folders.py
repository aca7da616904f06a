"""Folders of images as people have them: nothing is left out or invented without a word."""

import os
import shutil

import numpy as np
import pytest
from pictures import everything, saved
from PIL import Image

from input import InputError, labels
from input.images import Images

pytestmark = pytest.mark.fast


def encoded(kind="JPEG", seed=0):
    pixels = np.random.default_rng(seed).integers(0, 256, [20, 20, 3], np.uint8)
    return saved(Image.fromarray(pixels), kind)


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


def test_a_folder(folder):
    with pytest.raises(InputError, match="prepare"):
        Images(str(folder)).open(str(folder.parent / "data"))
    report, data = prepare(folder)
    assert "train 12, val 4" in report
    assert (data.num_classes, data.num_train, data.num_evaluation) == (2, 12, 4)
    x, targets, ids = everything(data.train(0, 6, lambda k: k, 2))
    assert x.shape == (12, 16, 16, 3) and sorted(ids) == list(range(12))
    assert [t.argmax() for t in targets] == [0 if i < 6 else 1 for i in ids]
    put(folder, "train/cat/new.jpg", encoded())
    assert "train 13" in prepare(folder)[0]


def test_a_split_without_images_is_refused(folder):
    for path in (folder / "val").rglob("*.jpg"):
        path.unlink()
    with pytest.raises(InputError, match=r"no images in .*/val"):
        prepare(folder)


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


BAD = {
    **{kind: (encoded(kind), f"it is a (?i:{kind})") for kind in ("BMP", "GIF", "WEBP", "TIFF")},
    "empty": (b"", "the image is empty"),
    "a text": (b"no image", "it is neither a JPEG nor a PNG"),
    "cut off": (encoded()[:300], "the JPEG image is damaged"),
}


@pytest.mark.parametrize("kind", BAD)
def test_a_bad_image_is_named_or_skipped(folder, kind):
    content, fault = BAD[kind]
    put(folder, "train/cat/x.jpg", content)
    with pytest.raises(InputError, match=f"1 of 17 images cannot be used .*cat/x.jpg: {fault}"):
        prepare(folder)
    with pytest.raises(InputError, match="bad_image_budget"):
        prepare(folder, on_bad_image="skip", bad_image_budget=0)
    report, data = prepare(folder, on_bad_image="skip")
    assert data.num_train == 12 and "1 skipped" in report and "skipped: " in report


@pytest.mark.parametrize("content", [b"gone", encoded("GIF")])
def test_an_image_damaged_later_is_named(folder, content):
    _, data = prepare(folder)
    put(folder, "train/dog/3.jpg", content)
    fault = r"cannot read .*train/dog/3\.jpg: it is (a GIF image, not|neither) a JPEG[^{}\[\]]*\.$"
    with pytest.raises(InputError, match=fault):
        everything(data.train(0, 12, lambda k: k, 1))
    (folder / "val/cat/1.jpg").unlink()
    missing = r"cannot read .*val/cat/1\.jpg: No such file [^{}\[\]]*\.$"
    with pytest.raises(InputError, match=missing):
        everything(data.evaluation(2, range(4)))


@pytest.mark.parametrize("label", [-1, 2])
def test_a_label_that_is_no_class_is_named(folder, label):
    _, data = prepare(folder)
    for source in (data.training, data.held_out):
        source.files[3] = (source.files[3][0], label)
    path = r"images/{}/\w+/\d.jpg: label {} is not in \[0, 2\).*{}"
    way_out = "set data.train_split or" if label < 0 else "correct it"
    with pytest.raises(InputError, match=path.format("train", label, way_out)):
        everything(data.train(0, 6, lambda k: k, 2))
    with pytest.raises(InputError, match=path.format("val", label, way_out)):
        everything(data.evaluation(2, range(4)))


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
