"""Schedules a pipeline's tasks: integers only, no TensorFlow.

P = 4 stages, M = 8 micro-batches, time to the right, a backward as long as a forward:

    gpipe    every forward, then every backward                        (arXiv:1811.06965)
      stage 0   F0 F1 F2 F3 F4 F5 F6 F7 .. .. .. .. .. .. B0 B1 B2 B3 B4 B5 B6 B7
      stage 3   .. .. .. F0 F1 F2 F3 F4 F5 F6 F7 B0 B1 B2 B3 B4 B5 B6 B7

    1f1b     after P - 1 - stage forwards, one forward and one backward in turns: at most
             P - stage micro-batches are alive                         (arXiv:1806.03377)
      stage 0   F0 F1 F2 F3 .. .. .. B0 F4 B1 F5 B2 F6 B3 F7 B4 .. B5 .. B6 .. B7
      stage 3   .. .. .. F0 B0 F1 B1 F2 B2 F3 B3 F4 B4 ...

    1f1b with C chunks a stage (interleaved, arXiv:2104.04473, 2.2): stage s holds parts s,
             P + s, 2 P + s, ...; micro-batches go round the stages C times in groups of P
"""

from dataclasses import dataclass
from typing import Literal


@dataclass(frozen=True)
class Task:
    """A forward or backward pass of one micro-batch through one part."""

    kind: Literal["F", "B"]
    part: int
    micro_batch: int  # place among those of this process


def orders(kind: str, stages: int, chunks: int, micro_batches: int) -> list[list[Task]]:
    """Returns the tasks of each stage in the order in which it does them.

    Args:
        kind: `gpipe` or `1f1b`.
        stages: P.
        chunks: C, parts a stage; above 1 the micro-batches must be a multiple of P.
        micro_batches: M.
    """
    every = chunks * micro_batches
    result = []
    for stage in range(stages):
        forwards = [_task("F", k, stage, stages, chunks) for k in range(every)]
        backwards = [_task("B", k, stage, stages, chunks) for k in range(every)]
        if kind == "gpipe":
            ahead = every
        elif chunks == 1:
            ahead = min(every, stages - 1 - stage)
        else:
            ahead = min(every, 2 * (stages - 1 - stage) + (chunks - 1) * stages)
        tasks = forwards[:ahead]
        for forward, backward in zip(forwards[ahead:], backwards, strict=False):
            tasks += [forward, backward]
        result.append(tasks + backwards[every - ahead :])
    return result


def forward_only(stages: int, lanes: int, micro_batches: int) -> list[list[Task]]:
    """Returns the tasks of a forward pass only: a worker per stage and lane, stage by stage.

    Lanes are several micro-batches at once on one stage, where it has several cores:

        2 stages, 2 lanes
          stage 0   F0 F2 F4 ..
                    F1 F3 F5 ..
          stage 1   .. F0 F2 F4
                    .. F1 F3 F5
    """
    return [
        [Task("F", stage, m) for m in range(lane, micro_batches, lanes)]
        for stage in range(stages)
        for lane in range(lanes)
    ]


def _task(kind: Literal["F", "B"], k: int, stage: int, stages: int, chunks: int) -> Task:
    """Returns the k-th forward or backward of a stage."""
    if chunks == 1:
        return Task(kind, stage, k)
    # Groups of P micro-batches: through the first chunk, then the second, ...
    group, within = divmod(k, stages * chunks)
    chunk, micro_batch = divmod(within, stages)
    if kind == "B":
        chunk = chunks - 1 - chunk
    return Task(kind, chunk * stages + stage, group * stages + micro_batch)


def bubble(stages: int, chunks: int, micro_batches: int) -> float:
    """Returns the fraction of its time that a stage waits (arXiv:2104.04473, 2.2).

    (P - 1) / (C M + P - 1)
    """
    return (stages - 1) / (chunks * micro_batches + stages - 1)


def most_alive(tasks: list[Task]) -> int:
    """Returns the most micro-batches whose activations a stage holds at any moment."""
    alive = peak = 0
    for task in tasks:
        alive += 1 if task.kind == "F" else -1
        peak = max(peak, alive)
    return peak
