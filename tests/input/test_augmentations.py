"""Augmentations as objects: functions of the key, drawn evenly, and as Pillow computes them."""

import dataclasses
import typing
from dataclasses import dataclass

import numpy as np
import pytest
import tensorflow as tf
from pictures import everything
from PIL import Image, ImageEnhance, ImageOps

from app.cli.overrides import is_of
from input.images import Images, operations
from input.images.augmentations import OPERATIONS, RandAugment, RandomErasing

pytestmark = pytest.mark.fast

SYNTHETIC = Images("synthetic", size=24, synthetic_examples=64, synthetic_classes=5)


def pictures():
    """A picture with all values, one with few, and one of a single value."""
    random = np.random.default_rng(0)
    ramp = np.linspace(0, 250, 20 * 24).reshape(20, 24, 1) + random.integers(0, 6, [20, 24, 3])
    few = random.choice([30, 31, 99, 200], [20, 24, 3], p=[0.7, 0.1, 0.1, 0.1])
    return [x.astype(np.uint8) for x in (ramp, few, np.full([20, 24, 3], 77))]


def affine(matrix):
    return lambda x: x.transform(
        x.size, Image.Transform.AFFINE, matrix, Image.Resampling.NEAREST, fillcolor=(128,) * 3
    )


def enhanced(kind, factor):
    return lambda x: kind(x).enhance(factor)


PILLOW = {
    "identity": lambda x: x,
    "autocontrast": ImageOps.autocontrast,
    "equalize": ImageOps.equalize,
    "rotate": lambda x: x.rotate(-15, Image.Resampling.NEAREST, fillcolor=(128,) * 3),
    "solarize": lambda x: ImageOps.solarize(x, 128),
    "color": enhanced(ImageEnhance.Color, 0.55),
    "posterize": lambda x: ImageOps.posterize(x, 6),
    "contrast": enhanced(ImageEnhance.Contrast, 0.55),
    "brightness": enhanced(ImageEnhance.Brightness, 0.55),
    "sharpness": enhanced(ImageEnhance.Sharpness, 0.55),
    "shear_x": affine((1, -0.15, 0, 0, 1, 0)),
    "shear_y": affine((1, 0, 0, -0.15, 1, 0)),
    "translate_x": affine((1, 0, -5, 0, 1, 0)),  # 0.45 / 2 of 24 pixels, rounded
    "translate_y": affine((1, 0, 0, 0, 1, -4)),  # of 20 pixels: 4.5, to the even number
}


@pytest.mark.parametrize("name", OPERATIONS)
def test_an_operation_is_pillows(name):
    for image in pictures():
        ours = operations.OPERATIONS[name](tf.constant(image), 0.5, tf.constant(-1.0)).numpy()
        theirs = np.asarray(PILLOW[name](Image.fromarray(image)))
        # One of them rounds to float32: a value may differ by 1, or a pixel on an edge be another.
        far = (np.abs(ours.astype(int) - theirs) > 1).any(-1)
        assert far.mean() < 0.01, (name, far.mean())
        assert ours.dtype == np.uint8 and ours.shape == image.shape
    if name != "identity":
        first = pictures()[0]
        changed = operations.OPERATIONS[name](tf.constant(first), 0.5, tf.constant(-1.0))
        assert (changed.numpy() != first).mean() > 0.1


def test_signs_and_magnitudes_matter():
    image = tf.constant(pictures()[0])
    for name in set(OPERATIONS) - {"identity", "autocontrast", "equalize"}:
        change = operations.OPERATIONS[name]
        assert not np.array_equal(change(image, 0.9, 1.0), change(image, 0.2, 1.0)), name
        if name not in ("solarize", "posterize"):
            assert not np.array_equal(change(image, 0.9, 1.0), change(image, 0.9, -1.0)), name


def test_what_is_drawn_is_even_and_a_function_of_the_key():
    @tf.function
    def draw(keys):
        def one(key):
            indices, signs = zip(*operations.drawn(key, 14, 2), strict=True)
            return tf.stack(indices), tf.stack(signs)

        types = (tf.TensorSpec([2], tf.int32), tf.TensorSpec([2]))
        return tf.map_fn(one, keys, fn_output_signature=types)

    keys = tf.stack([tf.fill([7000], tf.constant(3, tf.int64)), tf.range(7000, dtype=tf.int64)], 1)
    indices, signs = (x.numpy() for x in draw(keys))
    counts = np.bincount(indices.ravel(), minlength=14)
    assert ((counts - 1000) ** 2 / 1000).sum() < 40  # chi-square of 13: p = 1e-4
    pairs = np.bincount(indices[:, 0] * 14 + indices[:, 1], minlength=196)
    assert ((pairs - 7000 / 196) ** 2 / (7000 / 196)).sum() < 278  # of 195: p = 1e-4
    assert abs((signs > 0).mean() - 0.5) < 0.02
    again = draw(keys[5:9])
    assert np.array_equal(again[0], indices[5:9]) and np.array_equal(again[1], signs[5:9])


def test_erasing_has_the_stated_distribution():
    @tf.function
    def erased(keys):
        erasing = RandomErasing(probability=0.6, area=(0.1, 0.3), aspect=0.5)
        blank = tf.fill([32, 32, 3], -1.0)
        return tf.map_fn(lambda key: erasing(blank, key), keys, fn_output_signature=tf.float32)

    keys = tf.stack([tf.zeros([2000], tf.int64), tf.range(2000, dtype=tf.int64)], 1)
    images = erased(keys).numpy()
    inside = images[..., 0] >= 0
    erases = inside.any((1, 2))
    assert abs(erases.mean() - 0.6) < 0.04
    rows, columns = inside.any(2).sum(1)[erases], inside.any(1).sum(1)[erases]
    areas = inside.sum((1, 2))[erases]
    assert np.array_equal(areas, rows * columns)  # a rectangle
    assert 0.08 < areas.min() / 1024 < 0.12 and 0.27 < areas.max() / 1024 < 0.33
    assert abs(areas.mean() / 1024 - 0.2) < 0.01
    ratios = rows / columns
    assert 0.4 < ratios.min() < 0.6 and 1.7 < ratios.max() < 2.4
    tops = inside[erases].any(2).argmax(1)
    places = tops / (32 - rows)
    assert abs(places.mean() - 0.5) < 0.04 and places.min() == 0 and places.max() == 1
    values = images[inside]
    assert values.min() >= 0 and values.max() < 255 and abs(values.mean() - 127.5) < 1


def test_a_mean_fills_what_is_erased():
    erasing = RandomErasing(probability=1.0, fill="mean")
    image = erasing(tf.zeros([16, 16, 3]), tf.constant([1, 2], tf.int64)).numpy()
    assert np.allclose(np.unique(image.reshape(-1, 3), axis=0)[1], operations.MEAN)


@dataclass(frozen=True)
class Invert:
    """An augmentation of a user."""

    top: float = 255.0

    def __call__(self, image, key):
        return self.top - image


def test_a_list_depends_on_the_place_only_and_not_on_its_process():
    some = ("shift_flip", RandAugment(), RandomErasing(), Invert())
    data = dataclasses.replace(SYNTHETIC, augmentation=some).open("")
    whole = everything(data.train(7, 4, lambda k: k, 6))
    second = everything(data.train(7, 4, lambda k: k + 3, 3))
    for a, b in zip(whole, second, strict=True):
        assert np.array_equal(a[12:], b)
    assert not np.array_equal(whole[0], everything(data.train(8, 4, lambda k: k, 6))[0])
    evaluated = everything(data.evaluation(4, range(8)))
    plain = everything(SYNTHETIC.open("").evaluation(4, range(8)))
    assert np.array_equal(evaluated[0], plain[0])


def test_objects_come_after_the_name_and_before_normalisation():
    plain = dataclasses.replace(
        SYNTHETIC, augmentation="shift_flip", mean=(0.0,) * 3, std=(1.0,) * 3
    )
    found = []
    for some in ("shift_flip", ("shift_flip",), ("shift_flip", Invert())):
        data = dataclasses.replace(plain, augmentation=some).open("")
        found.append(everything(data.train(1, 4, lambda k: k, 2))[0])
    assert np.array_equal(found[0], found[1])
    np.testing.assert_allclose(found[2], 1 - found[0], atol=1e-6)


def test_two_of_a_kind_draw_differently():
    erasing = RandomErasing(probability=1.0, fill="mean")
    one, two = (
        everything(
            dataclasses.replace(SYNTHETIC, augmentation=(erasing,) * n).open("").train(
                1, 4, lambda k: k, 4
            )
        )[0]
        for n in (1, 2)
    )  # fmt: skip
    assert not np.array_equal(one, two)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: Images(augmentation=(Invert(), "shift")), "a name stands first"),
        (lambda: Images(augmentation=(Invert,)), "must be a dataclass"),
        (lambda: Images(augmentation=(lambda image, key: image,)), "must be a dataclass"),
        (lambda: Images(augmentation="flip"), "'flip' is none of none, shift, shift_flip"),
        (lambda: RandAugment(magnitude=11), r"magnitude in \[0, 10\], not 2 and 11"),
        (lambda: RandAugment(operations=("cut",)), r"must be some of identity, .*not \('cut',\)"),
        (lambda: RandomErasing(area=(0.5, 0.1)), r"least <= most <= 1, not \(0.5, 0.1\)"),
        (lambda: RandomErasing(probability=2), r"probability must be in \[0, 1\]"),
    ],
)
def test_what_is_no_augmentation(make, message):
    with pytest.raises(ValueError, match=message):
        make()


def test_the_field_takes_names_and_tuples():
    wanted = typing.get_type_hints(Images)["augmentation"]
    assert is_of("shift", wanted) and is_of(("shift", RandAugment()), wanted)
    assert not is_of("flip", wanted) and not is_of((3,), wanted)
