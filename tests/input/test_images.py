import dataclasses

import numpy as np
import pytest
import tensorflow as tf
from PIL import Image

from input import InputError
from input.images import Images, decoding, image_set, preprocessing


@pytest.fixture
def folder(tmp_path):
    """Two classes of five training images and two for validation."""
    random = np.random.default_rng(0)
    for split, count in (("train", 5), ("val", 2)):
        for name in ("cat", "dog"):
            path = tmp_path / "images" / split / name
            path.mkdir(parents=True)
            for i in range(count):
                image = random.integers(0, 256, [40, 30 + i, 3], np.uint8)
                (path / f"{i}.jpg").write_bytes(tf.io.encode_jpeg(image).numpy())
    return tmp_path / "images"


def images(folder, **changes) -> Images:
    return Images(str(folder), size=16, **changes)


def everything(dataset):
    return [np.concatenate([y.numpy() for y in x]) for x in zip(*dataset, strict=True)]


def test_a_folder(folder, tmp_path):
    config, data_dir = images(folder), str(tmp_path / "data")
    with pytest.raises(InputError, match="prepare"):
        config.open(data_dir)
    assert "train 10, val 4" in config.prepare(data_dir)
    data = config.open(data_dir)
    assert (data.num_classes, data.num_train, data.num_evaluation) == (2, 10, 4)
    x, targets, ids = everything(data.train(0, 5, lambda k: k, 2))
    assert x.shape == (10, 16, 16, 3) and sorted(ids) == list(range(10))
    assert [t.argmax() for t in targets] == [0 if i < 5 else 1 for i in ids]


def test_a_new_image_is_found_by_the_next_prepare(folder, tmp_path):
    config, data_dir = images(folder), str(tmp_path / "data")
    config.prepare(data_dir)
    (folder / "train/cat/new.jpg").write_bytes((folder / "train/cat/0.jpg").read_bytes())
    assert "train 11" in config.prepare(data_dir)


def test_a_folder_without_images(folder, tmp_path):
    for path in (folder / "val").rglob("*.jpg"):
        path.unlink()
    with pytest.raises(InputError, match=r"no images in .*/val"):
        images(folder).prepare(str(tmp_path / "data"))


def test_classes_that_differ(folder, tmp_path):
    (folder / "val/dog").rename(folder / "val/wolf")
    with pytest.raises(InputError, match=r"train has no image of 'wolf' .*val .* 'dog'"):
        images(folder).prepare(str(tmp_path / "data"))


@pytest.mark.parametrize("content", [b"", b"no image", None])
def test_a_bad_image_is_named_or_skipped(folder, tmp_path, content):
    bad, data_dir = folder / "train/cat/1.jpg", str(tmp_path / "data")
    bad.write_bytes(bad.read_bytes()[:300] if content is None else content)
    with pytest.raises(InputError, match=r"train/cat/1\.jpg"):
        images(folder).prepare(data_dir)
    with pytest.raises(InputError, match="bad_image_budget"):
        images(folder, on_bad_image="skip", bad_image_budget=0).prepare(data_dir)
    config = images(folder, on_bad_image="skip")
    assert "1 skipped" in config.prepare(data_dir)
    assert config.open(data_dir).num_train == 9


def test_an_image_damaged_later_is_named(folder, tmp_path):
    config, data_dir = images(folder), str(tmp_path / "data")
    config.prepare(data_dir)
    data = config.open(data_dir)
    (folder / "train/dog/3.jpg").write_bytes(b"gone")
    with pytest.raises(InputError, match=r"cannot read .*train/dog/3\.jpg: [^{}\[\]]*\.$"):
        everything(data.train(0, 10, lambda k: k, 1))
    (folder / "val/cat/1.jpg").unlink()
    with pytest.raises(
        InputError, match=r"cannot read .*val/cat/1\.jpg: No such file [^{}\[\]]*\.$"
    ):
        everything(data.evaluation(2, range(4)))


@pytest.mark.parametrize("label", [-1, 2])
def test_a_label_that_is_no_class_is_named(folder, tmp_path, label):
    config, data_dir = images(folder), str(tmp_path / "data")
    config.prepare(data_dir)
    data = config.open(data_dir)
    for source in (data.training, data.held_out):
        source.files[3] = (source.files[3][0], label)
    path = r"images/{}/\w+/\d.jpg: label {} is not in \[0, 2\).*set data.train_split or"
    with pytest.raises(InputError, match=path.format("train", label)):
        everything(data.train(0, 5, lambda k: k, 2))
    with pytest.raises(InputError, match=path.format("val", label)):
        everything(data.evaluation(2, range(4)))


@pytest.mark.parametrize("kind", ["GIF", "BMP"])
def test_what_is_no_jpeg_is_refused_whatever_its_name(folder, tmp_path, kind):
    config, data_dir = images(folder), str(tmp_path / "data")
    config.prepare(data_dir)
    Image.new("RGB", (40, 30)).save(folder / "train/cat/1.jpg", kind)
    with pytest.raises(InputError, match=rf"cat/1\.jpg: it is a {kind} image, not a JPEG"):
        everything(config.open(data_dir).train(0, 10, lambda k: k, 1))
    with pytest.raises(InputError, match=r"cat/1\.jpg"):
        config.prepare(data_dir)


def test_unknown_names(tmp_path):
    with pytest.raises(InputError, match="no data set 'no_such_set'"):
        Images("no_such_set").open(str(tmp_path))
    with pytest.raises(InputError, match="not prepared"):
        Images("digits").open(str(tmp_path))


@pytest.fixture(scope="module")
def data_dir(tmp_path_factory):
    return str(tmp_path_factory.mktemp("data"))


@pytest.fixture(scope="module")
def digits(data_dir):
    config = Images("digits", size=8, mean=(0.0,) * 3, std=(1.0,) * 3)
    assert "train 1,437, test 360" in config.prepare(data_dir)
    return config.open(data_dir)


def test_a_part_of_the_training_images_for_choosing(digits, data_dir):
    config = Images("digits", size=8, train_split="train[:80%]", evaluation_split="train[80%:]")
    data = config.open(data_dir)
    assert (data.num_train, data.num_evaluation) == (1150, 287)
    with pytest.raises(InputError, match=r"no split 'valid\[:5%\]', only t"):
        dataclasses.replace(config, evaluation_split="valid[:5%]").open(data_dir)


def test_digits_are_scikit_learns(digits):
    from sklearn.datasets import load_digits

    x, targets, weights = everything(digits.evaluation(50, range(360)))
    kept = weights > 0
    ours = sorted(zip(x[kept].mean((1, 2, 3)).round(4), targets[kept].argmax(1), strict=True))
    raw = load_digits()
    held = [i for i in range(1797) if i % 5 == 0]
    values = np.round(raw.images[held] * (255 / 16)).astype(np.uint8) / 255
    theirs = sorted(zip(values.mean((1, 2)).round(4), raw.target[held], strict=True))
    np.testing.assert_allclose(ours, theirs, atol=2e-4)


@pytest.mark.parametrize("processes", [1, 2, 3, 7])
def test_evaluation_sees_every_example_once(digits, processes):
    from app.parallel.topology import slice_of

    shares = [slice_of(360, processes, r) for r in range(processes)]
    parts = [everything(digits.evaluation(16, s)) for s in shares]
    total = sum(float((x.sum((1, 2, 3)) * w).sum()) for x, _, w in parts)
    whole = everything(digits.evaluation(16, range(360)))
    assert sum(w.sum() for _, _, w in parts) == 360
    assert total == pytest.approx(float((whole[0].sum((1, 2, 3)) * whole[2]).sum()), rel=1e-5)


@pytest.mark.parametrize("augmentation", ["shift_flip", "imagenet"])
def test_augmentation_depends_only_on_the_place(augmentation):
    config = Images("synthetic", size=24, augmentation=augmentation, mixup=0.3,
                    synthetic_examples=64, synthetic_classes=5)  # fmt: skip
    data = config.open("")
    whole = everything(data.train(7, 4, lambda k: k, 6))
    second = everything(data.train(7, 4, lambda k: k + 3, 3))  # a process that runs the last 3
    for a, b in zip(whole, second, strict=True):
        assert np.array_equal(a[12:], b)
    assert not np.array_equal(whole[0], everything(data.train(8, 4, lambda k: k, 6))[0])


def test_a_crop_of_a_jpeg_equals_the_crop_of_its_pixels():
    data, _, _ = Images("synthetic").open_splits("")
    encoded = tf.constant(data.fetch([3])[0][0])
    window = tf.constant([16, 32, 64, 80])
    crop = decoding.image(decoding.read_header(encoded), window)
    assert crop.shape == (64, 80, 3)
    whole = preprocessing.decode(encoded)[16:80, 32:112]
    # At its border the crop lacks the neighbours from which colour is interpolated.
    assert np.array_equal(crop[2:-2, 2:-2], whole[2:-2, 2:-2])


def test_evaluation_takes_the_standard_centre_crop():
    crop = preprocessing.Preprocessing(224, "imagenet", mean=(0.0,) * 3, std=(1 / 255,) * 3)
    image = np.random.default_rng(0).integers(0, 256, [256, 300, 3], np.uint8)
    out = crop.evaluation(tf.io.encode_png(image))
    np.testing.assert_allclose(out, image[16:240, 38:262], atol=1e-3)


def test_mixup_mixes_images_and_targets_with_one_weight():
    x = tf.reshape(tf.range(4.0), [4, 1, 1, 1])
    y = tf.one_hot([0, 1, 2, 3], 4)
    mixed, targets = image_set.mixup(x, y, 1.0, tf.constant([1, 2], tf.int64))
    weight = float(targets[0, 0])
    assert 0 < weight < 1
    np.testing.assert_allclose(
        mixed[:, 0, 0, 0], weight * np.arange(4) + (1 - weight) * np.arange(4)[::-1], rtol=1e-5
    )
    np.testing.assert_allclose(targets[0], [weight, 0, 0, 1 - weight], rtol=1e-5)
