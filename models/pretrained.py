"""Weights of a BERT in the Hugging Face format, put into the blocks of a Transformer."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import keras
import numpy as np

from models import ModelError, bert_config, tensors

if TYPE_CHECKING:
    from models.transformer import Transformer


class Weights:
    """The tensors of a folder, under the names of a bare BertModel."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        # A model with a task's head has its encoder under "bert."; old ones call
        # normalisation's weights gamma and beta.
        self.entries = {
            name.removeprefix("bert.")
            .replace("LayerNorm.gamma", "LayerNorm.weight")
            .replace("LayerNorm.beta", "LayerNorm.bias"): entry
            for name, entry in tensors.entries(folder).items()
        }

    def __contains__(self, name: str) -> bool:
        return name in self.entries

    def __getitem__(self, name: str) -> np.ndarray:
        return self.entries[name].read()

    def must_hold(self, shapes: dict[str, tuple[int, ...]]) -> None:
        """Checks that tensors are there, as they are needed.

        Raises:
            ModelError: names the first that is not.
        """
        for name, shape in shapes.items():
            if name not in self:
                raise ModelError(
                    f"{self.folder} has no tensor {name!r}: it is not a whole BERT encoder."
                )
            entry = self.entries[name]
            if entry.shape != shape:
                raise ModelError(
                    f"{name} in {entry.path} has shape {list(entry.shape)}, not {list(shape)} as "
                    f"{self.folder / 'config.json'} says: they are not of one model."
                )
            if entry.kind not in tensors.TYPES:
                raise ModelError(
                    f"{name} in {entry.path} is of type {entry.kind}; it must be of "
                    f"{', '.join(tensors.TYPES)}: give the weights as they were before they were "
                    "quantized."
                )

    def qkv(self, name: str, heads: int) -> tuple[np.ndarray, np.ndarray]:
        """Kernel [D, 3 D] and bias [3 D] of q, k and v, head by head."""
        kinds = [f"{name}.{kind}" for kind in ("query", "key", "value")]
        kernel = np.stack([self[f"{kind}.weight"].T for kind in kinds], 1)  # [D, 3, D]
        bias = np.stack([self[f"{kind}.bias"] for kind in kinds])  # [3, D]
        return by_head(kernel, heads), by_head(bias, heads)


def by_head(columns: np.ndarray, heads: int) -> np.ndarray:
    """[..., 3, D], each of q, k, v by head, -> [..., 3 D], each head's q, k, v."""
    *rest, three, width = columns.shape
    each = columns.reshape(*rest, three, heads, width // heads)
    return np.moveaxis(each, -3, -2).reshape(*rest, three * width)


def load_bert(config: Transformer, blocks: Sequence[keras.Layer], folder: Path) -> None:
    """Assigns every weight but the classifier's (and a missing pooler's).

    Raises:
        ModelError: see `check`.
    """
    weights = check(config, folder)
    embeddings, *layers, head = blocks

    def give_dense(kernel: keras.Variable, bias: keras.Variable, name: str) -> None:
        kernel.assign(weights[f"{name}.weight"].T)
        bias.assign(weights[f"{name}.bias"])

    def give_norm(layer: keras.layers.LayerNormalization, name: str) -> None:
        layer.gamma.assign(weights[f"{name}.weight"])
        layer.beta.assign(weights[f"{name}.bias"])

    (words,) = embeddings.words.shares
    words.table.assign(weights["embeddings.word_embeddings.weight"])
    embeddings.positions.assign(weights["embeddings.position_embeddings.weight"])
    # Of the first segment is every text; of others there may be any number, or none.
    segments = weights["embeddings.token_type_embeddings.weight"][:2]
    embeddings.segments.assign(np.pad(segments, [[0, 2 - len(segments)], [0, 0]]))
    give_norm(embeddings.normalization, "embeddings.LayerNorm")
    for place, layer in enumerate(layers):
        name = f"encoder.layer.{place}"
        (attention,), (mlp,) = layer.attention.shares, layer.mlp.shares
        kernel, bias = weights.qkv(f"{name}.attention.self", config.heads)
        attention.qkv.kernel.assign(kernel)
        attention.qkv.bias.assign(bias)
        give_dense(attention.out.kernel, layer.attention.bias, f"{name}.attention.output.dense")
        give_norm(layer.attention_normalization, f"{name}.attention.output.LayerNorm")
        give_dense(mlp.inner.kernel, mlp.inner.bias, f"{name}.intermediate.dense")
        give_dense(mlp.out.kernel, layer.mlp.bias, f"{name}.output.dense")
        give_norm(layer.mlp_normalization, f"{name}.output.LayerNorm")
    if config.pooling == "cls" and "pooler.dense.weight" in weights:
        give_dense(head.pooler.kernel, head.pooler.bias, "pooler.dense")


def check(config: Transformer, folder: Path) -> Weights:
    """Compares config.json and the tensors' shapes with the model; reads no tensor.

    Raises:
        ModelError: another architecture (every field that differs is named), a tensor that is
            missing or has another shape, a file that is missing or damaged.
    """
    shapes, width = bert_config.compare(config, folder), config.width
    weights = Weights(folder)
    if config.pooling == "cls" and "pooler.dense.weight" in weights:
        shapes |= {"pooler.dense.weight": (width, width), "pooler.dense.bias": (width,)}
    weights.must_hold(shapes)
    return weights
