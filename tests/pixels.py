"""Synthetic images for jobs that hold something else than how image files are decoded."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from input.images import Images
from input.source import Encoded

if TYPE_CHECKING:
    from input.images.image_set import ImageSet


@dataclass(frozen=True)
class Pixels(Images):
    """Images of exactly the model's size, decoded by one operator.

    To compile what decodes any image file takes every process of a job half a second, and large
    files are half of what a step of a small model costs. Files, augmentation and the order are as
    of other images.
    """

    dataset: str = "synthetic"

    def open(self, data_dir: str) -> ImageSet:
        if self.dataset != "synthetic":
            return super().open(data_dir)
        from input.images.preprocessing import Preprocessing
        from tests.pixel_set import PixelSet  # a launcher that reads this file needs no TensorFlow

        preprocessing = Preprocessing(self.size, self.augmentation, self.mean, self.std)
        return PixelSet(*self.open_splits(data_dir), preprocessing, self.mixup)

    def open_splits(self, data_dir: str):
        if self.dataset != "synthetic":
            return super().open_splits(data_dir)
        split = Few(self.size, self.synthetic_examples, self.synthetic_classes)
        return split, split, "test"


class Few(Encoded):
    """A split of 16 random JPEG images, repeated."""

    def __init__(self, size: int, num_examples: int, num_classes: int) -> None:
        import tensorflow as tf

        self.num_examples = num_examples
        self.classes = tuple(map(str, range(num_classes)))
        pixels = np.random.default_rng(0).integers(0, 256, [16, size, size, 3], np.uint8)
        self.images = [tf.io.encode_jpeg(image).numpy() for image in pixels]

    def __len__(self) -> int:
        return self.num_examples

    def fetch(self, ids: Iterable[int]) -> tuple[list[bytes], list[int]]:
        return [self.images[i % 16] for i in ids], [int(i) % len(self.classes) for i in ids]

    def name(self, example: int) -> str:
        return f"synthetic example {example}"
