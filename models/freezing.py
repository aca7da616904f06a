"""Freezes weights by their names: they keep their values, without gradient, slots or decay.

A pattern is as for files (`fnmatch`), and `*` matches slashes too: `stem/*`, `layer0[0-3]/*`,
`*/bias`.
A layer whose weights are all frozen becomes `trainable = False`, as Keras has it: its moving
averages stand still, and batch normalisation normalises by them in training too.
"""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Sequence
from fnmatch import fnmatchcase

import keras

from models import ModelError
from models.shards import nested_layers, whole_name


def matches(name: str, patterns: Iterable[str]) -> bool:
    """Returns whether a weight's name matches one of the patterns."""
    return any(fnmatchcase(name, pattern) for pattern in patterns)


def freeze(block: keras.Layer, patterns: Sequence[str]) -> None:
    """Freezes the weights of a built block whose names match."""
    if not patterns:
        return
    frozen = {id(v) for v in block.weights if matches(whole_name(v), patterns)}
    for layer in nested_layers(block):
        if layer.weights and all(id(v) in frozen for v in layer.weights):
            layer.trainable = False
    for variable in block.trainable_weights:
        if id(variable) in frozen:
            variable.trainable = False


def check(blocks: Sequence[keras.Layer], patterns: Sequence[str]) -> None:
    """Checks the patterns against the weights of all blocks.

    Raises:
        ModelError: a pattern matches no weight, or no weight is left to train.
    """
    names = [whole_name(v) for block in blocks for v in block.weights]
    must_match(names, patterns, "frozen")
    if patterns and not any(block.trainable_weights for block in blocks):
        raise ModelError(
            f"frozen={','.join(patterns)} freezes all {len(names)} weights of the model: leave "
            "some to be trained, such as the head's."
        )


def must_match(names: Sequence[str], patterns: Sequence[str], field: str) -> None:
    """Checks that each pattern matches one of the names.

    Raises:
        ModelError: names the pattern, and what is nearest.
    """
    for pattern in patterns:
        if not any(fnmatchcase(name, pattern) for name in names):
            near = difflib.get_close_matches(pattern, names, n=1, cutoff=0)
            hint = f" (nearest: {near[0]})" if near else ""
            raise ModelError(f"{field}: {pattern!r} matches none of the weights' names{hint}.")
