"""Builds a set of the scanned handwritten digits in scikit-learn (UCI, CC BY 4.0)."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
import tensorflow_datasets as tfds

ATTRIBUTES = {  # of the number that is written
    "even": {0, 2, 4, 6, 8},
    "prime": {2, 3, 5, 7},
    "square": {0, 1, 4, 9},
    "multiple of three": {0, 3, 6, 9},
    "above four": {5, 6, 7, 8, 9},
    "has a loop": {0, 6, 8, 9},
}


class ScaleproofDigits(tfds.core.GeneratorBasedBuilder):
    """1,797 scans of 8x8 pixels, 10 classes; every fifth is held out for the test."""

    VERSION = tfds.core.Version("1.0.0")

    def _info(self) -> tfds.core.DatasetInfo:
        return self.dataset_info_from_configs(
            features=tfds.features.FeaturesDict(
                {
                    "image": tfds.features.Image(shape=(8, 8, 1), encoding_format="png"),
                    **self._target(),
                }
            ),
            supervised_keys=("image", *self._target()),
            homepage="https://archive.ics.uci.edu/dataset/80",
        )

    def _split_generators(self, dl_manager: Any) -> dict[str, Iterator[tuple[int, Any]]]:
        return {"train": self._generate_examples("train"), "test": self._generate_examples("test")}

    def _generate_examples(self, split: str) -> Iterator[tuple[int, dict[str, Any]]]:
        from sklearn.datasets import load_digits

        digits = load_digits()
        for i, (image, label) in enumerate(zip(digits.images, digits.target, strict=True)):
            if (i % 5 == 0) == (split == "test"):
                # Scans count inked pixels, 0 to 16.
                pixels = np.round(image * (255 / 16)).astype(np.uint8)[:, :, np.newaxis]
                yield i, {"image": pixels} | self._target_of(int(label))

    def _target(self) -> dict[str, Any]:
        return {"label": tfds.features.ClassLabel(num_classes=10)}

    def _target_of(self, digit: int) -> dict[str, Any]:
        return {"label": digit}


class ScaleproofDigitsAttributes(ScaleproofDigits):
    """The same scans, with six attributes of the number, of which any may hold."""

    VERSION = tfds.core.Version("1.0.0")

    def _target(self) -> dict[str, Any]:
        return {"attributes": tfds.features.FeaturesDict(dict.fromkeys(ATTRIBUTES, np.bool_))}

    def _target_of(self, digit: int) -> dict[str, Any]:
        return {"attributes": {name: digit in some for name, some in ATTRIBUTES.items()}}
