"""Taking a workdir: one job at a time has it, and config.json says whose run it holds."""

from __future__ import annotations

import contextlib

from app import config
from app.cli import workdir
from app.config import Layout
from app.errors import UsageError
from app.parallel import replicas
from app.parallel.topology import Topology
from app.recovery import lock, manifest
from app.training import data as meaning
from app.training import kernels
from app.training.setup import Opened
from app.training.trainer import Run


def claim(
    opened: Opened, layout: Layout, where: Topology, run: Run, stack: contextlib.ExitStack
) -> list[str]:
    """Locks the workdir for as long as `stack` lasts and writes config.json, on rank 0.

    Returns what the run should be warned of.

    Raises:
        UsageError: another job has the folder, or it cannot be written.
        CheckpointError: its checkpoints are of data that meant something else.
    """
    if not where.is_chief:
        return []
    try:
        stack.enter_context(lock.held(run.workdir))
        kept, means = workdir.read(run.workdir) or {}, meaning.of(opened.data)
        if manifest.steps(run.workdir / "checkpoints"):  # else nothing was learned yet
            meaning.must_agree(means, kept.get("meaning", {}), run.workdir)
        begun = kept.get("kernels")
        about = {"versions": replicas.versions(), "kernels": kernels.names(), "meaning": means}
        workdir.claim(
            run.workdir, run.reference, list(run.settings), opened.experiment,
            config.as_dict(layout), about,
        )  # fmt: skip
    except OSError as error:
        raise UsageError(
            f"cannot write to {run.workdir} ({error.strerror}): give another --workdir."
        ) from None
    if not layout.exact or begun in (None, kernels.names()):
        return []
    return [
        f"the run was begun with kernels of {kernels.text(begun)} and goes on with those of "
        f"{kernels.text(kernels.names())}: its bits will be those of neither"
    ]
