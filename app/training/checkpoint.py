"""Saves and restores checkpoints: rank 0 writes and reads, the other ranks get a broadcast.

checkpoints/step-00000040/   complete: it was renamed to this name after it was on the disk
state.index, state.data-*   TensorFlow's tensor bundle
manifest.json               what it is of, and checksums of all (`app/recovery/manifest.py`)
checkpoints/.writing-*/      left by an interrupted write; removed by the next one
checkpoints/damaged-step-*/  a run could not continue from it; left for a person to look at
checkpoints/unread-step-*/   likewise, but it could not be read and may be whole

Training continues while a checkpoint is written: a save takes the tensors as they are, and returns.
"""

from __future__ import annotations

import shutil
import time
from collections.abc import Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any

import tensorflow as tf

from app import config
from app.errors import CheckpointError
from app.objectives import Classification, Objective
from app.parallel import replicas
from app.parallel.placement import host_device
from app.parallel.topology import Topology
from app.recovery import manifest
from app.recovery.manifest import DamageError, UnreadableError
from app.training import data as run_data
from app.training.agreement import run_on_all_ranks
from app.training.state import Snapshot, State, sha256_of, weights_of
from input import failures, paths

DEFAULT_OBJECTIVE = Classification()
BUNDLE = "state"  # what the names of TensorFlow's files begin with


class Checkpoints:
    """The checkpoints of one run: the last `keep` and the best.

    Args:
        folder: of the checkpoints.
        state: to save and restore.
        topology: this process's rank.
        keep: how many to keep, besides the best.
        about: for the manifests: "experiment", "versions", "meaning" and "data", as far as they
            are to be compared.
        objective: says which checkpoint is the best.

    Attributes:
        stall: seconds that training waited for the last save.
        damaged: folders that `restore` passed over, and why (on rank 0).
        missing: steps before the newest that the restored state lacks, which asynchronous
            training had begun (`app/parallel/ledger.py`).
        counted: seconds until the restored state, from `Clock.counted`.
        changes: warnings of data that changed since the restored state was saved (on rank 0).
        is_evaluated: the restored state's metrics were computed before it was saved.
    """

    def __init__(
        self, folder: Path, state: State, topology: Topology, keep: int, about: Mapping[str, Any],
        objective: Objective = DEFAULT_OBJECTIVE,
    ) -> None:  # fmt: skip
        self.folder, self.state, self.topology, self.keep = folder, state, topology, keep
        self.about, self.objective = config.plain(about), objective
        self.stall = 0.0
        self.damaged: dict[Path, DamageError] = {}
        self.missing: list[int] = []
        self.counted: dict[str, Any] = {}
        self.changes: list[str] = []
        self.is_evaluated = False
        self._writer = ThreadPoolExecutor(1, thread_name_prefix="checkpoint")
        self._writing: Future[None] | None = None

    def save(
        self, step: int, metrics: Mapping[str, float], missing: Sequence[int] = (),
        counted: Mapping[str, Any] | None = None,
    ) -> CheckpointError | None:  # fmt: skip
        """Begins to write the state after `step` steps; at most one is written at a time.

        Returns the error of the one before, if any, for the caller to warn of or raise.
        """
        if not self.topology.is_chief:
            return None
        begin = time.monotonic()
        error = self.wait()
        content = {"step": step, "metrics": dict(metrics), "counted": dict(counted or {})}
        content |= {"missing": list(missing)} if missing else {}
        self._writing = self._writer.submit(self._write, content, self.state.snapshot())
        self.stall = time.monotonic() - begin
        return error

    def wait(self) -> CheckpointError | None:
        """Waits until nothing is being written; returns the error, if any."""
        writing, self._writing = self._writing, None
        if writing is None:
            return None
        error = writing.exception()
        if error is None or isinstance(error, CheckpointError):
            return error
        raise error

    def restore(self) -> int:
        """Loads the newest valid checkpoint on every process; returns its step, 0 for none.

        Raises:
            CheckpointError: on every process; no checkpoint is valid, or the newest valid one is
                of another experiment.
        """
        content = run_on_all_ranks(lambda: self._read_newest() if self.topology.is_chief else {})
        variables = self.state.state_dict()
        replicas.broadcast([variables[name] for name in sorted(variables)])
        found = replicas.broadcast_json(content)
        self.missing, self.counted = found.get("missing", []), found.get("counted", {})
        self.is_evaluated = bool(found.get("metrics"))
        return int(found.get("step", 0))

    def set_aside(self) -> None:
        """Renames the checkpoints that `restore` passed over, once this run is sure to continue.

        They would be kept as the newest or the best, in the place of whole ones.

        Raises:
            CheckpointError: on rank 0; one cannot be renamed.
        """
        for folder, damage in self.damaged.items():
            place = manifest.damaged_path(folder, damage)
            try:
                if not isinstance(damage, UnreadableError):
                    shutil.rmtree(place, ignore_errors=True)  # of the same step
                folder.rename(place)
            except OSError as error:
                raise CheckpointError(
                    f"{folder} {damage}; it cannot be set aside ({error.strerror}): rename it, or "
                    "give another --workdir."
                ) from None

    def _write(self, content: dict[str, Any], snapshot: Snapshot) -> None:
        step = content["step"]
        final = manifest.folder_of(self.folder, step)
        writing, old = self.folder / f".writing-{step:08d}", self.folder / f".old-{step:08d}"
        try:
            for left in [*self.folder.glob(".writing-*"), *self.folder.glob(".old-*")]:
                shutil.rmtree(left)
            writing.mkdir(parents=True)
            _write_bundle(writing, snapshot)
            digest = sha256_of(weights_of(snapshot))
            manifest.write(writing, {**content, "weights_sha256": digest, **self.about})
            if final.exists():  # of a run that was continued from an earlier one
                final.rename(old)
            writing.rename(final)
            manifest.sync(self.folder)
            shutil.rmtree(old, ignore_errors=True)
            self._drop()
        except (OSError, tf.errors.OpError) as error:
            shutil.rmtree(writing, ignore_errors=True)
            raise CheckpointError(
                f"cannot write the checkpoint of step {step} below {self.folder}: "
                f"{failures.sentence(error)}. Make room there, or let it be written; the "
                "checkpoints before it are as they were."
            ) from error

    def _read_newest(self) -> dict[str, Any]:
        """Reads the newest valid checkpoint into the state; returns its manifest, {} for none."""
        self.damaged = {}
        for step in reversed(self._steps()):
            folder = manifest.folder_of(self.folder, step)
            try:
                content = manifest.read(folder)
                self._require_match(folder, content)
                manifest.verify(folder, content)
                _read_bundle(folder, self.state)
                if self.state.sha256() != content["weights_sha256"]:
                    raise DamageError("it holds other weights than its manifest says")
                self.changes = self._compare_data(content)
            except DamageError as damage:
                self.damaged[folder] = damage
                continue
            return content
        if self.damaged:
            lines = [f"{folder} {damage}" for folder, damage in self.damaged.items()]
            way = f"remove {self.folder}, or give another --workdir,"
            if any(isinstance(damage, UnreadableError) for damage in self.damaged.values()):
                way = "let them be read, or give another --workdir"
            raise CheckpointError(
                f"{'; '.join(lines)}. No checkpoint is left: {way} to begin anew."
            )
        return {}

    def _steps(self) -> list[int]:
        try:
            return manifest.steps(self.folder)
        except OSError as error:
            raise CheckpointError(
                f"cannot read {self.folder} ({error.strerror}): let it be read, or give another "
                "--workdir."
            ) from None

    def _require_match(self, folder: Path, content: dict[str, Any]) -> None:
        """Compares a checkpoint's format, experiment and data with this run's.

        Raises:
            CheckpointError: they differ.
        """
        if content["format"] > manifest.FORMAT:
            raise CheckpointError(
                f"{folder} has format {content['format']}, but this version reads up to "
                f"{manifest.FORMAT}: use the version that wrote it."
            )
        ours, theirs = self.about.get("experiment"), content.get("experiment")
        lines = config.differences(ours, config.recorded(theirs)) if ours and theirs else []
        if lines:
            raise CheckpointError(
                f"{folder} is of another experiment:\n  " + "\n  ".join(lines) + "\nGive these "
                "fields the same values, or another --workdir."
            )
        ours, theirs = self.about.get("meaning", {}), content.get("meaning", {})
        run_data.require_same_meaning(ours, theirs, folder)

    def _compare_data(self, content: Mapping[str, Any]) -> list[str]:
        """Returns warnings of data that changed since, but mean the same."""
        ours, theirs = self.about.get("data"), content.get("data")
        lines = config.differences(ours, theirs) if ours and theirs else []
        if "meaning" in self.about and "meaning" not in content:
            lines.append("an older version did not keep the names of its classes")
        return [f"the data are not those of the checkpoint: {'; '.join(lines)}"] if lines else []

    def _drop(self) -> None:
        """Removes checkpoints that are neither among the last nor the best; damaged ones stay."""
        scores: dict[int, float] = {}
        steps = []
        for step in manifest.steps(self.folder):
            try:
                metrics = manifest.read(manifest.folder_of(self.folder, step))["metrics"]
            except DamageError:
                continue
            steps.append(step)
            if (score := self.objective.score(metrics)) is not None:
                scores[step] = score
        best = max(scores, key=lambda step: scores[step], default=None)
        for step in steps[: -self.keep]:
            if step != best:
                folder = manifest.folder_of(self.folder, step)
                old = folder.with_name(f".old-{folder.name}")
                folder.rename(old)  # else one that is half removed would look damaged
                shutil.rmtree(old)


def _write_bundle(folder: Path, snapshot: Snapshot) -> None:
    # This process writes the files, whatever is on a stage server.
    with tf.device(host_device()), paths.plain(folder) as place:
        tf.raw_ops.SaveV2(
            prefix=f"{place}/{BUNDLE}", tensor_names=list(snapshot),
            shape_and_slices=[""] * len(snapshot), tensors=list(snapshot.values()),
        )  # fmt: skip


def _read_bundle(folder: Path, state: State) -> None:
    """Reads the state from files that were verified against their manifest.

    Raises:
        CheckpointError: the checkpoint is of another model.
        UnreadableError: TensorFlow fails, though the bytes are those that were written.
    """
    weights = state.state_dict()
    try:
        with tf.device(host_device()), paths.plain(folder) as place:
            _require_same_variables(f"{place}/{BUNDLE}", weights, folder)
            values = tf.raw_ops.RestoreV2(
                prefix=f"{place}/{BUNDLE}", tensor_names=list(weights),
                shape_and_slices=[""] * len(weights), dtypes=[w.dtype for w in weights.values()],
            )  # fmt: skip
    except (OSError, tf.errors.OpError, ValueError) as error:
        raise UnreadableError(failures.sentence(error)) from None
    state.assign(dict(zip(weights, values, strict=True)))


def _require_same_variables(prefix: str, weights: Mapping[str, tf.Variable], folder: Path) -> None:
    """Compares the names and shapes of a bundle with those of the state.

    Raises:
        CheckpointError: they differ; the message lists the differences.
    """
    held = tf.train.load_checkpoint(prefix).get_variable_to_shape_map()
    lines = [
        f"{name} is not in the {'model' if name in held else 'checkpoint'}"
        for name in sorted(held.keys() ^ weights.keys())
    ]
    lines += [
        f"{name}: {weight.shape.as_list()} in the model, {held[name]} in the checkpoint"
        for name, weight in weights.items()
        if name in held and held[name] != weight.shape.as_list()
    ]
    if lines:
        raise CheckpointError(f"{folder} is of another model:\n  " + "\n  ".join(lines[:20]))
