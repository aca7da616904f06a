"""Compares exported models with their checkpoint, on the whole evaluation split."""

import json
import math
import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import tensorflow as tf

from app.errors import NumbersError
from app.inference import isolated, litert
from app.inference.forward import preprocessor
from app.reporting import chatter
from app.training.trained import Trained
from input.batches import DataSet
from input.raw import Limits

BATCH = 32  # examples
# The most that rounding may change a logit, relative to the largest: operators may be fused.
TOLERANCE = 1e-3


@dataclass(frozen=True)
class Agreement:
    """The agreement of an exported model with its checkpoint.

    Attributes:
        accuracy: its own, top-1.
        same: the fraction of examples for which it names the same class.
        furthest: the largest difference of a logit.
        bytes: of all its files.
    """

    accuracy: float
    same: float
    furthest: float
    bytes: int

    def __str__(self) -> str:
        return (
            f"{self.bytes / 1e6:.1f} MB, accuracy {self.accuracy:.4f}, the checkpoint's class for "
            f"{self.same:.2%}, logits within {self.furthest:.1e}"
        )


def examples(data: DataSet) -> Iterator[tuple[list[bytes], list[int]]]:
    """Yields the evaluation split as it is stored, in batches, with its labels."""
    for start in range(0, data.num_evaluation, BATCH):
        yield data.held_out.fetch(range(start, min(start + BATCH, data.num_evaluation)))


def checkpoint_logits(run: Trained, data: DataSet, limits: Limits) -> tuple[np.ndarray, np.ndarray]:
    """Returns the checkpoint's own logits [N, K], and the labels [N]."""
    preprocess = preprocessor(data, limits)
    forward: Callable[..., Any] = tf.function(
        run.setup.state.outputs, input_signature=[data.input_spec]
    )
    logits, labels = [], []
    for raws, some in examples(data):
        logits.append(forward(preprocess(tf.constant(raws))).numpy())
        labels += some
    return np.concatenate(logits), np.array(labels)


def litert_logits(folder: Path, data: DataSet, limits: Limits) -> np.ndarray:
    """Returns the logits [N, K] of a LiteRT model, whose inputs this process prepares."""
    preprocess = preprocessor(data, limits)
    every = (raw for raws, _ in examples(data) for raw in raws)
    return litert.logits(folder, (preprocess(tf.constant([raw])).numpy()[0] for raw in every))


def saved_model_logits(folder: Path, data: DataSet) -> np.ndarray:
    """Returns the logits [N, K] of a SavedModel, from a process without this project.

    Raises:
        NumbersError: the model does not run there.
    """
    # It runs in the folder, as its name may hold what TensorFlow takes for a pattern.
    command = [sys.executable, "-I", isolated.__file__, "."]
    pipe = subprocess.PIPE
    with (
        chatter.capture_native_stderr(),
        subprocess.Popen(command, stdin=pipe, stdout=pipe, cwd=folder) as process,
    ):
        assert process.stdin and process.stdout
        logits = []
        try:
            for raws, _ in examples(data):
                header = json.dumps([len(raw) for raw in raws]) + "\n"
                process.stdin.write(header.encode() + b"".join(raws))
                process.stdin.flush()
                shape = json.loads(process.stdout.readline())
                content = process.stdout.read(4 * math.prod(shape))
                logits.append(np.frombuffer(content, np.float32).reshape(shape))
            process.stdin.close()
        except (OSError, ValueError):
            raise NumbersError(
                f"{folder} does not run in a process of its own, as shown above (exit code "
                f"{process.wait()}): do not use it; export again once the cause is gone."
            ) from None
    return np.concatenate(logits)


def compare(
    logits: np.ndarray, reference: np.ndarray, labels: np.ndarray, folder: Path
) -> Agreement:
    """Returns how far the logits of the model in `folder` agree with the checkpoint's."""
    best = np.argmax(logits, -1)
    return Agreement(
        accuracy=float(np.mean(best == labels)),
        same=float(np.mean(best == np.argmax(reference, -1))),
        furthest=float(np.max(np.abs(logits - reference))),
        bytes=sum(path.stat().st_size for path in folder.rglob("*") if path.is_file()),
    )


def must_agree(agreement: Agreement, reference: np.ndarray, folder: Path) -> None:
    """Refuses a model that should compute the same as the checkpoint and does not.

    Raises:
        NumbersError: a logit differs by more than rounding explains.
    """
    limit = TOLERANCE * float(np.max(np.abs(reference)))
    if not agreement.furthest <= limit:
        raise NumbersError(
            f"{folder} gives logits up to {agreement.furthest:.1e} from the checkpoint's, more "
            f"than rounding explains ({limit:.1e}): do not use it."
        )
