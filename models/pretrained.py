"""Weights of a BERT in the Hugging Face format, put into the blocks of a Transformer."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import keras
import numpy as np

from models import ModelError

if TYPE_CHECKING:
    from models.transformer import Transformer

# config.json's name of a size, and ours.
SIZES = {
    "num_hidden_layers": "layers",
    "hidden_size": "width",
    "num_attention_heads": "heads",
    "vocab_size": "vocabulary",
    "max_position_embeddings": "positions",
}


class Weights:
    """The tensors of model.safetensors, under the names of a bare BertModel."""

    def __init__(self, folder: Path) -> None:
        from safetensors import SafetensorError
        from safetensors.numpy import load_file

        self.path = folder / "model.safetensors"
        try:
            tensors = load_file(self.path)
        except (OSError, SafetensorError) as error:
            raise ModelError(f"cannot read {self.path} ({error}): see model.init_from.") from None
        # A model with a task's head has its encoder under "bert."; old ones call
        # normalisation's weights gamma and beta.
        self.tensors = {
            name.removeprefix("bert.")
            .replace("LayerNorm.gamma", "LayerNorm.weight")
            .replace("LayerNorm.beta", "LayerNorm.bias"): value
            for name, value in tensors.items()
        }

    def __contains__(self, name: str) -> bool:
        return name in self.tensors

    def __getitem__(self, name: str) -> np.ndarray:
        if name not in self.tensors:
            raise ModelError(f"{self.path} has no tensor {name!r}: it is not a whole BERT encoder.")
        return self.tensors[name].astype(np.float32)

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
        ModelError: another architecture, a missing tensor, another size.
    """
    check(config, folder)
    weights = Weights(folder)
    embeddings, *layers, head = blocks

    def give(variable: keras.Variable, value: np.ndarray, source: str) -> None:
        if tuple(variable.shape) != value.shape:
            raise ModelError(
                f"{source} in {weights.path} has shape {list(value.shape)}, but {variable.path} "
                f"has {list(variable.shape)}: set model.* to the sizes in {folder / 'config.json'}."
            )
        variable.assign(value)

    def give_dense(kernel: keras.Variable, bias: keras.Variable, name: str) -> None:
        give(kernel, weights[f"{name}.weight"].T, name)
        give(bias, weights[f"{name}.bias"], name)

    def give_norm(layer: keras.layers.LayerNormalization, name: str) -> None:
        give(layer.gamma, weights[f"{name}.weight"], name)
        give(layer.beta, weights[f"{name}.bias"], name)

    (words,) = embeddings.words.shares
    for kind, variable in (
        ("word", words.table),
        ("position", embeddings.positions),
        ("token_type", embeddings.segments),
    ):
        name = f"embeddings.{kind}_embeddings.weight"
        give(variable, weights[name], name)
    give_norm(embeddings.normalization, "embeddings.LayerNorm")
    for place, layer in enumerate(layers):
        name = f"encoder.layer.{place}"
        (attention,), (mlp,) = layer.attention.shares, layer.mlp.shares
        kernel, bias = weights.qkv(f"{name}.attention.self", config.heads)
        give(attention.qkv.kernel, kernel, f"{name}.attention.self")
        give(attention.qkv.bias, bias, f"{name}.attention.self")
        give_dense(attention.out.kernel, layer.attention.bias, f"{name}.attention.output.dense")
        give_norm(layer.attention_normalization, f"{name}.attention.output.LayerNorm")
        give_dense(mlp.inner.kernel, mlp.inner.bias, f"{name}.intermediate.dense")
        give_dense(mlp.out.kernel, layer.mlp.bias, f"{name}.output.dense")
        give_norm(layer.mlp_normalization, f"{name}.output.LayerNorm")
    if config.pooling == "cls" and "pooler.dense.weight" in weights:
        give_dense(head.pooler.kernel, head.pooler.bias, "pooler.dense")


def check(config: Transformer, folder: Path) -> None:
    """Compares sizes before any tensor is read.

    Raises:
        ModelError: names every field that differs.
    """
    path = folder / "config.json"
    try:
        theirs = json.loads(path.read_text())
    except (OSError, ValueError) as error:
        raise ModelError(f"cannot read {path} ({error}): see model.init_from.") from None
    kind = theirs.get("model_type", "bert")
    if kind != "bert" or theirs.get("position_embedding_type", "absolute") != "absolute":
        raise ModelError(f"{path} describes a {kind!r}; model.init_from needs a BERT.")
    if config.norm != "post" or theirs.get("hidden_act", "gelu") != "gelu":
        raise ModelError(
            f"{path} describes a post-norm BERT with {theirs.get('hidden_act')}; the weights fit "
            "model.norm=post and gelu alone."
        )
    wrong = [
        f"model.{ours}={theirs[name]} (not {getattr(config, ours)})"
        for name, ours in SIZES.items()
        if name in theirs and theirs[name] != getattr(config, ours)
    ]
    if wrong:
        raise ModelError(f"{folder} has other sizes: set {', '.join(wrong)}.")
    if theirs.get("intermediate_size", 4 * config.width) != 4 * config.width:
        raise ModelError(
            f"{path}: intermediate_size is {theirs['intermediate_size']}; it must be 4 x width "
            f"({4 * config.width})."
        )
