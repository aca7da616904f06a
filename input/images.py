"""Image classification data: the configuration, readable without TensorFlow.

source (sources.py)        ids -> encoded images, labels
order (order.py)           micro-batch number -> ids
decoding (decoding.py)     encoded image -> uint8 [H, W, 3], upright, on white
pixels (pixels.py)         encoded image -> float32 [size, size, 3]
batches (image_set.py)     all of them, overlapped with the training step
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

if TYPE_CHECKING:
    from input.image_set import ImageSet

IMAGENET_MEAN = (0.485, 0.456, 0.406)
IMAGENET_STD = (0.229, 0.224, 0.225)


@dataclass(frozen=True)
class Images:
    """One data set and what is done to its images.

    Attributes:
        dataset: `digits`, `fashion_mnist`, `synthetic`, any TFDS image classification set
            (`cifar10`, `imagenet2012`, ...), or a folder (a name with a `/`) of images
            `train/<class>/*.jpg`, `val/<class>/*.jpg` (JPEG or PNG, also in folders below).
        size: pixels of a side of the model's input.
        augmentation: of training images. `shift`: moved by up to an eighth; `shift_flip`:
            mirrored too; `imagenet`: a crop of 8 % to 100 % of the area, mirrored
            (arXiv:1409.4842), of which only the crop is decoded.
        mixup: alpha of arXiv:1710.09412, within a micro-batch; 0: none.
        train_split: of a TFDS set; `train[:80%]` leaves a fifth to choose a recipe on.
        evaluation_split: of a TFDS set, as `train[80%:]`; None takes `test`, `validation` or
            `val`, the first there is.
        on_bad_image: what `prepare` does about an image of a folder that cannot be decoded.
        bad_image_budget: the most images `on_bad_image=skip` may leave out.
        synthetic_examples: of dataset=synthetic, in each split.
        synthetic_classes: of dataset=synthetic.
    """

    dataset: str = "digits"
    size: int = 32
    augmentation: Literal["none", "shift", "shift_flip", "imagenet"] = "none"
    mixup: float = 0.0
    train_split: str = "train"
    evaluation_split: str | None = None
    mean: tuple[float, ...] = IMAGENET_MEAN
    std: tuple[float, ...] = IMAGENET_STD
    on_bad_image: Literal["fail", "skip"] = "fail"
    bad_image_budget: int = 100
    synthetic_examples: int = 1024
    synthetic_classes: int = 1000

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
        is_tfds = self.dataset != "synthetic" and "/" not in self.dataset
        if not is_tfds and (self.train_split != "train" or self.evaluation_split):
            raise ValueError(
                f"train_split and evaluation_split are of TFDS sets, not of {self.dataset!r}: "
                "leave them out"
            )

    def prepare(self, data_dir: str) -> str:
        """Writes the data set below `data_dir` unless it is there; returns a line on it."""
        from input import sources

        return sources.prepare(self, data_dir)

    def open(self, data_dir: str) -> ImageSet:
        """Opens the prepared data set; raises InputError if it is not prepared."""
        from input import image_set, sources

        return image_set.ImageSet(self, *sources.open_splits(self, data_dir))
