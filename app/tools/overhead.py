"""Implements `app overhead`: measures what fault tolerance costs when nothing breaks.

    bare      a step and its metrics, nothing else
    watched   with all that training adds: heartbeats, votes, reports; every PERIOD chunks a
              comparison of the replicas and a checkpoint
    elastic   as watched, with commits to memory

    bare .....|watched ..S..|elastic ..S..|watched .....|elastic .....|bare .....|elastic ...

Chunks of CHUNK steps take turns in one run, so that a machine that slows down slows all three. A
chunk ends when its checkpoint is on the disk, so that it has its whole cost. A checkpoint every
PERIOD * CHUNK steps is more than training writes (one every ten minutes).
"""

import dataclasses
import itertools
import time
from collections.abc import Mapping
from pathlib import Path

import numpy as np

from app.config import Experiment, Layout
from app.parallel import replicas
from app.parallel.topology import Topology
from app.reporting.clock import Clock
from app.strategies.elastic import Commit
from app.tools import rounds
from app.training.agreement import vote
from app.training.setup import open_run
from app.training.trainer import Run, Trainer

CHUNK = 10  # steps
PERIOD, ROUNDS = 5, 5  # chunks in a period, which has one checkpoint; periods in a median
KINDS = ("bare", "watched", "elastic")


def main(
    experiment: Experiment, layout: Layout, topology: Topology, data_dir: str, folder: Path
) -> None:
    """Prints seconds a step of each kind and their ratios, on rank 0.

    Args:
        experiment: whose steps are measured.
        layout: of the job.
        topology: this rank.
        data_dir: of prepared data.
        folder: for the checkpoints; on the disk that training would use.
    """
    endless = dataclasses.replace(experiment, steps=10**6, epochs=None)
    setup = open_run(endless, layout, topology, data_dir)
    folder.mkdir(parents=True, exist_ok=True)
    often = Run(folder, data_dir, checkpoint_every=CHUNK, compare_every=CHUNK, keep=1)
    never = Run(folder, data_dir, compare_every=0)
    trainer = Trainer(setup, layout, topology, never, Clock())
    trainer.begin(0)
    commit = Commit(setup.state, trainer.clock)
    # In steps of CHUNK, from where a multiple of it is in the middle of a chunk.
    starts = itertools.count(CHUNK // 2, CHUNK)

    def measure(kind: str, turn: int) -> float:
        trainer.run = never if turn % PERIOD else often
        trainer.commit = commit.take if kind == "elastic" else None
        start = next(starts)
        return chunk(trainer, kind, range(start, start + CHUNK))

    chunk(trainer, "watched", range(CHUNK // 2))  # the first step compiles
    seconds = rounds.by_turns(KINDS, ROUNDS * PERIOD, measure)
    trainer.close()
    if topology.is_chief:
        report(topology.size, {k: np.reshape(s, [ROUNDS, PERIOD]) for k, s in seconds.items()})


def chunk(trainer: Trainer, kind: str, steps: range) -> float:
    """Takes steps of a kind; returns the seconds until all ranks and rank 0's disk are done."""
    replicas.barrier()  # a barrier
    begin = time.perf_counter()
    for s in steps:
        if kind == "bare":
            trainer.compute(s)
        else:
            trainer.advance(s)
            trainer.after_round(s + 1, vote(trainer.signals))
    error = trainer.checkpoints.wait()
    replicas.barrier()
    taken = time.perf_counter() - begin
    replicas.raise_on_all_ranks(error)
    return taken


def report(processes: int, seconds: Mapping[str, np.ndarray]) -> None:
    """Prints a table of seconds, given by kind as [rounds, chunks of a period]."""
    steps = {kind: each.sum(axis=1) / (PERIOD * CHUNK) for kind, each in seconds.items()}
    print(f"{processes} processes, medians of {ROUNDS} rounds of {PERIOD * CHUNK} steps of each")
    for kind in KINDS:
        print(f"{kind:10} {np.median(steps[kind]):8.4f} s a step")
    for kind in KINDS[1:]:
        print(f"{kind} / bare {np.median(steps[kind] / steps['bare']):8.3f}")
