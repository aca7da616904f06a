"""Augmentations of training images: frozen dataclasses, each a pure function of image and key.

    Images("./shapes", augmentation=("shift_flip", RandAugment(magnitude=7), RandomErasing()))

They are applied in this order, after cropping and resizing and before normalisation. One of your
own is such a dataclass with `__call__`; its fields are recorded in config.json. This file imports
no TensorFlow, as it is part of the configuration; `operations.py` has the arithmetic.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal, Protocol, runtime_checkable

if TYPE_CHECKING:
    import tensorflow as tf

# Of arXiv:1909.13719, section 3.
OPERATIONS = (
    "identity", "autocontrast", "equalize", "rotate", "solarize", "color", "posterize",
    "contrast", "brightness", "sharpness", "shear_x", "shear_y", "translate_x", "translate_y",
)  # fmt: skip
STRONGEST = 10  # magnitude


@runtime_checkable
class Augmentation(Protocol):
    """Changes a training image: a frozen dataclass, which config.json records."""

    def __call__(self, image: tf.Tensor, key: tf.Tensor) -> Any:
        """Returns the augmented image; called in a graph, once for each example.

        Args:
            image: float32 [size, size, 3], in [0, 255].
            key: int64 [2], of the example's place in the training sequence and of the place of the
                augmentation in the list: for `tf.random.stateless_*` only. All other randomness
                would depend on the layout.

        Returns:
            float32 [size, size, 3], in [0, 255].
        """
        ...


@dataclass(frozen=True)
class RandAugment:
    """Applies operations that are drawn anew for each image (arXiv:1909.13719).

    Each is drawn from all with the same probability, and may be drawn twice. What they do, with m
    the magnitude over 10 and a sign that is drawn:

        rotate                   by +-30 m degrees
        shear_x, shear_y         by +-0.3 m of a distance
        translate_x, _y          by +-0.45 m of the size
        color, contrast,
        brightness, sharpness    by the factor 1 +- 0.9 m
        solarize                 inverts values of 256 (1 - m) and above
        posterize                keeps 8 - round(4 m) bits
        autocontrast, equalize, identity    have no magnitude

    What comes into view is grey (128).

    Attributes:
        num_operations: N, of each image.
        magnitude: M, 0 to 10.
        operations: those that are drawn from.
    """

    num_operations: int = 2
    magnitude: float = 9
    operations: tuple[str, ...] = OPERATIONS

    def __post_init__(self) -> None:
        if self.num_operations < 1 or not 0 <= self.magnitude <= STRONGEST:
            raise ValueError(
                f"num_operations must be at least 1 and magnitude in [0, {STRONGEST}], not "
                f"{self.num_operations} and {self.magnitude}"
            )
        unknown = [name for name in self.operations if name not in OPERATIONS]
        if unknown or not self.operations:
            raise ValueError(
                f"operations must be some of {', '.join(OPERATIONS)}, not {self.operations}"
            )

    def __call__(self, image: tf.Tensor, key: tf.Tensor) -> tf.Tensor:
        """See `Augmentation`."""
        from input.images import operations

        return operations.rand_augment(
            image, key, self.operations, self.num_operations, self.magnitude / STRONGEST
        )


@dataclass(frozen=True)
class RandomErasing:
    """Replaces a random rectangle (arXiv:1708.04896), after ten tries to place one.

    Attributes:
        probability: of erasing, for each image.
        area: least and most of the image's.
        aspect: least of height over width; the most is its inverse.
        fill: `random`, a uniform value for each pixel and channel, or `mean`, that of ImageNet.
    """

    probability: float = 0.5
    area: tuple[float, ...] = (0.02, 0.4)
    aspect: float = 0.3
    fill: Literal["random", "mean"] = "random"

    def __post_init__(self) -> None:
        if not 0 <= self.probability <= 1 or not 0 < self.aspect <= 1:
            raise ValueError(
                f"probability must be in [0, 1] and aspect in (0, 1], not {self.probability} and "
                f"{self.aspect}"
            )
        if len(self.area) != 2 or not 0 < self.area[0] <= self.area[1] <= 1:
            raise ValueError(f"area must be two values, 0 < least <= most <= 1, not {self.area}")

    def __call__(self, image: tf.Tensor, key: tf.Tensor) -> tf.Tensor:
        """See `Augmentation`."""
        from input.images import operations

        return operations.erase(
            image, key, self.probability, (self.area[0], self.area[1]), self.aspect, self.fill
        )
