"""Compares exported models with their checkpoint, on the whole evaluation split."""

import json
import math
import subprocess
import sys
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import tensorflow as tf

from app.errors import NumbersError
from app.inference import clients, isolated, litert
from app.objectives import Objective
from app.reporting import chatter
from app.training.trained import Trained
from input.batches import DataSet
from input.raw import Limits

# The most that rounding may change an output, relative to the largest: operators may be fused.
TOLERANCE = 1e-3

Outputs = list[Any]  # of each batch of the evaluation split


@dataclass(frozen=True)
class Agreement:
    """The agreement of an exported model with its checkpoint.

    Attributes:
        metric: the objective's best.
        value: of the metric, of the exported model.
        same: the fraction of decisions, as of classes, that are the same; None: nothing is decided.
        furthest: the largest difference of an output.
        bytes: of all its files.
    """

    metric: str
    value: float
    same: float | None
    furthest: float
    bytes: int

    @staticmethod
    def read(values: Mapping[str, Any]) -> "Agreement":
        """Reads what was written as JSON, also by versions that knew only of accuracy."""
        values = dict(values)
        if "accuracy" in values:
            values |= {"metric": "accuracy", "value": values.pop("accuracy")}
        return Agreement(**values)

    def __str__(self) -> str:
        same = "" if self.same is None else f"the checkpoint's answer for {self.same:.2%}, "
        return (
            f"{self.bytes / 1e6:.1f} MB, {self.metric} {self.value:.4f}, {same}outputs within "
            f"{self.furthest:.1e}"
        )


def checkpoint_outputs(run: Trained, data: DataSet, limits: Limits) -> Outputs:
    """Returns the checkpoint's own outputs for the evaluation split."""
    client = clients.of(data, limits)
    specs = {n: tf.TensorSpec(s.shape, s.dtype, n) for n, s in client.fields.items()}
    forward: Callable[..., Any] = tf.function(
        lambda sent: run.setup.state.outputs(client.to_inputs(sent)), input_signature=[specs]
    )
    every = ({n: tf.constant(x) for n, x in sent.items()} for sent, _ in clients.batches(data))
    return [tf.nest.map_structure(lambda y: y.numpy(), forward(sent)) for sent in every]


def litert_outputs(folder: Path, data: DataSet, limits: Limits) -> Outputs:
    """Returns the outputs of a LiteRT model, whose inputs this process prepares one by one."""
    client = clients.of(data, limits)

    def inputs() -> Iterable[np.ndarray]:
        for sent, _ in clients.batches(data):
            for i in range(len(next(iter(sent.values())))):
                one = {n: tf.constant(x[i : i + 1]) for n, x in sent.items()}
                (x,) = tf.nest.flatten(client.to_inputs(one))
                yield x.numpy()[0]

    found = litert.outputs(folder, inputs())
    ends = range(clients.BATCH, len(found), clients.BATCH)
    return np.split(found, list(ends))


def saved_model_outputs(folder: Path, data: DataSet, like: Any) -> Outputs:
    """Returns the outputs of a SavedModel, from a process without this project.

    Args:
        folder: of the model.
        data: whose evaluation split it is given.
        like: outputs of the checkpoint, in whose structure they are packed.

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
        found = []
        try:
            for sent, _ in clients.batches(data):
                process.stdin.write(encoded(sent))
                process.stdin.flush()
                flat = []
                for shape in json.loads(process.stdout.readline()):
                    content = process.stdout.read(4 * math.prod(shape))
                    flat.append(np.frombuffer(content, np.float32).reshape(shape))
                found.append(tf.nest.pack_sequence_as(like, flat))
            process.stdin.close()
        except (OSError, ValueError):
            raise NumbersError(
                f"{folder} does not run in a process of its own, as shown above (exit code "
                f"{process.wait()}): do not use it; export again once the cause is gone."
            ) from None
    return found


def encoded(sent: Mapping[str, Any]) -> bytes:
    """Returns a batch as `isolated.py` reads it."""
    about: dict[str, Any] = {}
    content = b""
    for name, x in sent.items():
        if isinstance(x, list):
            about[name] = {"lengths": [len(raw) for raw in x]}
            content += b"".join(x)
        else:
            about[name] = {"dtype": x.dtype.str, "shape": x.shape}
            content += x.tobytes()
    return json.dumps(about).encode() + b"\n" + content


def compare(
    objective: Objective, outputs: Outputs, reference: Outputs, targets: Sequence[Any], folder: Path
) -> Agreement:
    """Returns how far the outputs of the model in `folder` agree with the checkpoint's."""
    pairs = zip(tf.nest.flatten(outputs), tf.nest.flatten(reference), strict=True)
    furthest = max(float(np.max(np.abs(a - b))) for a, b in pairs)
    decided = [(objective.decisions(a), objective.decisions(b)) for a, b in
               zip(outputs, reference, strict=True)]  # fmt: skip
    same = [np.ravel(a == b) for a, b in decided if a is not None]
    return Agreement(
        metric=objective.best,
        value=metrics(objective, outputs, targets)[objective.best],
        same=float(np.mean(np.concatenate(same))) if same else None,
        furthest=furthest,
        bytes=sum(path.stat().st_size for path in folder.rglob("*") if path.is_file()),
    )


def metrics(objective: Objective, outputs: Outputs, targets: Sequence[Any]) -> dict[str, float]:
    """Returns the objective's metrics of outputs."""
    totals: dict[str, np.ndarray] = {}
    for y, t in zip(outputs, targets, strict=True):
        y, t = (tf.nest.map_structure(tf.constant, nest) for nest in (y, t))
        count = tf.nest.flatten(y)[0].shape[0]
        for name, value in objective.sums(y, t, tf.ones([count])).items():
            totals[name] = totals.get(name, 0) + value.numpy()
    return objective.metrics(totals)


def must_agree(agreement: Agreement, reference: Outputs, folder: Path) -> None:
    """Refuses a model that should compute the same as the checkpoint and does not.

    Raises:
        NumbersError: an output differs by more than rounding explains.
    """
    limit = TOLERANCE * max(float(np.max(np.abs(y))) for y in tf.nest.flatten(reference))
    if not agreement.furthest <= limit:
        raise NumbersError(
            f"{folder} gives outputs up to {agreement.furthest:.1e} from the checkpoint's, more "
            f"than rounding explains ({limit:.1e}): do not use it."
        )
