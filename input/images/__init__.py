"""Configures image classification data, without importing TensorFlow.

datasets/, folders.py    ids -> encoded images, labels
decoding.py              encoded image -> uint8 [H, W, 3], upright, on white
preprocessing.py         encoded image -> float32 [size, size, 3], augmented in training
image_set.py             micro-batch number -> inputs, targets (with indexed.py, order.py)
"""

from __future__ import annotations

import dataclasses
import math
import typing
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Literal

from input import remote
from input.images.augmentations import Augmentation

if TYPE_CHECKING:
    from input.images.image_set import ImageSet
    from input.source import Source

Name = Literal["none", "shift", "shift_flip", "imagenet"]  # of an augmentation
IMAGENET_MEAN = (0.485, 0.456, 0.406)
IMAGENET_STD = (0.229, 0.224, 0.225)


@dataclass(frozen=True)
class Images:
    """A data set of images, and how they are preprocessed.

    Attributes:
        dataset: `digits`, `digits_attributes`, `fashion_mnist`, `synthetic`, any TFDS image
            classification set (`cifar10`, `imagenet2012`, ...), a folder (a name with a `/`) of
            images `train/<class>/*.jpg`, `val/<class>/*.jpg` (JPEG or PNG, also in folders below),
            or a table with images in it: .parquet or .tar files, also as a pattern or an s3:// URL,
            or a folder that `datasets.save_to_disk` wrote.
        size: pixels of a side of the model's input.
        augmentation: of training images. `shift`: shifted by up to an eighth of the size;
            `shift_flip`: also mirrored at random; `imagenet`: a random crop of 8 % to 100 % of the
            area, mirrored at random (arXiv:1409.4842); only the crop is decoded.
            Or a tuple of these and of objects (`input.images.augmentations`: `RandAugment`,
            `RandomErasing`, or your own), a name at the first place only.
        mixup: alpha of mixup (arXiv:1710.09412), within a micro-batch; 0: none.
        train_split: of a TFDS set; `train[:80%]` leaves a fifth for tuning.
        evaluation_split: of a TFDS set, as `train[80%:]`; None: the first of `test`,
            `validation` and `val` that has labels.
        mean, std: of each channel, of values in [0, 1], to normalise with.
        on_bad_image: what `prepare` does about an image of a folder that cannot be decoded.
        bad_image_budget: the most images that `on_bad_image=skip` may leave out.
        image_field, label_field: of a table, its columns; of tar files also endings as `jpg`.
        evaluation_dataset: of a table, as `dataset`; None: its split `test`, `validation` or `val`,
            or else every fifth row, which is then not trained on.
        classes: of a table, in the order of their numbers; empty: its labels, sorted.
        synthetic_examples: number of examples in each split of dataset=synthetic.
        synthetic_classes: number of classes of dataset=synthetic.
    """

    dataset: str = "digits"
    size: int = 32
    augmentation: Name | tuple[Name | Augmentation, ...] = "none"
    mixup: float = 0.0
    train_split: str = "train"
    evaluation_split: str | None = None
    mean: tuple[float, ...] = IMAGENET_MEAN
    std: tuple[float, ...] = IMAGENET_STD
    on_bad_image: Literal["fail", "skip"] = "fail"
    bad_image_budget: int = 100
    synthetic_examples: int = 1024
    synthetic_classes: int = 1000
    image_field: str = field(default="image", metadata={"came_later": True})
    label_field: str = field(default="label", metadata={"came_later": True})
    evaluation_dataset: str | None = field(default=None, metadata={"came_later": True})
    classes: tuple[str, ...] = field(default=(), metadata={"came_later": True})

    def __post_init__(self) -> None:
        least = {"size": 1, "mixup": 0, "bad_image_budget": 0}
        least |= {"synthetic_examples": 1, "synthetic_classes": 2}
        for name, number in least.items():
            if not number <= getattr(self, name) < math.inf:
                raise ValueError(f"{name} must be at least {number}, not {getattr(self, name)}")
        if len(self.mean) != 3 or len(self.std) != 3 or min(self.std) <= 0:
            raise ValueError("mean and std need three values, std above 0")
        if not all(map(math.isfinite, (*self.mean, *self.std))):
            raise ValueError("mean and std must be finite")
        if not self.dataset or not self.train_split:
            raise ValueError("dataset and train_split must not be empty")
        self._check_augmentation()
        for name in (self.dataset, self.evaluation_dataset or ""):
            remote.require_no_credentials(name)
        if not self._is_table and (self.evaluation_dataset or self.classes):
            raise ValueError(
                f"evaluation_dataset and classes apply to tables, not to {self.dataset!r}: leave "
                "them out"
            )
        if not self._is_tfds and (self.train_split != "train" or self.evaluation_split):
            raise ValueError(
                f"train_split and evaluation_split apply to TFDS sets, not to {self.dataset!r}: "
                "leave them out"
            )

    @property
    def _augmentations(self) -> tuple[Any, ...]:
        """The name of the first, and objects."""
        one = self.augmentation
        given: tuple[Any, ...] = one if isinstance(one, tuple) else (one,)
        return given if given and isinstance(given[0], str) else ("none", *given)

    def _check_augmentation(self) -> None:
        name, *more = self._augmentations
        if name not in typing.get_args(Name):
            raise ValueError(f"augmentation {name!r} is none of {', '.join(typing.get_args(Name))}")
        for given in more:
            is_object = dataclasses.is_dataclass(given) and not isinstance(given, type)
            if not is_object or not callable(given):
                raise ValueError(
                    f"augmentation {given!r} must be a dataclass with __call__(image, key); a name "
                    "stands first"
                )

    @property
    def _is_folder(self) -> bool:
        return "/" in self.dataset and not self._is_table

    @property
    def _is_table(self) -> bool:
        return remote.is_table(self.dataset)

    @property
    def _is_tfds(self) -> bool:
        return self.dataset != "synthetic" and "/" not in self.dataset and not self._is_table

    def prepare(self, data_dir: str) -> str:
        """Writes the data set below `data_dir` unless it is there; returns a report.

        Raises:
            InputError: the data cannot be had or used.
        """
        if self.dataset == "synthetic":
            return "synthetic images need no preparation"
        if self._is_folder:
            from input.images import folders

            return folders.prepare(
                self.dataset, data_dir, self.on_bad_image == "skip", self.bad_image_budget
            )
        if self._is_table:
            from input import survey

            self._table_splits(data_dir, prepares=True)
            return survey.report(self.dataset, self.open(data_dir))
        from input import datasets, labels, survey
        from input.source import Encoded

        line = datasets.prepare(self.dataset, data_dir)
        *splits, name = self.open_splits(data_dir)
        if splits[0].specs != Encoded.specs:  # no classes, but labels of which several may hold
            return f"{line}\n{survey.report(self.dataset, self.open(data_dir))}"
        counts = {
            split: labels.cached_count(source, data_dir)
            for split, source in zip((self.train_split, name), splits, strict=True)
        }
        return "\n".join([line, *labels.report(splits[0].classes, counts)])

    def open(self, data_dir: str) -> ImageSet:
        """Opens the prepared data set; raises InputError if it is not prepared."""
        from input.images.image_set import ImageSet
        from input.images.preprocessing import Preprocessing

        name, *more = self._augmentations
        preprocessing = Preprocessing(self.size, name, self.mean, self.std, tuple(more))
        return ImageSet(*self.open_splits(data_dir), preprocessing, self.mixup)

    def open_splits(self, data_dir: str) -> tuple[Source, Source, str]:
        """Returns training split, evaluation split and the latter's name.

        Raises:
            InputError: the data are not prepared.
        """
        if self.dataset == "synthetic":
            from input.images.image_set import Synthetic

            split = Synthetic(self.synthetic_examples, self.synthetic_classes)
            return split, split, "test"
        if self._is_folder:
            from input.images import folders

            skips = self.on_bad_image == "skip"
            return folders.open_splits(self.dataset, data_dir, skips, self.bad_image_budget)
        if self._is_table:
            return self._table_splits(data_dir, prepares=False)
        from input import datasets

        return datasets.open_splits(self.dataset, data_dir, self.train_split, self.evaluation_split)

    def _table_splits(self, data_dir: str, prepares: bool) -> tuple[Source, Source, str]:
        from input.tables import sources

        columns = (self.image_field, self.label_field)
        return sources.open_splits(
            self.dataset, self.evaluation_dataset, data_dir, columns, self.classes, prepares
        )
