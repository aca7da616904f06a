"""Checkpoints: rank 0 writes and reads, everyone receives by broadcast.

checkpoints/step-00000040/   complete: it was renamed to this name after it was written
state.index, state.data-*   TensorFlow's tensor bundle, with its checksums
manifest.json               step, metrics, weights_sha256
checkpoints/.writing-*/      what an interrupted write leaves; swept by the next one
"""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import tensorflow as tf

from app.errors import CheckpointError
from app.parallel import replicas
from app.parallel.placement import HERE
from app.parallel.sharded import pieces
from app.parallel.topology import Topology
from app.training.state import State


class Checkpoints:
    """The checkpoints of one run: the last `keep` and the best."""

    def __init__(self, folder: Path, state: State, where: Topology, keep: int) -> None:
        self.folder, self.state, self.where, self.keep = folder, state, where, keep

    def manifests(self) -> list[dict[str, Any]]:
        """Manifests of the complete checkpoints, oldest first.

        Raises:
            CheckpointError: one is damaged.
        """
        return [_manifest(path) for path in sorted(self.folder.glob("step-*/manifest.json"))]

    def save(self, step: int, metrics: dict[str, float]) -> None:
        """Writes the state after `step` steps, then drops what is not kept."""
        if not self.where.is_chief:
            return
        final = self.folder / f"step-{step:08d}"
        shutil.rmtree(final, ignore_errors=True)  # one without a manifest is no checkpoint
        writing = self.folder / f".writing-{step:08d}"
        for left in self.folder.glob(".writing-*"):
            shutil.rmtree(left)
        writing.mkdir(parents=True)
        _write(writing / "state", self.state)
        manifest = {"step": step, "metrics": metrics, "weights_sha256": self.state.sha256()}
        (writing / "manifest.json").write_text(json.dumps(manifest, indent=1))
        writing.rename(final)
        self._drop()

    def restore(self) -> int:
        """Loads the newest checkpoint on every process; returns its step, 0 if there is none.

        Raises:
            CheckpointError: it is damaged or holds another model (on every process).
        """
        step, error = 0, None
        if self.where.is_chief:
            try:
                step = self._read()
            except CheckpointError as caught:
                error = caught
        replicas.agree(error)
        named = self.state.named()
        replicas.broadcast([named[name] for name in sorted(named)])
        return int(replicas.broadcast_text(str(step)))

    def _read(self) -> int:
        manifests = self.manifests()
        if not manifests:
            return 0
        step = int(manifests[-1]["step"])
        folder = self.folder / f"step-{step:08d}"
        try:
            _read(folder / "state", self.state)
        except (tf.errors.OpError, ValueError) as error:
            reason = str(error).strip().partition("\n")[0][:200]
            raise CheckpointError(
                f"cannot restore {folder}: {reason}; remove that folder to continue from the "
                "checkpoint before it."
            ) from None
        sha = self.state.sha256()
        if sha != manifests[-1]["weights_sha256"]:
            raise CheckpointError(
                f"{folder} holds weights {sha[:12]}, its manifest says "
                f"{manifests[-1]['weights_sha256'][:12]}: remove that folder to continue from the "
                "checkpoint before it."
            )
        return step

    def _drop(self) -> None:
        manifests = self.manifests()
        scored = [m for m in manifests if "accuracy" in m["metrics"]]
        best = max(scored, key=lambda m: m["metrics"]["accuracy"], default=None)
        for manifest in manifests[: -self.keep]:
            if manifest is not best:
                shutil.rmtree(self.folder / f"step-{manifest['step']:08d}")


def _manifest(path: Path) -> dict[str, Any]:
    try:
        manifest = json.loads(path.read_text())
        return {name: manifest[name] for name in ("step", "metrics", "weights_sha256")}
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise CheckpointError(
            f"cannot read {path} ({error!r}): remove {path.parent} to continue from the "
            "checkpoint before it."
        ) from None


def _write(prefix: Path, state: State) -> None:
    """A tensor bundle by name: a split weight is one tensor, of which each shard is a slice."""
    names, slices, variables = zip(*pieces(state.named()), strict=True)
    with tf.device(HERE):  # the files are this process's, whatever is on a stage server
        tf.raw_ops.SaveV2(
            prefix=str(prefix), tensor_names=names, shape_and_slices=slices,
            tensors=[v.read_value() for v in variables],
        )  # fmt: skip


def _read(prefix: Path, state: State) -> None:
    """Raises ValueError if the bundle holds other tensors than the state."""
    weights = state.named()
    held = tf.train.load_checkpoint(str(prefix)).get_variable_to_shape_map()
    wanted = {name: weight.shape.as_list() for name, weight in weights.items()}
    for name in sorted(held.keys() ^ wanted.keys()):
        raise ValueError(f"{name} is {'not in the model' if name in held else 'not in it'}")
    for name, shape in wanted.items():
        if held[name] != shape:
            raise ValueError(f"{name} has shape {held[name]} there, {shape} in the model")
    names, slices, variables = zip(*pieces(weights), strict=True)
    with tf.device(HERE):
        values = tf.raw_ops.RestoreV2(
            prefix=str(prefix), tensor_names=names, shape_and_slices=slices,
            dtypes=[v.dtype for v in variables],
        )  # fmt: skip
    for variable, value in zip(variables, values, strict=True):
        variable.assign(value)
