"""Implements `app export`: writes the newest checkpoint for use elsewhere, checked, with a card.

    exports/NAME/README.md                           the model card
                /VARIANT/STEP/saved_model.pb, ...    as TensorFlow Serving expects it
                /VARIANT/STEP/assets.extra/scaleproof.json
                /litert/STEP/model.tflite, classes.txt

Each SavedModel is run over the whole evaluation split by a process that can import neither this
project nor Horovod, and compared with the checkpoint: the card reports what was measured.
"""

import dataclasses
import json
import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import jinja2
import numpy as np
import tensorflow as tf

from app import config
from app.config import Experiment
from app.errors import UsageError
from app.inference import checking, clients, litert, saved_model
from app.inference.checking import Agreement
from app.inference.saved_model import VARIANTS, Variant
from app.parallel import replicas
from app.training.trained import Trained
from input import failures, paths
from input.batches import DataSet
from input.raw import Limits

LITERT = {"litert": False, "litert_int8": True}  # and whether its weights are int8
CHECKED = "checked.json"  # in a variant's folder: its agreement with the checkpoint
CARD = Path(__file__).with_name("model_card.md")


def main(
    experiment: Experiment, run: Trained, output: Path, which: str, names: Sequence[str],
    limits: Limits, command: str,
) -> None:  # fmt: skip
    """Writes and checks every variant, and writes the model card.

    Args:
        experiment: of the run.
        run: restored.
        output: the model's folder, named as the model.
        which: weights: best, trained or average.
        names: of variants.
        limits: of an example.
        command: that the user gave.

    Raises:
        UsageError: a variant exists already, or cannot be written.
        NumbersError: a variant does not agree with the checkpoint.
    """
    data = run.setup.data
    clients.require(data, experiment.objective)
    folders = {name: new_folder(output, name, run.step) for name in names}
    with run.weights(which) as weights:
        values = {n: v.numpy() for n, v in run.setup.state.weights.items()}
        digest = run.setup.state.sha256()
        reference = checking.checkpoint_outputs(run, data, limits)
    targets = [some for _, some in clients.batches(data)]
    own = checking.metrics(experiment.objective, reference, targets)
    about = {
        "name": output.resolve().name, "kind": data.kind, "classes": list(data.classes),
        "step": run.step, "weights": weights, "weights_sha256": digest,
        "objective": type(experiment.objective).__name__,
        "input": {"image": {"pixels": limits.pixels}, "text": {"bytes": limits.text}}.get(
            data.kind, {}
        ),
    }  # fmt: skip
    facts = {
        **about, "experiment": config.as_dict(experiment), "command": command,
        "split": data.evaluation_split, "examples": data.num_evaluation, "train": data.num_train,
        "metric": experiment.objective.best, "own": own[experiment.objective.best],
        "fields": {n: f"{s.dtype.name} {s.shape.as_list()}" for n, s in
                   clients.of(data, limits).fields.items()},
        "versions": replicas.versions(), "workdir": str(run.folder),
    }  # fmt: skip
    for name, folder in folders.items():
        partial = folder.with_name(f".writing-{folder.name}")
        shutil.rmtree(partial, ignore_errors=True)
        outputs = write(experiment, data, values, name, partial, limits, about, reference)
        agreement = checking.compare(experiment.objective, outputs, reference, targets, partial)
        if VARIANTS.get(name) == Variant("float32", experiment.precision):
            checking.must_agree(agreement, reference, partial)
        (partial / CHECKED).write_text(json.dumps(dataclasses.asdict(agreement)) + "\n")
        partial.rename(folder)  # only a checked variant gets its name
        print(f"{folder}: {agreement}", flush=True)
        card = model_card(facts, agreements(output, run.step))
        (output / "README.md").write_text(card, encoding="utf-8")
    print(f"model card: {output / 'README.md'}")


def new_folder(output: Path, variant: str, step: int) -> Path:
    """Returns the folder of a variant.

    Raises:
        UsageError: it exists already.
    """
    folder = output / variant / str(step)
    if folder.exists():
        raise UsageError(f"{folder} exists: give another --output, or move it away.")
    return folder


def write(
    experiment: Experiment, data: DataSet, values: Mapping[str, np.ndarray], name: str,
    folder: Path, limits: Limits, about: Mapping[str, Any], reference: checking.Outputs,
) -> checking.Outputs:  # fmt: skip
    """Writes a variant, and runs it as its users will.

    Returns:
        Its outputs on the evaluation split.

    Raises:
        UsageError: it cannot be written.
        NumbersError: it does not run.
    """
    variant = VARIANTS.get(name, VARIANTS["float32"])
    model = saved_model.Model(experiment, data, values, variant)
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        if name not in LITERT:
            saved_model.save(model, data, limits, folder, {**about, "variant": name})
            return checking.saved_model_outputs(folder, data, reference[0])
        must_suit_litert(name, data, reference[0])
        litert.save(model, data, folder, LITERT[name])
    except (OSError, tf.errors.OpError) as error:
        reason = failures.sentence(error)
        raise UsageError(f"cannot write {folder} ({reason}): give another --output.") from None
    return checking.litert_outputs(folder, data, limits)


def must_suit_litert(name: str, data: DataSet, outputs: Any) -> None:
    """Checks that a model has one tensor as input and outputs [b, K].

    Raises:
        UsageError: it has others.
    """
    if tf.nest.is_nested(data.input_spec) or tf.nest.is_nested(outputs) or outputs.ndim != 2:
        raise UsageError(
            f"--variants={name} needs a model of one input tensor and one vector of outputs; this "
            "has others: leave it out."
        )


def agreements(output: Path, step: int) -> dict[str, Agreement]:
    """Returns how each variant of this step agrees, whichever command wrote it."""
    found = {name: output / name / str(step) / CHECKED for name in (*VARIANTS, *LITERT)}
    return {n: Agreement.read(json.loads(p.read_text())) for n, p in found.items() if p.exists()}


def model_card(facts: Mapping[str, Any], variants: Mapping[str, Agreement]) -> str:
    """Returns the README.md of an exported model, a model card (arXiv:1810.03993).

    Args:
        facts: of the run and of the model.
        variants: how each of them agrees with the checkpoint.
    """
    environment = jinja2.Environment(
        trim_blocks=True, lstrip_blocks=True, keep_trailing_newline=True,
        undefined=jinja2.StrictUndefined,
    )  # fmt: skip
    environment.filters["fieldlist"] = lambda fields: ", ".join(
        f"`{name}`, {spec.replace('None', 'b', 1)}" for name, spec in fields.items()
    )
    template = environment.from_string(CARD.read_text())
    saved = next((name for name in variants if name in VARIANTS), "")  # a SavedModel, if any
    experiment = json.dumps(facts["experiment"], indent=1)
    card = template.render(**facts, variants=variants, saved=saved, experiment_json=experiment)
    return paths.shown(card)  # it names folders
