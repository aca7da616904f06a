"""Makes an experiment's model of a whole Keras model, functional or sequential.

    KerasModel(build)                     build() or build(number of outputs) returns the model
    KerasModel(keras.Sequential([...]))   a copy of it is trained, with fresh weights

The graph is in `graph.py`, so that reading a configuration needs no TensorFlow.
"""

from __future__ import annotations

import functools
import inspect
import json
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol, runtime_checkable

if TYPE_CHECKING:
    import keras


WEIGHT_FILES = (".keras",)


@runtime_checkable
class Build(Protocol):
    """A function that returns a Keras model, or such a model."""

    def __call__(self, *arguments: Any) -> Any:
        """Returns a functional or sequential Keras model."""
        ...


def recorded(build: Any) -> Any:
    """Returns what names a function in a record, or a model's own configuration."""
    if hasattr(build, "to_json"):
        return json.loads(build.to_json())
    if isinstance(build, functools.partial):
        given = {name: repr(value) for name, value in build.keywords.items()}
        return {"function": recorded(build.func), "args": list(map(repr, build.args)), **given}
    named = build if hasattr(build, "__qualname__") else type(build)
    return f"{named.__module__}.{named.__qualname__}"


@dataclass(frozen=True)
class KerasModel:
    """A functional or sequential Keras model, cut into blocks where the fewest tensors cross.

    Attributes:
        build: a function that returns the model; if it has a parameter without a default, it is
            given the number of outputs. Or a model, of which a copy with fresh weights is made.
            Either way initial weights are a function of the experiment's seed.
        init_from: a `.keras` file, from which weights are taken by their names.
        fresh: patterns of names (`freezing.py`) of weights that are not taken from it, such as
            those of a new head.
        allow_code: read a file whose configuration holds code, such as a Lambda layer, or names
            classes that are not Keras' own. Such a file can do anything: only if you trust it.
    """

    build: Build = field(metadata={"recorded": recorded})
    init_from: str | None = None
    fresh: tuple[str, ...] = ()
    allow_code: bool = False

    def __post_init__(self) -> None:
        if self.init_from is not None and not self.init_from.endswith(WEIGHT_FILES):
            raise ValueError(
                f"init_from must be a {' or '.join(WEIGHT_FILES)} file, not {self.init_from!r}"
            )
        if (self.fresh or self.allow_code) and self.init_from is None:
            raise ValueError("fresh and allow_code are of init_from, which is none: set it")
        if not callable(self.build) or isinstance(self.build, type):
            raise ValueError(
                f"build must be a function that returns a Keras model, or one, not {self.build!r}"
            )
        if getattr(self.build, "__name__", "") == "<lambda>":
            raise ValueError("build must be a function with a name, as runs are recorded by it")

    def blocks(self, num_outputs: int) -> Sequence[keras.Layer]:
        """Makes the model, and returns its blocks.

        Raises:
            ModelError: it is not a functional or sequential model.
        """
        from models import whole  # TensorFlow, only when a model is built

        return whole.blocks_of(whole.made(self.build, num_outputs, takes_number(self.build)))

    def load(self, blocks: Sequence[keras.Layer], path: Path) -> None:
        """Loads the weights of the file `init_from` into built blocks.

        Args:
            blocks: of this model.
            path: of the file.

        Raises:
            ModelError: the file is damaged or holds code, or a weight is missing or does not fit.
        """
        from models import keras_file

        keras_file.load(blocks, path, self.fresh, self.allow_code)


def takes_number(build: Any) -> bool:
    """Returns whether a function has a parameter that must be given."""
    if hasattr(build, "get_config"):  # a model
        return False
    parameters = inspect.signature(build).parameters.values()
    kinds = (inspect.Parameter.POSITIONAL_ONLY, inspect.Parameter.POSITIONAL_OR_KEYWORD)
    return any(p.kind in kinds and p.default is inspect.Parameter.empty for p in parameters)
