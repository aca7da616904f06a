"""Builds Fashion-MNIST (arXiv:1708.07747, MIT licence), from Debian's package if there is one.

`dataset-fashion-mnist` is read where it is installed, or else downloaded and unpacked by apt-get
and dpkg, which need no root; on other systems the files are downloaded as by TFDS' own builder.
"""

from __future__ import annotations

import gzip
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import tensorflow_datasets as tfds

INSTALLED = Path("/usr/share/datasets/fashion-mnist")
PACKAGE = "dataset-fashion-mnist"
CLASSES = [
    "t-shirt", "trouser", "pullover", "dress", "coat",
    "sandal", "shirt", "sneaker", "bag", "ankle boot",
]  # fmt: skip


class ScaleproofFashionMnist(tfds.core.GeneratorBasedBuilder):
    """60,000 training and 10,000 test images of 28x28 pixels, 10 classes."""

    VERSION = tfds.core.Version("1.0.0")

    def _info(self) -> tfds.core.DatasetInfo:
        return self.dataset_info_from_configs(
            features=tfds.features.FeaturesDict(
                {
                    "image": tfds.features.Image(shape=(28, 28, 1), encoding_format="png"),
                    "label": tfds.features.ClassLabel(names=CLASSES),
                }
            ),
            supervised_keys=("image", "label"),
            homepage="https://github.com/zalandoresearch/fashion-mnist",
        )

    def _split_generators(self, dl_manager: Any) -> dict[str, Iterator[tuple[int, Any]]]:
        folder = _debian_files(Path(self._data_dir_root) / "downloads" / PACKAGE)
        splits = {}
        for split, prefix in (("train", "train"), ("test", "t10k")):
            names = {k: f"{prefix}-{k}-ubyte.gz" for k in ("images-idx3", "labels-idx1")}
            if folder is None:
                url = tfds.image_classification.FashionMNIST.URL
                paths = dl_manager.download({k: url + name for k, name in names.items()})
            else:
                paths = {k: next(folder.rglob(name)) for k, name in names.items()}
            splits[split] = self._generate_examples(*map(Path, paths.values()))
        return splits

    def _generate_examples(self, images: Path, labels: Path) -> Iterator[tuple[int, Any]]:
        with gzip.open(images) as f:  # IDX: a header of 16 bytes, then pixels
            pixels = np.frombuffer(f.read()[16:], np.uint8).reshape(-1, 28, 28, 1)
        with gzip.open(labels) as f:  # a header of 8 bytes, then labels
            classes = np.frombuffer(f.read()[8:], np.uint8)
        for i, (image, label) in enumerate(zip(pixels, classes, strict=True)):
            yield i, {"image": image, "label": int(label)}


def _debian_files(scratch: Path) -> Path | None:
    """Returns the folder of the package's files; None if the system has no such package."""
    if INSTALLED.exists():
        return INSTALLED
    if not (shutil.which("apt-get") and shutil.which("dpkg")):
        return None
    scratch.mkdir(parents=True, exist_ok=True)

    def run(*command: str) -> bool:
        return subprocess.run(command, cwd=scratch, capture_output=True).returncode == 0

    # A machine that never updated its package lists knows no package until it does.
    run("apt-get", "download", PACKAGE) or (
        run("apt-get", "update") and run("apt-get", "download", PACKAGE)
    )
    archive = next(scratch.glob("*.deb"), None)
    if archive is None or not run("dpkg", "-x", str(archive), "unpacked"):
        return None
    return scratch / "unpacked"
