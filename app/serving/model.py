"""Loads a SavedModel, describes its signatures, and runs them."""

import contextlib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

import numpy as np

from app.errors import DataError
from app.reporting import chatter
from app.serving import errors
from app.serving.versions import ModelVersion
from input import paths
from input.failures import sentence
from input.raw import FIELDS

DEFAULT_SIGNATURE = "serving_default"
METHODS = "tensorflow/serving/"  # predict, classify, regress
Tensors = Mapping[str, np.ndarray]  # what a signature takes or returns


@dataclass(frozen=True)
class Spec:
    """A tensor of a signature.

    Attributes:
        dtype: TensorFlow's name of it.
        shape: None where a dimension is free; None itself if the rank is.
    """

    dtype: str
    shape: tuple[int | None, ...] | None

    @classmethod
    def of(cls, info: Any) -> Self:
        """Reads a TensorInfo."""
        import tensorflow as tf

        sizes = tuple(d.size if d.size >= 0 else None for d in info.tensor_shape.dim)
        return cls(tf.as_dtype(info.dtype).name, None if info.tensor_shape.unknown_rank else sizes)

    @property
    def is_batch(self) -> bool:
        """Whether its first dimension may be any number of instances."""
        return self.shape is not None and self.shape[:1] == (None,)


@dataclass(frozen=True)
class Signature:
    """A function of the model: its method and the tensors that it takes and returns."""

    name: str
    method: str
    inputs: Mapping[str, Spec]
    outputs: Mapping[str, Spec]

    @classmethod
    def of(cls, name: str, definition: Any) -> Self:
        """Reads a SignatureDef."""
        inputs, outputs = (
            {key: Spec.of(info) for key, info in sorted(infos.items())}
            for infos in (definition.inputs, definition.outputs)
        )
        return cls(name, definition.method_name.removeprefix(METHODS), inputs, outputs)

    @property
    def is_batched(self) -> bool:
        """Whether instances of several requests may be computed together."""
        return all(spec.is_batch for spec in (*self.inputs.values(), *self.outputs.values()))


def choose_signature(known: Mapping[str, Signature], verb: str, name: Any) -> Signature:
    """Returns the signature that a request names, or else the verb's default.

    Raises:
        RequestError: there is none.
    """
    if name is not None and type(name) is not str:
        raise errors.SIGNATURE_NAME_TYPE(given=errors.kind(name))
    if name and name not in known:
        raise errors.NO_SUCH_SIGNATURE(name=errors.cut(name), known=", ".join(known))
    able = [key for key, s in known.items() if verb in ("predict", s.method)]
    if (name or DEFAULT_SIGNATURE) in able:
        return known[name or DEFAULT_SIGNATURE]
    if verb == "predict":
        raise errors.NO_DEFAULT_SIGNATURE(known=", ".join(known))
    if name or len(able) != 1:
        others = f"those of :{verb} are {', '.join(able)}" if able else f"none is for :{verb}"
        raise errors.NOT_FOR_VERB(name=name or DEFAULT_SIGNATURE, verb=verb, others=others)
    return known[able[0]]


class Model:
    """A loaded version.

    Args:
        version: that was loaded.
        definitions: its SignatureDefs by name, for `metadata`.
        loaded: TensorFlow's object, whose variables live as long as it does.
        held: names of folders, which live as long as the model: a graph may read its assets.
    """

    def __init__(
        self, version: ModelVersion, definitions: Mapping[str, Any], loaded: Any,
        held: contextlib.ExitStack,
    ) -> None:  # fmt: skip
        self.version = version
        self.definitions = definitions
        self._loaded, self._held = loaded, held
        self.signatures = {
            name: Signature.of(name, definitions[name]) for name in sorted(loaded.signatures)
        }

    def run(self, signature: str, tensors: Tensors) -> dict[str, np.ndarray]:
        """Computes one batch.

        Raises:
            RequestError: TensorFlow refuses the tensors.
        """
        import tensorflow as tf

        try:
            inputs = {name: tf.constant(value) for name, value in tensors.items()}
            outputs = self._loaded.signatures[signature](**inputs)
            return {name: _to_array(outputs[name]) for name in sorted(outputs)}
        except tf.errors.ResourceExhaustedError as error:
            raise errors.OUT_OF_MEMORY(reason=sentence(error)) from None
        except (
            tf.errors.InvalidArgumentError, tf.errors.OutOfRangeError,
            tf.errors.FailedPreconditionError, tf.errors.UnimplementedError, ValueError, TypeError,
        ) as error:  # fmt: skip
            raise errors.REFUSED_BY_MODEL(reason=sentence(error)) from None

    def warm_up(self, max_batch: int) -> None:
        """Runs each signature that takes the model's images or texts, so that no client waits.

        Raises:
            DataError: one of them does not run.
        """
        kind = self.version.about.kind
        for signature in self.signatures.values():
            if not kind or list(signature.inputs) != [FIELDS[kind]]:
                continue
            one = np.array(b"a" if kind == "text" else _tiny_image(), object)
            is_default = signature.name == DEFAULT_SIGNATURE
            sizes = sorted({1, 2, max_batch // 2 or 1, max_batch}) if is_default else [1]
            for size in sizes if signature.is_batched else [None]:
                value = one if size is None else np.repeat(one[None], size)
                self._must_run(signature.name, {FIELDS[kind]: value})

    def _must_run(self, signature: str, tensors: Tensors) -> None:
        try:
            # TensorFlow's graph optimizer warns of a loop that it leaves as is.
            with chatter.capture_native_stderr():
                self.run(signature, tensors)
        except errors.RequestError as error:
            is_full = error.status == errors.OUT_OF_MEMORY.status
            advice = "give a smaller --max_batch" if is_full else "export the model again"
            raise DataError(
                f"signature {signature!r} of {self.version.folder} does not run "
                f"({error.sentence.rstrip('.')}): {advice}."
            ) from None


def load(version: ModelVersion) -> Model:
    """Loads a version.

    Raises:
        DataError: it is damaged, or has nothing to serve.
    """
    import tensorflow as tf
    import tensorflow_text  # noqa: F401 - registers the operators of text models

    held = contextlib.ExitStack()
    try:
        definitions = read_definitions(version.folder)
        loaded = tf.saved_model.load(held.enter_context(paths.plain(version.folder)))
    except Exception as error:  # whatever the bytes of a damaged file make TensorFlow raise
        advice = "let it be read" if _is_unreadable(error) else "export the model again"
        raise DataError(
            f"{version.folder} cannot be loaded ({sentence(error)}): {advice}, or give another "
            "--model."
        ) from None
    if not len(getattr(loaded, "signatures", ())):
        raise DataError(f"{version.folder} has no signatures, so there is nothing to serve.")
    return Model(version, definitions, loaded, held)


def read_definitions(folder: Path) -> dict[str, Any]:
    """Reads the SignatureDefs of the graph that is for serving, by name."""
    from tensorflow.core.protobuf import saved_model_pb2

    saved = saved_model_pb2.SavedModel.FromString((folder / "saved_model.pb").read_bytes())
    graphs = [graph for graph in saved.meta_graphs if "serve" in graph.meta_info_def.tags]
    return dict(graphs[0].signature_def) if graphs else {}


def _is_unreadable(error: Exception) -> bool:
    """Whether the files could not be read, so that they may be whole."""
    import tensorflow as tf

    passing = (OSError, tf.errors.PermissionDeniedError, tf.errors.ResourceExhaustedError)
    return isinstance(error, passing) and not isinstance(error, FileNotFoundError)


def _to_array(value: Any) -> np.ndarray:
    """Returns an eager tensor as an array, also if it is a single string."""
    plain = value.numpy()
    return np.array(plain, object) if isinstance(plain, bytes) else np.asarray(plain)


def _tiny_image() -> bytes:
    """Returns a PNG file of a few grey pixels."""
    import tensorflow as tf

    return bytes(tf.io.encode_png(np.full([8, 8, 3], 128, np.uint8)).numpy())
