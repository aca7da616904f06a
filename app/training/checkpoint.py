"""Checkpoints: rank 0 writes and reads, everyone receives by broadcast.

checkpoints/step-00000040/   complete: it was renamed to this name after it was on the disk
state.index, state.data-*   TensorFlow's tensor bundle
manifest.json               what it is of, and checksums of all (`app/recovery/manifest.py`)
checkpoints/.writing-*/      what an interrupted write leaves; swept by the next one

Writing goes on beside training: a save takes the tensors as they are, and returns.
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
from app.parallel import replicas
from app.parallel.placement import here
from app.parallel.topology import Topology
from app.recovery import manifest
from app.recovery.manifest import DamageError
from app.training.state import Snapshot, State, sha256_of, weights_of


class Checkpoints:
    """The checkpoints of one run: the last `keep` and the best.

    Args:
        folder: where they are.
        state: what is kept.
        where: this process's rank.
        keep: how many, beside the best.
        about: "experiment" and "versions", for the manifests.

    Attributes:
        stall: seconds that the last save kept training waiting.
        damaged: what `restore` passed over, a sentence each (on rank 0).
        missing: steps before the newest that the restored state lacks, which asynchronous
            training had begun (`app/parallel/ledger.py`).
    """

    def __init__(
        self, folder: Path, state: State, where: Topology, keep: int, about: Mapping[str, Any]
    ) -> None:
        self.folder, self.state, self.where, self.keep = folder, state, where, keep
        self.about = config.plain(about)
        self.stall = 0.0
        self.damaged: list[str] = []
        self.missing: list[int] = []
        self._writer = ThreadPoolExecutor(1, thread_name_prefix="checkpoint")
        self._writing: Future[None] | None = None

    def save(
        self, step: int, metrics: Mapping[str, float], missing: Sequence[int] = ()
    ) -> CheckpointError | None:
        """Begins to write the state after `step` steps; at most one is written at a time.

        Returns what went wrong with the one before, which the caller may warn of or raise.
        """
        if not self.where.is_chief:
            return None
        begin = time.monotonic()
        error = self.wait()
        snapshot = self.state.snapshot()
        self._writing = self._writer.submit(
            self._write, step, dict(metrics), list(missing), snapshot
        )
        self.stall = time.monotonic() - begin
        return error

    def wait(self) -> CheckpointError | None:
        """Waits until nothing is being written; returns what went wrong."""
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
            CheckpointError: there are some and none is valid, or the newest valid one is of
                another experiment (on every process).
        """
        step, error = 0, None
        if self.where.is_chief:
            try:
                step = self._read_newest()
            except CheckpointError as caught:
                error = caught
        replicas.agree(error)
        named = self.state.named()
        replicas.broadcast([named[name] for name in sorted(named)])
        return int(replicas.broadcast_text(str(step)))

    def _write(
        self, step: int, metrics: dict[str, float], missing: list[int], snapshot: Snapshot
    ) -> None:
        final = manifest.folder_of(self.folder, step)
        writing, old = self.folder / f".writing-{step:08d}", self.folder / f".old-{step:08d}"
        try:
            for left in [*self.folder.glob(".writing-*"), *self.folder.glob(".old-*")]:
                shutil.rmtree(left)
            writing.mkdir(parents=True)
            _write_bundle(writing / "state", snapshot)
            digest = sha256_of(weights_of(snapshot))
            content = {"step": step, "metrics": metrics, "weights_sha256": digest}
            content |= {"missing": missing} if missing else {}
            manifest.write(writing, {**content, **self.about})
            if final.exists():  # a damaged one, or that of a run that was continued earlier
                final.rename(old)
            writing.rename(final)
            manifest.sync(self.folder)
            shutil.rmtree(old, ignore_errors=True)
            self._drop()
        except (OSError, tf.errors.OpError) as error:
            shutil.rmtree(writing, ignore_errors=True)
            reason = str(error).partition("\n")[0][:300]
            raise CheckpointError(
                f"cannot write the checkpoint of step {step} below {self.folder}: {reason}. Make "
                "room there, or let it be written; the checkpoints before it are as they were."
            ) from error

    def _read_newest(self) -> int:
        for step in reversed(manifest.steps(self.folder)):
            folder = manifest.folder_of(self.folder, step)
            try:
                content = manifest.read(folder)
                self._must_match(folder, content)
                manifest.verify(folder, content)
                _read_bundle(folder / "state", self.state)
                if self.state.sha256() != content["weights_sha256"]:
                    raise DamageError("it holds other weights than its manifest says")
            except DamageError as damage:
                self.damaged.append(f"{folder} is damaged: {damage}")
                continue
            self.missing = content.get("missing", [])
            return step
        if self.damaged:
            raise CheckpointError(
                f"{'; '.join(self.damaged)}. No checkpoint is left: remove {self.folder} to begin "
                "anew."
            )
        return 0

    def _must_match(self, folder: Path, content: dict[str, Any]) -> None:
        if content["format"] > manifest.FORMAT:
            raise CheckpointError(
                f"{folder} has format {content['format']}, but this version reads up to "
                f"{manifest.FORMAT}: use the version that wrote it."
            )
        ours, theirs = self.about.get("experiment"), content.get("experiment")
        lines = config.differences(ours, theirs) if ours and theirs else []
        if lines:
            raise CheckpointError(
                f"{folder} is of another experiment:\n  " + "\n  ".join(lines) + "\nGive these "
                "fields the same values, or another --workdir."
            )

    def _drop(self) -> None:
        """Removes what is neither among the last nor the best; a damaged one counts as none."""
        accuracy: dict[int, float] = {}
        steps = []
        for step in manifest.steps(self.folder):
            try:
                metrics = manifest.read(manifest.folder_of(self.folder, step))["metrics"]
            except DamageError:
                continue
            steps.append(step)
            if "accuracy" in metrics:
                accuracy[step] = metrics["accuracy"]
        best = max(accuracy, key=lambda step: accuracy[step], default=None)
        for step in steps[: -self.keep]:
            if step != best:
                shutil.rmtree(manifest.folder_of(self.folder, step))


def _write_bundle(prefix: Path, snapshot: Snapshot) -> None:
    with tf.device(here()):  # the files are this process's, whatever is on a stage server
        tf.raw_ops.SaveV2(
            prefix=str(prefix), tensor_names=list(snapshot), shape_and_slices=[""] * len(snapshot),
            tensors=list(snapshot.values()),
        )  # fmt: skip


def _read_bundle(prefix: Path, state: State) -> None:
    """Raises DamageError if it cannot be read, CheckpointError if it is of another model."""
    weights = state.named()
    try:
        held = tf.train.load_checkpoint(str(prefix)).get_variable_to_shape_map()
        lines = [
            f"{name} is {'not in the model' if name in held else 'not in it'}"
            for name in sorted(held.keys() ^ weights.keys())
        ]
        lines += [
            f"{name}: {weight.shape.as_list()} here, {held[name]} there"
            for name, weight in weights.items()
            if name in held and held[name] != weight.shape.as_list()
        ]
        if lines:
            raise CheckpointError(
                f"{prefix.parent} is of another model:\n  " + "\n  ".join(lines[:20])
            )
        with tf.device(here()):
            values = tf.raw_ops.RestoreV2(
                prefix=str(prefix), tensor_names=list(weights),
                shape_and_slices=[""] * len(weights), dtypes=[w.dtype for w in weights.values()],
            )  # fmt: skip
    except (tf.errors.OpError, ValueError) as error:
        raise DamageError(str(error).strip().partition("\n")[0][:200]) from None
    state.assign(dict(zip(weights, values, strict=True)))
