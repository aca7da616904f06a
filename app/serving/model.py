"""A SavedModel, loaded and run; what TensorFlow says of it becomes one sentence."""

from __future__ import annotations

import contextlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from app.errors import DataError
from app.serving.errors import RequestError
from app.serving.signatures import Tensors, describe
from app.serving.versions import Found
from input import paths
from input.failures import sentence


class Model:
    """A loaded version.

    Args:
        found: what is loaded.
        definitions: protocol buffers, for `metadata`.
        loaded: whose variables live as long as it does.
        held: names of folders, which live as long as the model: a graph may read its assets.
    """

    def __init__(
        self, found: Found, definitions: Mapping[str, Any], loaded: Any,
        held: contextlib.ExitStack,
    ) -> None:  # fmt: skip
        self.found = found
        self.definitions = definitions
        self._loaded, self._held = loaded, held
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

    held = contextlib.ExitStack()
    try:
        definitions = read_definitions(found.folder)
        loaded = tf.saved_model.load(held.enter_context(paths.plain(found.folder)))
    except Exception as error:  # whatever the bytes of a damaged file make TensorFlow raise
        way = "let it be read" if may_be_whole(error) else "export the model again"
        raise DataError(
            f"{found.folder} cannot be loaded ({sentence(error)}): {way}, or give another --model."
        ) from None
    if not len(getattr(loaded, "signatures", ())):
        raise DataError(f"{found.folder} has no signatures, so there is nothing to serve.")
    return Model(found, definitions, loaded, held)


def may_be_whole(error: Exception) -> bool:
    """Whether what could not be loaded may be, as it could not be read."""
    import tensorflow as tf

    passing = (OSError, tf.errors.PermissionDeniedError, tf.errors.ResourceExhaustedError)
    return isinstance(error, passing) and not isinstance(error, FileNotFoundError)


def read_definitions(folder: Path) -> dict[str, Any]:
    """The SignatureDefs of the graph that is for serving, by name."""
    from tensorflow.core.protobuf import saved_model_pb2

    saved = saved_model_pb2.SavedModel.FromString((folder / "saved_model.pb").read_bytes())
    graphs = [graph for graph in saved.meta_graphs if "serve" in graph.meta_info_def.tags]
    return dict(graphs[0].signature_def) if graphs else {}
