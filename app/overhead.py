"""`app overhead`: what it costs to be watched, compared and saved, when nothing breaks.

    bare      a step and its metrics, nothing else
    watched   the same as training does it: heartbeats, votes, reports; in the middle of each
              block of BLOCK steps a comparison of the replicas and a checkpoint
    elastic   the same with commits to memory

    bare ........|watched ....S...|elastic .c.cSc.c|watched ....S...|elastic ...

Blocks take turns, in one run. A block ends when its checkpoint is on the disk, so that its whole
cost is in it; one every BLOCK steps is more than training writes (one every ten minutes).
"""

from __future__ import annotations

import dataclasses
import statistics
import time
from pathlib import Path

from app.config import Experiment, Layout
from app.parallel import replicas
from app.parallel.topology import Topology
from app.reporting.clock import Clock
from app.training import opening, vote
from app.training.elastic import Commit
from app.training.session import Run, Session

BLOCK = 50  # steps
ROUNDS = 5
KINDS = ("bare", "watched", "elastic")


def main(
    experiment: Experiment, layout: Layout, where: Topology, data_dir: str, folder: Path
) -> None:
    """Prints seconds a step of each kind and their ratios, on rank 0.

    Args:
        experiment: whose steps are taken.
        layout: of the job.
        where: this rank.
        data_dir: of prepared data.
        folder: where the checkpoints go; on the disk that training would use.
    """
    endless = dataclasses.replace(experiment, steps=10**6, epochs=None)
    opened = opening.open_run(endless, layout, where, data_dir)
    folder.mkdir(parents=True, exist_ok=True)
    run = Run(folder, data_dir, checkpoint_every=BLOCK, compare_every=BLOCK, keep=1)
    session = Session(opened, layout, where, run, Clock())
    session.begin(0)
    commit = Commit(opened.state)
    seconds: dict[str, list[float]] = {kind: [] for kind in KINDS}
    done = BLOCK // 2
    block(session, commit, "watched", range(done))  # the first step compiles
    for turn in range(ROUNDS):
        for kind in (KINDS * 2)[turn % len(KINDS) :][: len(KINDS)]:  # each is first in its turn
            taken = block(session, commit, kind, range(done, done + BLOCK))
            seconds[kind].append(taken / BLOCK)
            done += BLOCK
    session.close()
    if where.is_chief:
        print(f"{where.size} processes, medians of {ROUNDS} blocks of {BLOCK} steps")
        for kind in KINDS:
            print(f"{kind:10} {statistics.median(seconds[kind]):8.4f} s a step")
        for kind in KINDS[1:]:
            pairs = zip(seconds[kind], seconds["bare"], strict=True)
            print(f"{kind} / bare {statistics.median(a / b for a, b in pairs):8.3f}")


def block(session: Session, commit: Commit, kind: str, steps: range) -> float:
    """Takes steps of a kind; returns seconds until all ranks have, and rank 0's disk too."""
    session.commit = commit.take if kind == "elastic" else None
    replicas.each(0)  # a barrier
    begin = time.perf_counter()
    for s in steps:
        if kind == "bare":
            session.compute(s)
        else:
            session.advance(s)
            session.between(s + 1, vote.wanted(session.wishes))
    error = session.checkpoints.wait()
    replicas.each(0)
    taken = time.perf_counter() - begin
    replicas.agree(error)
    return taken
