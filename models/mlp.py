"""Configures a multilayer perceptron, for tables of numbers."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import keras


@dataclass(frozen=True)
class MLP:
    """Dense layers with ReLU and dropout between them.

    Attributes:
        width: of each hidden layer.
        depth: hidden layers.
        dropout: rate after each of them.
    """

    width: int = 64
    depth: int = 2
    dropout: float = 0.0

    def __post_init__(self) -> None:
        if min(self.width, self.depth) < 1 or not 0 <= self.dropout < 1:
            raise ValueError(
                f"width and depth must be 1 or more and dropout in [0, 1), not {self.width}, "
                f"{self.depth} and {self.dropout}"
            )

    def __len__(self) -> int:
        """Returns the number of blocks."""
        return self.depth * (2 if self.dropout else 1) + 1

    def blocks(self, num_outputs: int) -> Sequence[keras.Layer]:
        """Returns the hidden layers and the head."""
        import keras  # TensorFlow, only when a model is built

        blocks: list[keras.Layer] = []
        for i in range(self.depth):
            blocks.append(keras.layers.Dense(self.width, activation="relu", name=f"dense{i}"))
            if self.dropout:
                blocks.append(keras.layers.Dropout(self.dropout, name=f"dropout{i}"))
        return [*blocks, keras.layers.Dense(num_outputs, name="head")]
