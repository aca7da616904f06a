"""Configures a transformer encoder that classifies texts (BERT, arXiv:1810.04805).

The layers are in `encoder.py`, so that reading a configuration needs no TensorFlow.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

if TYPE_CHECKING:
    import keras


# For an experiment's `frozen`: all but the low-rank updates and the head.
BASE_OF_LORA = ("embeddings/*", "layer*/kernel", "layer*/bias", "layer*/gamma", "layer*/beta")


@dataclass(frozen=True)
class Transformer:
    """Embeddings, `layers` encoder layers, head. The defaults are BERT-base's.

    Published sizes (layers, width, heads): tiny 2, 128, 2; mini 4, 256, 4; MiniLM 6, 384,
    12; base 12, 768, 12; large 24, 1024, 16. The MLP is four times as wide as the model.

    Attributes:
        layers, width, heads: of the encoder; `heads` divides `width`.
        vocabulary: rows of the embedding table; at least the size of the data's vocabulary.
        positions: the most tokens a text may have.
        norm: `post` normalises after each sum (BERT), `pre` before each branch
            (arXiv:2002.04745) and once more in the head.
        pooling: `cls` takes the first token through a dense layer with tanh (BERT), `mean` the
            mean over the tokens; `none` does not pool: there are outputs for each token.
        dropout: rate for embeddings, attention, branches and the head's input.
        epsilon: of the normalisation.
        init_from: folder of a BERT in the Hugging Face format (`config.json`,
            `model.safetensors`, in one file or several), or `minilm`; None: random weights.
        causal: a token does not see those after it, as a model of next words must not.
        activation: of the MLP (arXiv:1606.08415); `gelu_tanh` is what BERT's authors computed.
        lora_rank: of a low-rank update of the kernels of attention and MLP (`lora.py`); 0: none.
            The experiment's `frozen` says that the kernels themselves are not trained.
        lora_alpha: the update's factor is `lora_alpha / lora_rank`.
    """

    layers: int = 12
    width: int = 768
    heads: int = 12
    vocabulary: int = 30522
    positions: int = 512
    norm: Literal["post", "pre"] = "post"
    pooling: Literal["cls", "mean", "none"] = "cls"
    dropout: float = 0.1
    epsilon: float = 1e-12
    init_from: str | None = None
    activation: Literal["gelu", "gelu_tanh", "relu"] = field(
        default="gelu", metadata={"came_later": True}
    )
    causal: bool = field(default=False, metadata={"came_later": True})
    lora_rank: int = field(default=0, metadata={"came_later": True})
    lora_alpha: float = field(default=16.0, metadata={"came_later": True})

    def __post_init__(self) -> None:
        sizes = (self.layers, self.width, self.heads, self.vocabulary, self.positions)
        if min(sizes) < 1:
            raise ValueError("layers, width, heads, vocabulary and positions must be 1 or more")
        if self.width % self.heads:
            raise ValueError(f"width ({self.width}) must be a multiple of heads ({self.heads})")
        if self.lora_rank < 0 or not 0 < self.lora_alpha < math.inf:
            raise ValueError(
                f"lora_rank must be 0 or more and lora_alpha above 0 and finite, not "
                f"{self.lora_rank} and {self.lora_alpha}"
            )
        if not 0 <= self.dropout < 1:
            raise ValueError(f"dropout must be in [0, 1), not {self.dropout}")
        if not 0 < self.epsilon < math.inf:
            raise ValueError(f"epsilon must be above 0 and finite, not {self.epsilon}")
        if self.init_from == "":
            raise ValueError("init_from must be minilm or a folder, or none to start at random")
        if self.init_from and self.norm != "post":
            raise ValueError(
                f"init_from ({self.init_from}) needs norm=post, not {self.norm}: set norm=post, or "
                "init_from=none"
            )

    def __len__(self) -> int:
        """Returns the number of blocks."""
        return self.layers + 2

    @property
    def shardable(self) -> dict[str, int]:
        """The number of parts that --tensor can split a layer into, by the layer's name."""
        return {"attention": self.heads}

    def blocks(self, num_classes: int, shards: int = 1) -> Sequence[keras.Layer]:
        """Returns embeddings, encoder layers and head.

        Shards split the embedding table by words, attention by heads and the MLP by columns.
        """
        from models import ModelError, encoder  # TensorFlow, only when a model is built

        if shards > 1 and self.lora_rank:
            raise ModelError(
                f"--tensor cannot split the low-rank updates of model.lora_rank={self.lora_rank}: "
                "split the model with --stages instead, or set model.lora_rank=0."
            )
        update = encoder.Update(self.lora_rank, self.lora_alpha / max(1, self.lora_rank))
        common: dict[str, Any] = {
            "width": self.width, "rate": self.dropout, "epsilon": self.epsilon
        }  # fmt: skip
        layer = common | {
            "heads": self.heads, "activation": self.activation, "norm": self.norm, "shards": shards,
            "update": update, "is_causal": self.causal,
        }  # fmt: skip
        if self.pooling == "none":
            head = encoder.TokenHead(num_classes, norm=self.norm, name="head", **common)
        else:
            pooling = self.pooling
            head = encoder.Head(num_classes, norm=self.norm, pooling=pooling, name="head", **common)
        return [
            encoder.Embeddings(
                self.vocabulary, self.positions, shards=shards, name="embeddings", **common
            ),
            *(encoder.Layer(name=f"layer{i:02d}", **layer) for i in range(self.layers)),
            head,
        ]

    def check(self, folder: Path) -> None:
        """Compares the model with the one that `init_from` names; reads no weights.

        Args:
            folder: where that model is.

        Raises:
            ModelError: another architecture or size, or a file that is missing or damaged.
        """
        from models import pretrained

        pretrained.check(dataclasses.asdict(self), folder)

    def load(self, blocks: Sequence[keras.Layer], folder: Path) -> None:
        """Loads the weights that `init_from` names into built blocks of one shard.

        Args:
            blocks: of this model.
            folder: where the weights are.

        Raises:
            ModelError: another architecture or size, or a tensor that is missing.
        """
        from models import pretrained

        pretrained.load(dataclasses.asdict(self), blocks, folder)
