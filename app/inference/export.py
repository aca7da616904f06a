"""`app export`: the newest checkpoint for use elsewhere, each variant checked, and a model card.

    exports/NAME/README.md                           the card
                /VARIANT/STEP/saved_model.pb, ...    as TensorFlow Serving expects it
                /VARIANT/STEP/assets.extra/scaleproof.json
                /litert/STEP/model.tflite, classes.txt

Each SavedModel is run over the whole evaluation split by a process that can import neither this
project nor Horovod, and compared with the checkpoint: what the card says was seen.
"""

from __future__ import annotations

import dataclasses
import json
import math
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import tensorflow as tf

from app import config
from app.config import Experiment
from app.errors import NumbersError, UsageError
from app.inference import bare, card, litert, servable
from app.inference.variants import VARIANTS, Variant
from app.parallel import replicas
from app.reporting import chatter
from app.training.trained import Trained, must_be_servable
from input import failures
from input.batches import DataSet
from input.raw import Limits

LITERT = {"litert": False, "litert_int8": True}  # and whether its weights are int8
CHECKED = "checked.json"  # how a variant did, in its folder
BATCH = 32  # examples, where a model is checked
# What rounding may do to a logit, against the largest: operators may be fused elsewhere.
TOLERANCE = 1e-3


@dataclass(frozen=True)
class Seen:
    """How a variant did on the evaluation split.

    Attributes:
        accuracy: top-1.
        same: share of the examples with the checkpoint's own top-1.
        furthest: most that a logit is from the checkpoint's.
        bytes: of all its files.
    """

    accuracy: float
    same: float
    furthest: float
    bytes: int


def main(
    experiment: Experiment, run: Trained, output: Path, which: str, names: Sequence[str],
    limits: Limits, command: str,
) -> None:  # fmt: skip
    """Writes and checks every variant; writes the card.

    Args:
        experiment: of the run.
        run: restored.
        output: the model's folder, named as the model.
        which: weights: best, trained or average.
        names: of variants.
        limits: of an example.
        command: that was given.

    Raises:
        UsageError: a variant that is there already, or cannot be written.
        NumbersError: one that does not agree with the checkpoint.
    """
    data = run.setup.data
    must_be_servable(data)
    folders = {name: folder_of(output, name, run.step) for name in names}
    with run.weights(which) as weights:
        values = {n: v.numpy() for n, v in run.setup.state.weights.items()}
        digest = run.setup.state.sha256()
        wanted, labels = reference(run, data, limits)
    about = {
        "name": output.resolve().name, "kind": data.kind, "classes": list(data.classes),
        "step": run.step, "weights": weights, "weights_sha256": digest,
        "input": {"pixels": limits.pixels} if data.kind == "image" else {"bytes": limits.text},
    }  # fmt: skip
    facts = {
        **about, "experiment": config.as_dict(experiment), "command": command,
        "split": data.evaluation_split, "examples": len(labels), "train": data.num_train,
        "own_accuracy": float(np.mean(np.argmax(wanted, -1) == labels)),
        "versions": replicas.versions(), "workdir": str(run.folder),
    }  # fmt: skip
    for name, folder in folders.items():
        partial = folder.with_name(f".writing-{folder.name}")
        shutil.rmtree(partial, ignore_errors=True)
        logits = written(experiment, data, values, name, partial, limits, about)
        seen = compared(logits, wanted, labels, partial)
        if VARIANTS.get(name) == Variant("float32", experiment.precision):
            must_agree(seen, wanted, partial)
        (partial / CHECKED).write_text(json.dumps(dataclasses.asdict(seen)) + "\n")
        partial.rename(folder)  # what has its name was checked
        print(f"{folder}: {told(seen)}", flush=True)
        content = card.text(facts, of_step(output, run.step))
        (output / "README.md").write_text(content, encoding="utf-8")
    print(f"model card: {output / 'README.md'}")


def of_step(output: Path, step: int) -> dict[str, Seen]:
    """The variants that are there, whichever command wrote them."""
    found = {name: output / name / str(step) / CHECKED for name in (*VARIANTS, *LITERT)}
    return {n: Seen(**json.loads(p.read_text())) for n, p in found.items() if p.exists()}


def written(
    experiment: Experiment, data: DataSet, values: Mapping[str, np.ndarray], name: str,
    folder: Path, limits: Limits, about: Mapping[str, Any],
) -> np.ndarray:  # fmt: skip
    """Writes a variant and runs it as its users will; returns its logits [N, K]."""
    variant = VARIANTS.get(name, VARIANTS["float32"])
    model = servable.Model(experiment, data, values, variant)
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        if name not in LITERT:
            servable.save(model, data, limits, folder, {**about, "variant": name})
            return elsewhere(folder, data)
        litert.save(model, data, folder, LITERT[name])
    except (OSError, tf.errors.OpError) as error:
        reason = failures.sentence(error)
        raise UsageError(f"cannot write {folder} ({reason}): give another --output.") from None
    return lite_logits(folder, data, limits)


def lite_logits(folder: Path, data: DataSet, limits: Limits) -> np.ndarray:
    """Logits of a LiteRT model on the evaluation split, whose inputs are prepared here."""
    interpreter = litert.Interpreter(folder)
    prepared = tf.function(lambda raw: data.preprocess(raw, limits))
    every = (raw for raws, _ in examples(data) for raw in raws)
    with chatter.capture_native_stderr():
        return np.concatenate([interpreter.logits(prepared(tf.constant([raw]))) for raw in every])


def examples(data: DataSet) -> Iterator[tuple[list[bytes], list[int]]]:
    """The evaluation split as it is stored, in batches, with its labels."""
    for start in range(0, data.num_evaluation, BATCH):
        yield data.held_out.fetch(range(start, min(start + BATCH, data.num_evaluation)))


def reference(run: Trained, data: DataSet, limits: Limits) -> tuple[np.ndarray, np.ndarray]:
    """The checkpoint's own logits [N, K], and the labels [N]."""
    prepared = tf.function(
        lambda raw: data.preprocess(raw, limits),
        input_signature=[tf.TensorSpec([None], tf.string)],
    )
    own: Callable[..., Any] = tf.function(run.setup.state.logits, input_signature=[data.input_spec])
    logits, labels = [], []
    for raws, some in examples(data):
        logits.append(own(prepared(tf.constant(raws))).numpy())
        labels += some
    return np.concatenate(logits), np.array(labels)


def elsewhere(folder: Path, data: DataSet) -> np.ndarray:
    """Logits of a SavedModel on the evaluation split, from a process without this project.

    Raises:
        NumbersError: it does not run there.
    """
    command = [sys.executable, "-I", bare.__file__, "."]  # see `paths.plain`
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
                f"{folder} does not run in a process of its own, as is said above (it ended with "
                f"{process.wait()}): do not use it; export again once the cause is gone."
            ) from None
    return np.concatenate(logits)


def compared(logits: np.ndarray, wanted: np.ndarray, labels: np.ndarray, folder: Path) -> Seen:
    """What was seen of a variant."""
    best = np.argmax(logits, -1)
    return Seen(
        accuracy=float(np.mean(best == labels)),
        same=float(np.mean(best == np.argmax(wanted, -1))),
        furthest=float(np.max(np.abs(logits - wanted))),
        bytes=sum(path.stat().st_size for path in folder.rglob("*") if path.is_file()),
    )


def told(seen: Seen) -> str:
    """In a line."""
    return (
        f"{seen.bytes / 1e6:.1f} MB, accuracy {seen.accuracy:.4f}, the checkpoint's class for "
        f"{seen.same:.2%}, logits within {seen.furthest:.1e}"
    )


def must_agree(seen: Seen, wanted: np.ndarray, folder: Path) -> None:
    """Compares a variant that computes the same.

    Raises:
        NumbersError: it does not.
    """
    most = TOLERANCE * float(np.max(np.abs(wanted)))
    if not seen.furthest <= most:
        raise NumbersError(
            f"{folder} gives logits up to {seen.furthest:.1e} from the checkpoint's, more than "
            f"rounding does ({most:.1e}): do not use it."
        )


def folder_of(output: Path, variant: str, step: int) -> Path:
    """Where a variant goes.

    Raises:
        UsageError: it is there already.
    """
    folder = output / variant / str(step)
    if folder.exists():
        raise UsageError(f"{folder} exists: give another --output, or move it away.")
    return folder
