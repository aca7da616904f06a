"""Builds a set of the scanned handwritten digits in scikit-learn (UCI, CC BY 4.0)."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
import tensorflow_datasets as tfds


class ScaleproofDigits(tfds.core.GeneratorBasedBuilder):
    """1,797 scans of 8x8 pixels, 10 classes; every fifth is held out for the test."""

    VERSION = tfds.core.Version("1.0.0")

    def _info(self) -> tfds.core.DatasetInfo:
        return self.dataset_info_from_configs(
            features=tfds.features.FeaturesDict(
                {
                    "image": tfds.features.Image(shape=(8, 8, 1), encoding_format="png"),
                    "label": tfds.features.ClassLabel(num_classes=10),
                }
            ),
            supervised_keys=("image", "label"),
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
                yield i, {"image": pixels, "label": int(label)}
