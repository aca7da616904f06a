"""Builds the two models as PyTorch modules: the layers of `models/`, weight for weight.

B  examples     H, W  pixels     T  tokens     D  width     K  classes
"""

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from models.resnet import DEPTHS


def build(model: Mapping[str, Any], classes: int) -> nn.Module:
    """Returns the model of a configuration, given as by `config.as_dict`."""
    kinds = {"models.resnet.ResNet": ResNet, "models.transformer.Transformer": Encoder}
    return kinds[model["type"]](model, classes)


class Bottleneck(nn.Module):
    """1x1, 3x3 (with the stride: v1.5) and 1x1 convolutions beside a shortcut."""

    def __init__(self, channels: int, width: int, stride: int, epsilon: float) -> None:
        super().__init__()
        self.branch = nn.Sequential(
            *normalized(channels, width, 1, 1, epsilon), nn.ReLU(inplace=True),
            *normalized(width, width, 3, stride, epsilon), nn.ReLU(inplace=True),
            *normalized(width, 4 * width, 1, 1, epsilon),
        )  # fmt: skip
        self.shortcut = (
            nn.Sequential(*normalized(channels, 4 * width, 1, stride, epsilon))
            if stride > 1 or channels != 4 * width
            else nn.Identity()
        )

    def forward(self, x: Tensor) -> Tensor:
        """Maps [B, C, H, W] to [B, 4 width, H / stride, W / stride]."""
        y: Tensor = self.branch(x)
        y += self.shortcut(x)
        return functional.relu(y, inplace=True)


def normalized(
    channels: int, filters: int, size: int, stride: int, epsilon: float
) -> tuple[nn.Module, nn.Module]:
    """Returns a convolution without bias, and its batch normalisation."""
    padding = (size - 1) // 2
    convolution = nn.Conv2d(channels, filters, size, stride, padding, bias=False)
    return convolution, nn.BatchNorm2d(filters, eps=epsilon, momentum=0.1)


class ResNet(nn.Module):
    """A ResNet of a depth that is made of bottlenecks, with the stem for ImageNet."""

    def __init__(self, model: Mapping[str, Any], classes: int) -> None:
        super().__init__()
        width, epsilon = model["width"], model["epsilon"]
        layers: list[nn.Module] = [
            *normalized(3, width, 7, 2, epsilon), nn.ReLU(inplace=True), nn.MaxPool2d(3, 2, 1)
        ]  # fmt: skip
        channels = width
        for group, count in enumerate(DEPTHS[model["depth"]][0]):
            for position in range(count):
                stride = 2 if group and not position else 1
                layers.append(Bottleneck(channels, width * 2**group, stride, epsilon))
                channels = 4 * width * 2**group
        self.layers = nn.Sequential(*layers)
        self.dense = nn.Linear(channels, classes)

    def forward(self, x: Tensor) -> Tensor:
        """Maps images [B, 3, H, W] to logits [B, K]."""
        y: Tensor = self.dense(self.layers(x).mean((2, 3)))
        return y


class Layer(nn.Module):
    """Self-attention and MLP, each with normalisation after the residual sum (BERT)."""

    def __init__(self, model: Mapping[str, Any]) -> None:
        super().__init__()
        width, self.heads, self.dropout = model["width"], model["heads"], model["dropout"]
        self.qkv, self.out = nn.Linear(width, 3 * width), nn.Linear(width, width)
        self.inner, self.outer = nn.Linear(width, 4 * width), nn.Linear(4 * width, width)
        self.norms = nn.ModuleList(nn.LayerNorm(width, model["epsilon"]) for _ in range(2))

    def forward(self, x: Tensor, mask: Tensor) -> Tensor:
        """Maps [B, T, D], with a mask bool [B, 1, 1, T], to [B, T, D]."""
        shape = (*x.shape[:2], 3, self.heads, -1)
        q, k, v = self.qkv(x).view(shape).permute(2, 0, 3, 1, 4).unbind()
        mixed = functional.scaled_dot_product_attention(
            q, k, v, mask, self.dropout if self.training else 0.0
        )
        y = self.out(mixed.transpose(1, 2).flatten(2))
        x = self.norms[0](x + functional.dropout(y, self.dropout, self.training))
        y = self.outer(functional.gelu(self.inner(x)))
        z: Tensor = self.norms[1](x + functional.dropout(y, self.dropout, self.training))
        return z


class Encoder(nn.Module):
    """A BERT encoder with a classifier on the mean over the tokens."""

    def __init__(self, model: Mapping[str, Any], classes: int) -> None:
        super().__init__()
        width = model["width"]
        self.words = nn.Embedding(model["vocabulary"], width)
        self.positions = nn.Parameter(0.02 * torch.randn(model["positions"], width))
        self.segments = nn.Parameter(0.02 * torch.randn(2, width))
        self.norm = nn.LayerNorm(width, model["epsilon"])
        self.dropout = nn.Dropout(model["dropout"])
        self.layers = nn.ModuleList(Layer(model) for _ in range(model["layers"]))
        self.classifier = nn.Linear(width, classes)

    def forward(self, ids: Tensor) -> Tensor:
        """Maps ids [B, T], 0 where padded, to logits [B, K]."""
        x = self.words(ids) + self.positions[: ids.shape[1]] + self.segments[0]
        x, mask = self.dropout(self.norm(x)), ids > 0
        for layer in self.layers:
            x = layer(x, mask[:, None, None, :])
        weights = mask[..., None].to(x.dtype)
        y: Tensor = self.classifier(self.dropout((x * weights).sum(1) / weights.sum(1)))
        return y
