"""Random access to what is encoded: TFDS sets, folders of images, synthetic ones."""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import sys
from collections.abc import Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np
import tensorflow as tf

from input import InputError, failures, paths, pixels

if TYPE_CHECKING:
    import tensorflow_datasets as tfds

    from input.images import Images
    from input.text import Text

SUFFIXES = {".jpg", ".jpeg", ".png"}
EVALUATION_SPLITS = ("test", "validation", "val")


class Source(Protocol):
    """One split: encoded images, or texts, by id; `classes` are the names of the labels."""

    classes: tuple[str, ...]

    def __len__(self) -> int: ...

    def fetch(self, ids: Iterable[int]) -> tuple[list[bytes], list[int]]:
        """Encoded inputs and labels."""
        ...

    def name(self, example: int) -> str:
        """Where an example is, for a person."""
        ...


def prepare(config: Images, data_dir: str) -> str:
    """Writes what `open_splits` reads, unless it is there and up to date."""
    if config.dataset == "synthetic":
        return "synthetic images need no preparation"
    if "/" in config.dataset:
        return prepare_folder(config, data_dir)
    return prepare_tfds(config.dataset, data_dir)


def prepare_tfds(name: str, data_dir: str) -> str:
    """Writes a TFDS set unless it is there; returns a line on it."""
    import tensorflow_datasets as tfds

    if not sys.stderr.isatty():
        tfds.disable_progress_bar()
    builder = tfds_builder(name, data_dir)
    with tfds_errors(name):
        builder.download_and_prepare()
    counts = ", ".join(f"{n} {s.num_examples:,}" for n, s in builder.info.splits.items())
    return f"{name} ({counts}) in {builder.data_path}"


def open_splits(config: Images, data_dir: str) -> tuple[Source, Source, str]:
    """Returns the training split, the evaluation split and the latter's name."""
    if config.dataset == "synthetic":
        split = Synthetic(config.synthetic_examples, config.synthetic_classes)
        return split, split, "test"
    if "/" in config.dataset:
        splits = read_index(config, data_dir)
        return Folder(config, splits, "train"), Folder(config, splits, "val"), "val"
    import tensorflow_datasets as tfds

    builder, evaluation = tfds_splits(config, data_dir)
    image, label = builder.info.supervised_keys or ("image", "label")
    decoders = {image: tfds.decode.SkipDecoding()}
    with tfds_errors(config.dataset):
        train, test = (
            Tfds(builder, split, image, label, decoders)
            for split in (config.train_split, evaluation)
        )
    return train, test, evaluation


def tfds_splits(config: Images | Text, data_dir: str) -> tuple[tfds.core.DatasetBuilder, str]:
    """Returns the builder of a prepared TFDS set and its evaluation split."""
    builder = tfds_builder(config.dataset, data_dir)
    if not builder.is_prepared():
        raise InputError(
            f"data set {config.dataset!r} is not prepared in {builder.data_path}: run "
            "`./run.sh prepare` with the same --experiment and --set."
        )
    splits = builder.info.splits
    evaluation = config.evaluation_split or next((n for n in EVALUATION_SPLITS if n in splits), "")
    for name, wanted in (("train_split", config.train_split), ("evaluation_split", evaluation)):
        if wanted.partition("[")[0] not in splits:
            raise InputError(
                f"{config.dataset} has no split {wanted!r}, only {', '.join(splits)}: set "
                f"data.{name} to one of them, or to a slice as 'train[:80%]'."
            )
    return builder, evaluation


def tfds_builder(name: str, data_dir: str) -> tfds.core.DatasetBuilder:
    """The builder of a TFDS set, or of one of `input/datasets/`."""
    import tensorflow_datasets as tfds

    from input.datasets import digits, fashion_mnist, movie_sentences

    own = {
        "digits": digits.ScaleproofDigits,
        "fashion_mnist": fashion_mnist.ScaleproofFashionMnist,
        "movie_sentences": movie_sentences.ScaleproofMovieSentences,
    }
    make = own.get(name) or (lambda **kwargs: tfds.builder(name, **kwargs))
    if "[" in data_dir or paths.shown(data_dir) != data_dir:
        raise InputError(
            f"data_dir={paths.shown(data_dir)}: TensorFlow Datasets finds nothing in a path that "
            "has a '[' or is not UTF-8: give another --data_dir."
        )
    with tfds_errors(name):
        try:
            return make(data_dir=data_dir, file_format="array_record")
        except tfds.core.registered.DatasetNotFoundError:
            raise InputError(
                f"no data set {name!r}: use {', '.join(own)}, synthetic, a TFDS name, or a folder "
                f"(a path with a '/')."
            ) from None


@contextlib.contextmanager
def tfds_errors(name: str) -> Iterator[None]:
    """What TFDS says about its files and splits, as an InputError.

    Another format is the usual cause: records in another order than they were written can
    only be read from an array_record, and a data set is kept in one format.
    """
    try:
        yield
    except OSError as error:
        place = f" ({error.filename})" if error.filename else ""
        raise InputError(
            f"data set {name!r}: {failures.sentence(error)}{place}. Let it be read and written, or "
            "give another --data_dir."
        ) from None
    except (AssertionError, NotImplementedError, ValueError) as error:
        raise InputError(
            f"data set {name!r}: {failures.sentence(error)}. If it was prepared in another format "
            "than array_record, give another --data_dir and prepare it there."
        ) from None


class Tfds:
    """A split of a prepared TFDS set; its records are read in any order."""

    def __init__(
        self,
        builder: tfds.core.DatasetBuilder,
        split: str,
        input_key: str,
        label_key: str,
        decoders: dict[str, Any] | None = None,
    ) -> None:
        self.input, self.label = input_key, label_key
        features = builder.info.features
        for key in (input_key, label_key):
            if key not in features:
                raise InputError(
                    f"{builder.info.name} has no feature {key!r}, only {', '.join(features)}."
                )
        if not hasattr(features[label_key], "num_classes"):
            raise InputError(
                f"{builder.info.name}: {label_key!r} is {features[label_key]}, no class label."
            )
        self.classes = tuple(features[label_key].names)
        self.path = f"{builder.data_path}, split {split}"
        self.records: Any = builder.as_data_source(split=split, decoders=decoders)

    def __len__(self) -> int:
        return len(self.records)

    def fetch(self, ids: Iterable[int]) -> tuple[list[bytes], list[int]]:
        """Reads records; each image is still encoded."""
        records = self.records.__getitems__([int(i) for i in ids])
        return [r[self.input] for r in records], [int(r[self.label]) for r in records]

    def name(self, example: int) -> str:
        """The record's place."""
        return f"record {example} of {self.path}"


class Synthetic:
    """A few random JPEG images over and over: no files, the cost of real decoding."""

    def __init__(self, num_examples: int, num_classes: int) -> None:
        self.num_examples = num_examples
        self.classes = tuple(map(str, range(num_classes)))
        rows = np.random.default_rng(0).integers(0, 256, [16, 32, 32, 3], np.uint8)
        large = np.repeat(np.repeat(rows, 8, axis=1), 8, axis=2)
        self.images = [tf.io.encode_jpeg(image).numpy() for image in large]

    def __len__(self) -> int:
        return self.num_examples

    def fetch(self, ids: Iterable[int]) -> tuple[list[bytes], list[int]]:
        """Example i is image i mod 16, of class i mod num_classes."""
        return [self.images[i % 16] for i in ids], [int(i) % len(self.classes) for i in ids]

    def name(self, example: int) -> str:
        """Its id."""
        return f"synthetic example {example}"


class Folder:
    """A split of an indexed folder: one file an image."""

    def __init__(self, config: Images, index: dict[str, Any], split: str) -> None:
        self.root = paths.of_user(config.dataset).resolve()
        self.classes = tuple(index["classes"])
        self.files: list[tuple[str, int]] = index["splits"][split]

    def __len__(self) -> int:
        return len(self.files)

    def fetch(self, ids: Iterable[int]) -> tuple[list[bytes], list[int]]:
        """Reads files."""
        files = [self.files[i] for i in ids]
        return [(self.root / path).read_bytes() for path, _ in files], [c for _, c in files]

    def name(self, example: int) -> str:
        """The file's path."""
        return str(self.root / self.files[example][0])


def index_path(config: Images, data_dir: str) -> Path:
    """Where the index of a folder is: one file a folder and policy."""
    policy = f"{config.on_bad_image} {config.bad_image_budget}"
    key = f"{paths.of_user(config.dataset).resolve()} {policy}"
    digest = hashlib.sha256(os.fsencode(key)).hexdigest()[:16]
    return paths.of_user(data_dir) / "image_folders" / f"{digest}.json"


def read_index(config: Images, data_dir: str) -> dict[str, Any]:
    """The index that `prepare_folder` wrote."""
    path = index_path(config, data_dir)
    if not path.exists():
        raise InputError(
            f"folder {config.dataset} is not prepared: run `./run.sh prepare` with the same "
            "--experiment and --set (it looks at every image once)."
        )
    index: dict[str, Any] = json.loads(path.read_text())
    return index


def prepare_folder(config: Images, data_dir: str) -> str:
    """Lists a folder's images and decodes each once.

    Raises:
        InputError: no images; classes that differ; bad images beyond the policy.
    """
    root = Path(config.dataset).expanduser().resolve()
    found = {s: list_images(root, s) for s in ("train", "val")}
    classes = {s: sorted({p.parent.name for p in found[s]}) for s in found}
    if classes["train"] != classes["val"]:
        only = {s: sorted(set(classes[s]) - set(classes[o])) for s, o in (
            ("train", "val"), ("val", "train"))}  # fmt: skip
        raise InputError(
            f"{root}: train and val must have the same classes, but only train has "
            f"{only['train'] or 'none'} and only val has {only['val'] or 'none'}."
        )
    stats = [(str(p), p.stat().st_size, p.stat().st_mtime_ns) for s in found for p in found[s]]
    listing = hashlib.sha256(json.dumps(stats).encode()).hexdigest()
    path = index_path(config, data_dir)
    if not (path.exists() and json.loads(path.read_text())["listing"] == listing):
        files = [p for s in found for p in found[s]]
        with ThreadPoolExecutor(len(os.sched_getaffinity(0))) as pool:
            bad = {p for p, good in zip(files, pool.map(is_image, files), strict=True) if not good}
        if bad and (config.on_bad_image == "fail" or len(bad) > config.bad_image_budget):
            names = ", ".join(str(p) for p in sorted(bad)[:3])
            raise InputError(
                f"{len(bad)} of {len(files)} images cannot be decoded ({names}{', ...'[: 5 * (len(bad) > 3)]}): "  # noqa: E501
                f"mend or remove them, or set data.on_bad_image=skip with data.bad_image_budget "
                f"(now {config.bad_image_budget}) of at least {len(bad)}."
            )
        number = {name: i for i, name in enumerate(classes["train"])}
        index: dict[str, Any] = {
            "folder": str(root),
            "listing": listing,
            "classes": classes["train"],
            "skipped": sorted(map(str, bad)),
            "splits": {
                s: [(str(p.relative_to(root)), number[p.parent.name]) for p in found[s]
                    if p not in bad] for s in found
            },
        }  # fmt: skip
        path.parent.mkdir(parents=True, exist_ok=True)
        partial = path.with_suffix(f".{os.getpid()}")
        partial.write_text(json.dumps(index))
        partial.replace(path)
    index = read_index(config, data_dir)
    counts = ", ".join(f"{s} {len(files):,}" for s, files in index["splits"].items())
    return f"{root} ({counts}, {len(index['skipped'])} skipped), index in {path}"


def list_images(root: Path, split: str) -> list[Path]:
    """Image files of a split, sorted: the ids are places in this list."""
    files = [p for p in sorted((root / split).glob("*/*")) if p.suffix.lower() in SUFFIXES]
    if not files:
        raise InputError(
            f"no images in {root / split}: expected {root / split}/<class>/*.jpg (or .jpeg, .png)."
        )
    return files


def is_image(path: Path) -> bool:
    """Whether the file decodes to its end."""
    try:
        pixels.decode(tf.constant(path.read_bytes()))
    except (tf.errors.InvalidArgumentError, OSError):
        return False
    return True
