"""Begins a process of a job: its number of ranks, its cores, TensorFlow, and the job itself."""

import dataclasses
import os
from pathlib import Path

from app.cli import loading, workdir
from app.config import Layout
from app.parallel.topology import Topology, cores
from app.training import kernels


def processes() -> int:
    """Returns the number of ranks, as horovodrun says it before Horovod is imported."""
    return int(os.environ.get("HOROVOD_SIZE", 1))


def hold_cores(most: int) -> list[int]:
    """Keeps this process to its share of the cores, or to `most` of them; returns them.

    Ranks that predict have nothing to sum: Horovod's thread, which looks for work every millisecond
    and was seen to take a sixth of a core, does so every 20.
    """
    os.environ.setdefault("HOROVOD_CYCLE_TIME", "20")
    size = int(os.environ.get("HOROVOD_LOCAL_SIZE", 1))
    rank = int(os.environ.get("HOROVOD_LOCAL_RANK", 0))
    own = cores(os.sched_getaffinity(0), size, rank, most)
    os.sched_setaffinity(0, own)
    return own


def tensorflow(is_training: bool = True) -> None:
    """Imports TensorFlow, with the kernels of training or with TensorFlow's own choice."""
    if is_training:
        kernels.choose()
    loading.tensorflow()


def join(layout: Layout, exact: bool = False, is_training: bool = True) -> tuple[Topology, Layout]:
    """Imports TensorFlow, and joins the job.

    Args:
        layout: of the job.
        exact: be exact even if the layout is not.
        is_training: take the kernels of training, and not TensorFlow's own choice.
    """
    tensorflow(is_training)
    from app.training import setup

    topology, joined = setup.join(dataclasses.replace(layout, exact=exact or layout.exact))
    return topology, dataclasses.replace(joined, exact=layout.exact)


def output_folder(given: str | None, name: str, is_chief: bool) -> Path:
    """Returns --workdir, or a new folder, which rank 0 makes; the same on all ranks."""
    from app.parallel import replicas
    from app.training.agreement import run_on_all_ranks

    made = run_on_all_ranks(lambda: workdir.default(name) if is_chief and not given else "")
    return Path(replicas.broadcast_json(given or str(made)))
