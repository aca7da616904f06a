"""Takes weights by their names from a model that Keras saved (`model.save("file.keras")`).

Such a file is a zip with a configuration, from which Keras makes the model, and its weights. The
configuration may hold code: a Lambda layer's, or the names of classes to be called. A file that
does is refused unless it is allowed, before any of it is made.
"""

from __future__ import annotations

import json
import zipfile
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import keras
import numpy as np
import tensorflow as tf

from models import ModelError, freezing
from models.shards import whole_name

TRUSTED = ("keras", "keras_hub")  # packages whose classes a file may name
CODE = {"Lambda", "__lambda__", "TFSMLayer", "TorchModuleWrapper", "JaxLayer", "FlaxLayer"}
PLAIN = {"function", "slice", "ellipsis"}  # of builtins: Keras looks a function up among its own


def load(blocks: Sequence[keras.Layer], path: Path, fresh: Sequence[str], allow_code: bool) -> None:
    """Assigns the weights of a file to built blocks.

    Args:
        blocks: of the whole model.
        path: of the file.
        fresh: patterns of names of weights that keep their initial values.
        allow_code: make a model whose configuration holds code.

    Raises:
        ModelError: the file is damaged or holds code, or a weight is missing or does not fit.
    """
    found = read(path, allow_code)
    weights = {whole_name(v): v for block in blocks for v in block.weights}
    freezing.must_match(list(weights), fresh, "fresh")
    wanted = {n: v for n, v in weights.items() if not freezing.matches(n, fresh)}
    for name, variable in wanted.items():
        if name not in found:
            raise ModelError(
                f"{path} has no weight {name!r}, which the model has: give a pattern for it in "
                "fresh to start it anew, or build the model with the names of the file."
            )
        if found[name].shape != tuple(variable.shape):
            raise ModelError(
                f"{name} has shape {list(variable.shape)} in the model, but "
                f"{list(found[name].shape)} in {path}: give a pattern for it in fresh to start it "
                "anew, or build the model in the sizes of the file."
            )
    for name, variable in wanted.items():
        variable.value.assign(tf.cast(found[name], variable.value.dtype))


def read(path: Path, allow_code: bool) -> dict[str, np.ndarray]:
    """Returns the weights of a file, by name.

    Raises:
        ModelError: it is damaged, or holds code that is not allowed.
    """
    held = sorted(set(_code(_configuration(path))))
    if held and not allow_code:
        raise ModelError(
            f"{path} holds code ({', '.join(held)}), which would run as it is read: set "
            "allow_code=true if you trust the file."
        )
    try:
        model = keras.models.load_model(path, compile=False, safe_mode=not allow_code)
    except Exception as error:  # Keras raises of every kind, whatever is damaged
        reason = " ".join(str(error).split())[:200]
        raise ModelError(
            f"{path} cannot be read ({type(error).__name__}: {reason}): save the model again with "
            "this version of Keras, and import the file of its own classes."
        ) from None
    return {v.path: keras.ops.convert_to_numpy(v) for v in model.weights}


def _configuration(path: Path) -> Any:
    try:
        with zipfile.ZipFile(path) as file:
            return json.loads(file.read("config.json"))
    except FileNotFoundError:
        raise ModelError(f"no file {path}: correct init_from.") from None
    except (OSError, KeyError, ValueError, RecursionError, zipfile.BadZipFile, EOFError) as error:
        raise ModelError(
            f"{path} is damaged, or not what `model.save` writes ({type(error).__name__}: "
            f"{error}): save or fetch it again."
        ) from None


def _code(config: Any) -> Iterator[str]:
    """Yields what in a configuration is code, or a class that is not Keras' own."""
    if isinstance(config, list):
        for value in config:
            yield from _code(value)
    if not isinstance(config, dict):
        return
    name, module = config.get("class_name"), config.get("module")
    if isinstance(name, str):
        if name in CODE:
            yield name
        elif module == "builtins" and name in PLAIN:
            pass
        elif isinstance(module, str) and module.split(".")[0] not in TRUSTED:
            yield f"{module}.{name}"
        elif module is None and config.get("registered_name") not in (None, name):
            yield str(config["registered_name"])
    for key, value in config.items():
        if key != "compile_config":  # which is not read
            yield from _code(value)
