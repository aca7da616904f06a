"""Configures a ResNet v1.5 (arXiv:1512.03385; stride in the 3x3 convolution).

The layers are in `residual.py`, so that reading a configuration needs no TensorFlow.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

if TYPE_CHECKING:
    import keras

# Depth: (blocks in each of the four groups, whether they are bottlenecks).
DEPTHS: dict[int, tuple[tuple[int, int, int, int], bool]] = {
    18: ((2, 2, 2, 2), False),
    34: ((3, 4, 6, 3), False),
    50: ((3, 4, 6, 3), True),
    101: ((3, 4, 23, 3), True),
    152: ((3, 8, 36, 3), True),
}


@dataclass(frozen=True)
class ResNet:
    """A residual network; 25,557,032 trainable parameters at the defaults and 1,000 classes.

    Attributes:
        depth: 18, 34, 50, 101 or 152.
        width: channels of the stem and of the first group.
        stem: `imagenet` is a 7x7 convolution and a pooling, each of stride 2; `cifar` a
            3x3 convolution of stride 1, for images of 32 pixels.
        version: `v1.5` has a bottleneck's stride in its 3x3 convolution, `v1` in its
            first 1x1 (as Keras' ResNet50).
        epsilon: of the normalisation.
    """

    depth: int = 50
    width: int = 64
    stem: Literal["imagenet", "cifar"] = "imagenet"
    version: Literal["v1.5", "v1"] = "v1.5"
    epsilon: float = 1e-5

    def __post_init__(self) -> None:
        if self.depth not in DEPTHS:
            known = ", ".join(map(str, DEPTHS))
            raise ValueError(f"depth must be one of {known}, not {self.depth}")
        if self.width < 1:
            raise ValueError(f"width must be at least 1, not {self.width}")
        if not 0 < self.epsilon < math.inf:
            raise ValueError(f"epsilon must be above 0 and finite, not {self.epsilon}")

    def __len__(self) -> int:
        """Returns the number of blocks."""
        return sum(DEPTHS[self.depth][0]) + 2

    def blocks(self, num_classes: int) -> Sequence[keras.Layer]:
        """Returns the stem, a block for each residual unit, and the head."""
        from models import residual  # TensorFlow, only when a model is built

        counts, is_bottleneck = DEPTHS[self.depth]
        blocks: list[keras.Layer] = [
            residual.Stem(self.width, self.stem, self.epsilon, name="stem")
        ]
        for group, count in enumerate(counts):
            for place in range(count):
                blocks.append(
                    residual.Residual(
                        width=self.width * 2**group,
                        stride=2 if group and not place else 1,
                        project=not place and (group > 0 or is_bottleneck),
                        is_bottleneck=is_bottleneck,
                        version=self.version,
                        epsilon=self.epsilon,
                        name=f"group{group + 1}_block{place + 1}",
                    )
                )
        return [*blocks, residual.Head(num_classes, name="head")]
