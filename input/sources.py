"""Random access to what is encoded: TFDS sets, synthetic images; folders are in `folders.py`."""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import sys
from collections.abc import Iterable, Iterator
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np
import tensorflow as tf

from input import InputError, classes, failures, folders, paths
from input.batches import check_label

if TYPE_CHECKING:
    import tensorflow_datasets as tfds

    from input.images import Images
    from input.text import Text

CHUNK = 1024  # records read at once, where labels are counted
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
        return folders.prepare(config, data_dir)
    line = prepare_tfds(config.dataset, data_dir)
    *splits, name = open_splits(config, data_dir)
    counts = {
        split: counted(source, data_dir)
        for split, source in zip((config.train_split, name), splits, strict=True)
    }
    return "\n".join([line, *classes.report(splits[0].classes, counts)])


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
        index = folders.read_index(config, data_dir)
        train, test = (folders.Folder(config, index, split) for split in folders.SPLITS)
        return train, test, "val"
    import tensorflow_datasets as tfds

    builder = prepared(config, data_dir)
    image, label = builder.info.supervised_keys or ("image", "label")
    decoders = {image: tfds.decode.SkipDecoding()}
    return tfds_splits(config, builder, image, label, decoders)


def prepared(config: Images | Text, data_dir: str) -> tfds.core.DatasetBuilder:
    """The builder of a TFDS set that was prepared.

    Raises:
        InputError: it was not.
    """
    builder = tfds_builder(config.dataset, data_dir)
    if not builder.is_prepared():
        raise InputError(
            f"data set {config.dataset!r} is not prepared in {builder.data_path}: run "
            "`./run.sh prepare` with the same --experiment and --set."
        )
    return builder


def tfds_splits(
    config: Images | Text, builder: tfds.core.DatasetBuilder, input_key: str, label_key: str,
    decoders: dict[str, Any] | None = None,
) -> tuple[Tfds, Tfds, str]:  # fmt: skip
    """Returns the training split, the evaluation split and the latter's name.

    A split that has no labels, as those of competitions, is not taken unless it is named.

    Raises:
        InputError: no such split, or none with labels.
    """

    def opened(split: str) -> Tfds:
        with tfds_errors(config.dataset):
            return Tfds(builder, split, input_key, label_key, decoders)

    splits = builder.info.splits
    for name, wanted in (("train", config.train_split), ("evaluation", config.evaluation_split)):
        if wanted and wanted.partition("[")[0] not in splits:
            raise InputError(
                f"{config.dataset} has no split {wanted!r}, only {', '.join(splits)}: set "
                f"data.{name}_split to one of them, or to a slice as 'train[:80%]'."
            )
    train = opened(config.train_split)
    if config.evaluation_split:
        return train, opened(config.evaluation_split), config.evaluation_split
    there = [name for name in EVALUATION_SPLITS if name in splits]
    for name in there:
        found = opened(name)
        if has_labels(found):
            return train, found, name
    why = f"no labels in {', '.join(there)}" if there else f"only {', '.join(splits)}"
    raise InputError(
        f"{config.dataset} has no split to evaluate ({why}): set data.evaluation_split to one with "
        "labels, or to a slice, as data.train_split='train[:80%]' and "
        "data.evaluation_split='train[80%:]'."
    )


def has_labels(source: Source) -> bool:
    """Whether a few examples, spread over a split, have labels."""
    last = len(source) - 1
    _, labels = source.fetch(sorted({0, last // 3, last // 2, last})) if last >= 0 else ([], [])
    return any(0 <= label < len(source.classes) for label in labels)


def must_have_labels(source: Source, split: str) -> None:
    """Refuses a split that cannot be evaluated.

    Raises:
        InputError: it has no labels.
    """
    if not has_labels(source):
        raise InputError(
            f"split {split!r} has no labels ({source.name(0)}): evaluate another, named by "
            "data.evaluation_split; predict takes it as --input=split:" + split + "."
        )


def count(source: Source) -> list[int]:
    """Reads a split and returns how many examples each class has.

    Raises:
        InputError: names an example whose label is none.
    """
    counts = [0] * len(source.classes)
    for start in range(0, len(source), CHUNK):
        ids = range(start, min(start + CHUNK, len(source)))
        for i, label in zip(ids, source.fetch(ids)[1], strict=True):
            try:
                check_label(label, len(counts))
            except ValueError as error:
                raise InputError(f"{source.name(i)}: {error}.") from None
            counts[label] += 1
    return counts


def counted(source: Source, data_dir: str) -> list[int]:
    """The same of a large set, kept beside the prepared data."""
    about = f"{source.name(0)} {len(source)} {source.classes}"
    digest = hashlib.sha256(about.encode()).hexdigest()[:16]
    path = paths.of_user(data_dir) / "label_counts" / f"{digest}.json"
    if path.exists():
        kept: list[int] = json.loads(path.read_text())
        return kept
    counts = count(source)
    with contextlib.suppress(OSError):  # a folder of another's is read, not written
        path.parent.mkdir(parents=True, exist_ok=True)
        partial = path.with_suffix(f".{os.getpid()}")
        partial.write_text(json.dumps(counts))
        partial.replace(path)
    return counts


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
        classes.must_be_some(self.classes, builder.info.name)
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
