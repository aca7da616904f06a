"""What a BERT's config.json says, compared with a Transformer: fields, and shapes of tensors."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from models import ModelError, tensors

if TYPE_CHECKING:
    from models.transformer import Transformer

# config.json's name of a size, ours, and what it is where config.json does not say it.
SIZES: dict[str, tuple[str, Any]] = {
    "num_hidden_layers": ("layers", 12),
    "hidden_size": ("width", 768),
    "num_attention_heads": ("heads", 12),
    "vocab_size": ("vocabulary", 30522),
    "max_position_embeddings": ("positions", 512),
    "layer_norm_eps": ("epsilon", 1e-12),
}
# What a BERT computes otherwise with another value. (Rates of dropout are the experiment's, and
# what generation, or pretraining's head, reads is of no encoder.)
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


def compare(config: Transformer, folder: Path) -> dict[str, tuple[int, ...]]:
    """Compares every field that the model depends on; returns the shapes of the tensors by name.

    Raises:
        ModelError: another architecture; every field that differs is named.
    """
    path = folder / "config.json"
    theirs = tensors.loaded(path)
    if config.norm != "post":
        raise ModelError(f"{path} is of a post-norm BERT: set model.norm=post, not {config.norm}.")
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
        f"model.{ours}={value} (not {getattr(config, ours)})"
        for ours, value in wanted.items()
        if value != getattr(config, ours)
    ]
    if differ:
        raise ModelError(f"{folder} holds another model: set {', '.join(differ)}.")
    return shapes(config, _size(path, theirs, "type_vocab_size", 2))


def _size(path: Path, theirs: dict[str, Any], name: str, usual: Any) -> Any:
    value = theirs.get(name, usual)
    if isinstance(usual, int) and type(value) is int and 0 < value < 2**31:
        return value
    if isinstance(usual, float) and type(value) in (int, float) and 0 < value < 1:
        return value
    raise ModelError(f"{path}: {name} is {value!r}: it must be a number, as {usual}.")


def shapes(config: Transformer, segments: int) -> dict[str, tuple[int, ...]]:
    """Shapes of an encoder's tensors, by name, without a pooler's.

    Args:
        config: the model.
        segments: rows of the table of segments.
    """
    width, wide = config.width, 4 * config.width
    tables = {"word": config.vocabulary, "position": config.positions, "token_type": segments}
    dense = {
        "attention.self.query": (width, width),
        "attention.self.key": (width, width),
        "attention.self.value": (width, width),
        "attention.output.dense": (width, width),
        "intermediate.dense": (wide, width),
        "output.dense": (width, wide),
    }
    found: dict[str, tuple[int, ...]] = {
        f"embeddings.{kind}_embeddings.weight": (rows, width) for kind, rows in tables.items()
    }
    norms = ["embeddings.LayerNorm"]
    for layer in (f"encoder.layer.{place}" for place in range(config.layers)):
        found |= {f"{layer}.{name}.weight": shape for name, shape in dense.items()}
        found |= {f"{layer}.{name}.bias": shape[:1] for name, shape in dense.items()}
        norms += [f"{layer}.attention.output.LayerNorm", f"{layer}.output.LayerNorm"]
    return found | {f"{norm}.{kind}": (width,) for norm in norms for kind in ("weight", "bias")}
