"""Opens sets of TensorFlow Datasets (TFDS), and of the builders in this folder.

A builder in this folder is for a set that installs as a package.
"""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

import numpy as np

from input import InputError, failures, labels, paths
from input.nests import Spec
from input.source import CLASS, ENCODED, Encoded, Ids, Source

if TYPE_CHECKING:
    import tensorflow_datasets as tfds

EVALUATION_SPLITS = ("test", "validation", "val")


def prepare(name: str, data_dir: str, fields: tuple[str, str] | None = None) -> str:
    """Writes a set below `data_dir` unless it is there; returns a line on it."""
    import tensorflow_datasets as tfds

    if not sys.stderr.isatty():
        tfds.disable_progress_bar()
    builder = _builder(name, data_dir, fields)
    with _errors(name):
        builder.download_and_prepare()
    counts = ", ".join(f"{n} {s.num_examples:,}" for n, s in builder.info.splits.items())
    return f"{name} ({counts}) in {builder.data_path}"


def open_splits(
    name: str, data_dir: str, train_split: str, evaluation_split: str | None,
    fields: tuple[str, str] | None = None,
) -> tuple[Source, Source, str]:  # fmt: skip
    """Returns training split, evaluation split and the latter's name.

    Args:
        name: of the set.
        data_dir: below which it was prepared.
        train_split: name or slice.
        evaluation_split: name or slice; None: the first of EVALUATION_SPLITS that has labels.
        fields: features of input and label; None: those of an image set, whose images stay encoded.
            A label is a class, a dictionary of features that hold or not, or numbers.

    Raises:
        InputError: the set is not prepared, or has no such split, or none with labels.
    """
    builder = _builder(name, data_dir, fields)
    if not builder.is_prepared():
        raise InputError(
            f"data set {name!r} is not prepared in {builder.data_path}: run "
            "`./run.sh prepare` with the same --experiment and --set."
        )
    splits = builder.info.splits
    for kind, wanted in (("train", train_split), ("evaluation", evaluation_split)):
        if wanted and wanted.partition("[")[0] not in splits:
            raise InputError(
                f"{name} has no split {wanted!r}, only {', '.join(splits)}: set "
                f"data.{kind}_split to one of them, or to a slice as 'train[:80%]'."
            )
    there = [split for split in EVALUATION_SPLITS if split in splits]
    with _errors(name):
        train = Split(builder, train_split, fields)
        if evaluation_split:
            return train, Split(builder, evaluation_split, fields), evaluation_split
        for split in there:
            found = Split(builder, split, fields)
            if found.specs[1] != CLASS or labels.has_labels(found):
                return train, found, split
    why = f"no labels in {', '.join(there)}" if there else f"only {', '.join(splits)}"
    raise InputError(
        f"{name} has no split to evaluate ({why}): set data.evaluation_split to one with "
        "labels, or to a slice, as data.train_split='train[:80%]' and "
        "data.evaluation_split='train[80%:]'."
    )


def _builder(
    name: str, data_dir: str, fields: tuple[str, str] | None = None
) -> tfds.core.DatasetBuilder:
    import tensorflow_datasets as tfds

    from input.datasets import digits, fashion_mnist, movie_sentences

    own = {
        "digits": digits.ScaleproofDigits,
        "digits_attributes": digits.ScaleproofDigitsAttributes,
        "fashion_mnist": fashion_mnist.ScaleproofFashionMnist,
        "movie_sentences": movie_sentences.ScaleproofMovieSentences,
    }
    if name == "movie_sentences" and fields and fields[1] == movie_sentences.RATING:
        own[name] = movie_sentences.ScaleproofMovieRatings
    make = own.get(name) or (lambda **kwargs: tfds.builder(name, **kwargs))
    if "[" in data_dir or paths.shown(data_dir) != data_dir:
        raise InputError(
            f"data_dir={paths.shown(data_dir)}: TensorFlow Datasets finds nothing in a path that "
            "has a '[' or is not UTF-8: give another --data_dir."
        )
    with _errors(name):
        try:
            return make(data_dir=data_dir, file_format="array_record")
        except tfds.core.registered.DatasetNotFoundError:
            raise InputError(
                f"no data set {name!r}: use {', '.join(own)}, synthetic, a TFDS name, or a folder "
                f"(a path with a '/')."
            ) from None


@contextlib.contextmanager
def _errors(name: str) -> Iterator[None]:
    """Raises what TFDS says about its files and splits as an InputError.

    Another format is the usual cause: only an array_record can be read by index, and a data set is
    stored in one format.
    """
    try:
        yield
    except OSError as error:
        place = f" ({error.filename})" if error.filename else ""
        raise InputError(
            f"data set {name!r}: {failures.sentence(error)}{place}. Make it readable and writable, "
            "or give another --data_dir."
        ) from None
    except (AssertionError, NotImplementedError, ValueError) as error:
        raise InputError(
            f"data set {name!r}: {failures.sentence(error)}. If it was prepared in another format "
            "than array_record, give another --data_dir and prepare it there."
        ) from None


class Split(Encoded):
    """A split of a prepared TFDS set, whose records are read by index."""

    def __init__(
        self, builder: tfds.core.DatasetBuilder, split: str, fields: tuple[str, str] | None
    ) -> None:
        import tensorflow_datasets as tfds

        info = builder.info
        keys: tuple[str, str] = fields or info.supervised_keys or ("image", "label")
        self.input, self.label = keys
        for key in keys:
            if key not in info.features:
                raise InputError(
                    f"{info.name} has no feature {key!r}, only {', '.join(info.features)}."
                )
        label = info.features[self.label]
        if hasattr(label, "num_classes"):
            self.classes, target = tuple(label.names), CLASS
            labels.require_classes(self.classes, info.name)
        elif isinstance(label, tfds.features.FeaturesDict) and len(label):
            self.classes, target = tuple(label), Spec((len(label),), "float32")
        elif label.np_dtype is not None and np.dtype(label.np_dtype).kind in "fiu":
            target = Spec(tuple(label.shape) or (1,), "float32")
        else:
            raise InputError(f"{info.name}: {self.label!r} is {label}, no class label or number.")
        self.specs = ENCODED, target
        self.path = f"{builder.data_path}, split {split}"
        decoders = None if fields else {self.input: tfds.decode.SkipDecoding()}
        self.records: Any = builder.as_data_source(split=split, decoders=decoders)

    def __len__(self) -> int:
        return len(self.records)

    def fetch(self, ids: Ids) -> tuple[list[bytes], list[Any]]:
        """Reads records; images stay encoded."""
        records = self.records.__getitems__([int(i) for i in ids])
        return [r[self.input] for r in records], [self._target(r[self.label]) for r in records]

    def _target(self, value: Any) -> Any:
        if self.specs[1] == CLASS:
            return int(value)
        if isinstance(value, dict):
            return np.array([float(value[name]) for name in self.classes], np.float32)
        return np.asarray(value, np.float32)

    def name(self, example: int) -> str:
        """Returns where the record is, for messages."""
        return f"record {example} of {self.path}"
