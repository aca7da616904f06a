"""A SavedModel, loaded and run; what TensorFlow says of it becomes one sentence."""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from app.errors import DataError
from app.serving.refusals import RequestError
from app.serving.signatures import Tensors, describe
from app.serving.versions import Found
from input.raw import known


class Model:
    """A loaded version."""

    def __init__(self, found: Found, definitions: Mapping[str, Any], loaded: Any) -> None:
        self.found = found
        self.definitions = definitions  # protocol buffers, for `metadata`
        self._loaded = loaded  # whose variables live as long as it does
        self.signatures = {
            name: describe(name, definitions[name]) for name in sorted(loaded.signatures)
        }

    def run(self, signature: str, tensors: Tensors) -> dict[str, np.ndarray]:
        """Computes one batch.

        Raises:
            RequestError: TensorFlow refuses what it was given.
        """
        import tensorflow as tf

        try:
            given = {name: tf.constant(value) for name, value in tensors.items()}
            outputs = self._loaded.signatures[signature](**given)
            return {name: to_array(outputs[name]) for name in sorted(outputs)}
        except tf.errors.ResourceExhaustedError as error:
            raise RequestError(503, f"out of memory: {sentence(error)}.") from None
        except (
            tf.errors.InvalidArgumentError, tf.errors.OutOfRangeError,
            tf.errors.FailedPreconditionError, tf.errors.UnimplementedError, ValueError, TypeError,
        ) as error:  # fmt: skip
            raise RequestError(400, f"{sentence(error)}.") from None


def to_array(value: Any) -> np.ndarray:
    """An eager tensor as an array, also if it is a single string."""
    plain = value.numpy()
    return np.array(plain, object) if isinstance(plain, bytes) else np.asarray(plain)


def load(found: Found) -> Model:
    """Loads a version.

    Raises:
        DataError: it is damaged, or has nothing to serve.
    """
    import tensorflow as tf
    import tensorflow_text  # noqa: F401 - registers the operators of text models

    try:
        definitions = read_definitions(found.folder)
        loaded = tf.saved_model.load(str(found.folder))
    except Exception as error:  # whatever the bytes of a damaged file make TensorFlow raise
        raise DataError(
            f"{found.folder} cannot be loaded ({sentence(error)}): export the model again."
        ) from None
    if not len(getattr(loaded, "signatures", ())):
        raise DataError(f"{found.folder} has no signatures, so there is nothing to serve.")
    return Model(found, definitions, loaded)


def read_definitions(folder: Path) -> dict[str, Any]:
    """The SignatureDefs of the graph that is for serving, by name."""
    from tensorflow.core.protobuf import saved_model_pb2

    saved = saved_model_pb2.SavedModel.FromString((folder / "saved_model.pb").read_bytes())
    graphs = [graph for graph in saved.meta_graphs if "serve" in graph.meta_info_def.tags]
    return dict(graphs[0].signature_def) if graphs else {}


def sentence(error: BaseException) -> str:
    """What an error of TensorFlow's says, without the names of its nodes."""
    text = str(getattr(error, "message", error))
    if told := known(text):
        return told
    text = re.sub(r"\{\{[^{}]*\}\}|\[\[.*?\]\]|\[Op:[^\]]*\]|<stack traces[^>]*>", "", text)
    parts = [line.strip() for line in text.splitlines()]
    lines = [line for line in parts if line and not re.match(
        r"(Graph execution error|Detected at node|Node:|\d+ root error|\(\d+\) \w+:\s*$)", line
    )]  # fmt: skip
    first = re.sub(r"^\(\d+\) \w+: +", "", lines[0]) if lines else type(error).__name__
    return first[:300].rstrip(" .:")
