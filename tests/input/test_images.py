import dataclasses

import numpy as np
import pytest
import tensorflow as tf
from pictures import everything

from input import InputError
from input.images import Images, image_set, preprocessing


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
