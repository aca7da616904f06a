"""Takes local steps: each process steps by itself, and every K steps all take the mean.

    rank 0   step step step step |mean| step step step step |mean|
    rank 1   step step step step |mean| step step step step |mean|

Everything a step changes is averaged, the optimizer's slots too (arXiv:1905.03817), so that
after a round all processes hold the same state: only then is a run evaluated, saved and stopped.
A process counts in the mean as often as it has micro-batches.

With an outer optimizer (DiLoCo, arXiv:2311.08105) the round's mean move is a gradient of its own:

    move = weights before the round - mean of the weights after it
    u    = outer_momentum * u + move
    w    = weights before - outer_rate * (move + outer_momentum * u)      Nesterov
"""

from __future__ import annotations

from typing import Any

import numpy as np
import tensorflow as tf

from app.config import Experiment
from app.parallel import placement, replicas
from app.training import step_sums
from app.training.exchange import AllReduce, nbytes
from app.training.state import State, variable_like
from app.training.step import Batches, Step


class NoExchange(AllReduce):
    """Exchanges nothing: each process steps by the mean over its own examples."""

    def __call__(self, sums: list[tf.Tensor]) -> list[tf.Tensor]:
        """See base class."""
        return [value * self.factor for value in sums]

    @property
    def bytes_sent(self) -> float:
        """See base class."""
        return 0.0


class LocalSGDStep(Step):
    """A step of this process, and at the end of a round the mean over all processes.

    Args:
        experiment: whose `update.local_steps` make a round.
        state: the same on every process at the start.
        own: the step of this process, over its own micro-batches.
        micro_batches: their places in a step; their number is the process's weight in the mean.
        processes: of the job.
        last: the step that ends the run, and so its last round.
    """

    def __init__(
        self, experiment: Experiment, state: State, own: Step, micro_batches: range,
        processes: int, last: int,
    ) -> None:  # fmt: skip
        self.experiment, self.state, self.own = experiment, state, own
        self.processes, self.last = processes, last
        self.weight = len(micro_batches) / experiment.num_micro_batches
        outer = [part for part in state.parts if part.outer]
        # Weights before the round.
        self.before = [variable_like(v, v.read_value()) for part in outer for v in part.trainable]
        self._round: list[np.ndarray] = []  # metrics of its steps, and whether one is not finite

    def __call__(self, step: int, batches: Batches, rate: float) -> dict[str, tf.Tensor]:
        """Runs step `step`; at a round's end returns the metrics of all, else this process's."""
        metrics = self.own(step, batches, rate)
        names = step_sums.names(self.experiment.objective)
        finite = bool(metrics["finite"])
        self._round.append(np.array([*(float(metrics[n]) for n in names), not finite]))
        if not self.is_round(step + 1):
            return metrics
        self._average()
        # The last number says on every process whether one had a loss that is not finite.
        mean = replicas.all_reduce_numpy(np.mean(self._round, 0) * self.weight, "round")
        self._round = []
        found = dict(zip(names, map(tf.constant, mean), strict=False))
        return {**found, "finite": tf.constant(mean[-1] == 0), "skipped": tf.constant(False)}

    def is_round(self, done: int) -> bool:
        """See base class."""
        return done % self.experiment.update.local_steps == 0 or done == self.last

    @property
    def bytes_sent(self) -> float:
        """Bytes that this process sends per step of a round."""
        ring = 2 * (self.processes - 1) / self.processes
        return ring * sum(map(nbytes, self._averaged())) / self.experiment.update.local_steps

    def table(self) -> list[dict[str, Any]]:
        """See base class."""
        return self.own.table()

    def _averaged(self) -> list[tf.Variable]:
        """Returns everything that a step changes, except counts, which agree."""
        found = []
        for part in self.state.parts:
            moving = {id(v) for v in [*part.trainable, *(v for v, _ in part.statistics)]}
            found += [v for v in part.variables if id(v) in moving]
            both = zip(part.averages, part.variables, strict=bool(part.averages))
            found += [average for average, v in both if id(v) in moving]
        return found + [v for part in self.state.parts for slot in part.slots for v in slot]

    @tf.function(autograph=False)
    def _average(self) -> None:
        for i, variable in enumerate(self._averaged()):
            with tf.device(placement.collective_device(variable.device)):
                own = variable.read_value() * self.weight
                variable.assign(replicas.all_reduce(own, f"mean{i}"))
        weights = [v for part in self.state.parts for v in part.trainable if part.outer]
        momenta = [u for part in self.state.parts for u in part.outer]
        for weight, u, before in zip(weights, momenta, self.before, strict=True):
            self._move(weight, u, before)
        for part in self.state.parts:
            part.constrain()
        for weight, before in zip(weights, self.before, strict=True):
            with tf.device(weight.device):
                before.assign(weight)

    def _move(self, weight: tf.Variable, u: tf.Variable, before: tf.Variable) -> None:
        rule = self.experiment.update
        with tf.device(weight.device):
            move = before - weight
            u.assign(rule.outer_momentum * u + move)
            weight.assign(before - rule.outer_rate * (move + rule.outer_momentum * u))
