"""Builds a set of movie-review sentences, rated by twenty people (Hutto, Gilbert, ICWSM 2014).

The ratings are in the source package of `vaderSentiment` (MIT licence); the sentences were
taken from Rotten Tomatoes by Pang and Lee (ACL 2005).
"""

from __future__ import annotations

import tarfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import tensorflow_datasets as tfds

from input.order import split_of
from input.packages import Package

PACKAGE = Package(
    "vaderSentiment",
    "3.3.2",
    "5d7c06e027fc8b99238edb0d53d970cf97066ef97654009890b83703849632f9",
    inside="vaderSentiment-3.3.2/additional_resources",
    is_source=True,
)
ARCHIVE = "hutto_ICWSM_2014.tar.gz"
RATING = "rating"  # the feature
RATINGS = "hutto_ICWSM_2014/movieReviewSnippets_GroundTruth.txt"


class ScaleproofMovieSentences(tfds.core.GeneratorBasedBuilder):
    """10,568 sentences: positive or negative by the sign of their mean rating, -4 to 4.

    Sentences rated 0 are left out. A sentence's split is a function of its text: a tenth
    is the test, a tenth the validation, and equal sentences are in one split.
    """

    VERSION = tfds.core.Version("1.0.0")

    def _info(self) -> tfds.core.DatasetInfo:
        return self.dataset_info_from_configs(
            features=tfds.features.FeaturesDict(
                {
                    "text": tfds.features.Text(),
                    **self._target(),
                }
            ),
            supervised_keys=("text", *self._target()),
            homepage="https://github.com/cjhutto/vaderSentiment",
        )

    def _split_generators(self, dl_manager: Any) -> dict[str, Iterator[tuple[int, Any]]]:
        folder = PACKAGE.fetch(Path(self._data_dir_root) / "downloads")
        with tarfile.open(folder / ARCHIVE) as archive:
            file = archive.extractfile(RATINGS)
            assert file is not None
            lines = file.read().decode().splitlines()
        splits = ("train", "validation", "test")
        return {split: self._generate_examples(lines, split) for split in splits}

    def _generate_examples(self, lines: list[str], split: str) -> Iterator[tuple[int, Any]]:
        for i, line in enumerate(lines):
            _, rating, text = line.split("\t", 2)
            target = self._target_of(float(rating))
            if split_of(text) == split and target is not None:
                yield i, {"text": text.strip()} | target

    def _target(self) -> dict[str, Any]:
        return {"label": tfds.features.ClassLabel(names=["negative", "positive"])}

    def _target_of(self, rating: float) -> dict[str, Any] | None:
        return {"label": int(rating > 0)} if rating else None


class ScaleproofMovieRatings(ScaleproofMovieSentences):
    """All the sentences in the same splits, with their mean rating, -4 to 4."""

    VERSION = tfds.core.Version("1.0.0")

    def _target(self) -> dict[str, Any]:
        return {RATING: np.float32}

    def _target_of(self, rating: float) -> dict[str, Any] | None:
        return {RATING: np.float32(rating)}
