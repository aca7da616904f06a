"""Loads weights of a BERT in the Hugging Face format into the blocks of a Transformer.

The folder's config.json must describe the same model: every field that the result depends on, and
the shape of every tensor, is compared before a weight is read. `fields` are those of
`transformer.Transformer`, by name.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import keras
import numpy as np

from models import ModelError, tensors

Shapes = dict[str, tuple[int, ...]]

# Fields by their names in config.json: Transformer's name, and the value if config.json has none.
SIZES: dict[str, tuple[str, Any]] = {
    "num_hidden_layers": ("layers", 12),
    "hidden_size": ("width", 768),
    "num_attention_heads": ("heads", 12),
    "vocab_size": ("vocabulary", 30522),
    "max_position_embeddings": ("positions", 512),
    "layer_norm_eps": ("epsilon", 1e-12),
}
# With another value of these a BERT computes something else. (Dropout rates belong to the
# experiment, and an encoder has none of the fields of generation or of pretraining's head.)
FIXED: dict[str, Any] = {
    "model_type": "bert",
    "position_embedding_type": "absolute",
    "is_decoder": False,
    "add_cross_attention": False,
    "pruned_heads": {},
    "quantization_config": None,
}
ACTIVATIONS = {
    "gelu": "gelu", "gelu_python": "gelu", "gelu_new": "gelu_tanh", "gelu_fast": "gelu_tanh",
    "gelu_pytorch_tanh": "gelu_tanh", "relu": "relu",
}  # fmt: skip


def load(fields: Mapping[str, Any], blocks: Sequence[keras.Layer], folder: Path) -> None:
    """Assigns every weight but the classifier's (and the pooler's, if the folder has none).

    Raises:
        ModelError: see `check`.
    """
    weights = check(fields, folder)
    embeddings, *layers, head = blocks

    def assign_dense(kernel: keras.Variable, bias: keras.Variable, name: str) -> None:
        kernel.assign(weights[f"{name}.weight"].T)
        bias.assign(weights[f"{name}.bias"])

    def assign_norm(layer: keras.layers.LayerNormalization, name: str) -> None:
        layer.gamma.assign(weights[f"{name}.weight"])
        layer.beta.assign(weights[f"{name}.bias"])

    (words,) = embeddings.words.shards
    words.table.assign(weights["embeddings.word_embeddings.weight"])
    embeddings.positions.assign(weights["embeddings.position_embeddings.weight"])
    # Every text is of the first segment; a BERT has any number of others, or none.
    segments = weights["embeddings.token_type_embeddings.weight"][:2]
    embeddings.segments.assign(np.pad(segments, [[0, 2 - len(segments)], [0, 0]]))
    assign_norm(embeddings.normalization, "embeddings.LayerNorm")
    for place, layer in enumerate(layers):
        name = f"encoder.layer.{place}"
        (attention,), (mlp,) = layer.attention.shards, layer.mlp.shards
        kernel, bias = weights.qkv(f"{name}.attention.self", fields["heads"])
        attention.qkv.kernel.assign(kernel)
        attention.qkv.bias.assign(bias)
        assign_dense(attention.out.kernel, layer.attention.bias, f"{name}.attention.output.dense")
        assign_norm(layer.attention_normalization, f"{name}.attention.output.LayerNorm")
        assign_dense(mlp.inner.kernel, mlp.inner.bias, f"{name}.intermediate.dense")
        assign_dense(mlp.out.kernel, layer.mlp.bias, f"{name}.output.dense")
        assign_norm(layer.mlp_normalization, f"{name}.output.LayerNorm")
    if fields["pooling"] == "cls" and "pooler.dense.weight" in weights:
        assign_dense(head.pooler.kernel, head.pooler.bias, "pooler.dense")


def check(fields: Mapping[str, Any], folder: Path) -> Weights:
    """Compares config.json and the tensors' shapes with the model; reads no tensor.

    Raises:
        ModelError: another architecture (every field that differs is named), a tensor that is
            missing or has another shape, or a file that is missing or damaged.
    """
    expected, width = compare(fields, folder), fields["width"]
    weights = Weights(folder)
    if fields["pooling"] == "cls" and "pooler.dense.weight" in weights:
        expected |= {"pooler.dense.weight": (width, width), "pooler.dense.bias": (width,)}
    weights.check(expected)
    return weights


def compare(fields: Mapping[str, Any], folder: Path) -> Shapes:
    """Compares every field that the model depends on; returns the shapes of the tensors by name.

    Raises:
        ModelError: another architecture; every field that differs is named.
    """
    path = folder / "config.json"
    theirs = tensors.load_json(path)
    if fields["norm"] != "post":
        raise ModelError(
            f"{path} is of a post-norm BERT: set model.norm=post, not {fields['norm']}."
        )
    wanted = {ours: _size(path, theirs, name, usual) for name, (ours, usual) in SIZES.items()}
    wanted["activation"] = ACTIVATIONS.get(str(theirs.get("hidden_act", "gelu")))
    fixed = FIXED | {"intermediate_size": 4 * wanted["width"]}
    fixed |= {} if wanted["activation"] else {"hidden_act": ", ".join(ACTIVATIONS)}
    wrong = [
        f"{name} {theirs[name]!r} (it must be {value!r})"
        for name, value in fixed.items()
        if name in theirs and (theirs[name] or None) != (value or None)
    ]
    if wrong:
        raise ModelError(
            f"{path} describes a model that is not Transformer's: {', '.join(wrong)}; give another "
            "BERT as model.init_from."
        )
    differ = [
        f"model.{ours}={value} (not {fields[ours]})"
        for ours, value in wanted.items()
        if value != fields[ours]
    ]
    if differ:
        raise ModelError(f"{folder} holds another model: set {', '.join(differ)}.")
    return shapes(fields, _size(path, theirs, "type_vocab_size", 2))


def _size(path: Path, theirs: dict[str, Any], name: str, usual: Any) -> Any:
    value = theirs.get(name, usual)
    if isinstance(usual, int) and type(value) is int and 0 < value < 2**31:
        return value
    if isinstance(usual, float) and type(value) in (int, float) and 0 < value < 1:
        return value
    raise ModelError(f"{path}: {name} is {value!r}: it must be a number, as {usual}.")


def shapes(fields: Mapping[str, Any], segments: int) -> Shapes:
    """Returns the shapes of an encoder's tensors by name, without a pooler's.

    Args:
        fields: of the model.
        segments: rows of the segment table.
    """
    width, wide = fields["width"], 4 * fields["width"]
    tables = {"word": fields["vocabulary"], "position": fields["positions"], "token_type": segments}
    dense = {
        "attention.self.query": (width, width),
        "attention.self.key": (width, width),
        "attention.self.value": (width, width),
        "attention.output.dense": (width, width),
        "intermediate.dense": (wide, width),
        "output.dense": (width, wide),
    }
    found: Shapes = {
        f"embeddings.{kind}_embeddings.weight": (rows, width) for kind, rows in tables.items()
    }
    norms = ["embeddings.LayerNorm"]
    for layer in (f"encoder.layer.{place}" for place in range(fields["layers"])):
        found |= {f"{layer}.{name}.weight": shape for name, shape in dense.items()}
        found |= {f"{layer}.{name}.bias": shape[:1] for name, shape in dense.items()}
        norms += [f"{layer}.attention.output.LayerNorm", f"{layer}.output.LayerNorm"]
    return found | {f"{norm}.{kind}": (width,) for norm in norms for kind in ("weight", "bias")}


class Weights:
    """The tensors of a folder, under the names of a bare BertModel."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        # A model with a task's head has its encoder under "bert."; old ones call the
        # normalisations' weights gamma and beta.
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

    def check(self, expected: Shapes) -> None:
        """Checks that there are tensors of these shapes, of a type that can be read.

        Raises:
            ModelError: names the first that is not.
        """
        for name, shape in expected.items():
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
        """Returns kernel [D, 3 D] and bias [3 D] of q, k and v, head by head."""
        kinds = [f"{name}.{kind}" for kind in ("query", "key", "value")]
        kernel = np.stack([self[f"{kind}.weight"].T for kind in kinds], 1)  # [D, 3, D]
        bias = np.stack([self[f"{kind}.bias"] for kind in kinds])  # [3, D]
        return by_head(kernel, heads), by_head(bias, heads)


def by_head(columns: np.ndarray, heads: int) -> np.ndarray:
    """Reorders the columns of q, k and v, [..., 3, D], head by head, [..., 3 D]."""
    *rest, three, width = columns.shape
    split = columns.reshape(*rest, three, heads, width // heads)
    return np.moveaxis(split, -3, -2).reshape(*rest, three * width)
