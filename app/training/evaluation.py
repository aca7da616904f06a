"""Evaluates exactly: every example once, sums reduced once, any split on any processes."""

from __future__ import annotations

from typing import Any, TypeAlias

import numpy as np
import tensorflow as tf

from app.config import Experiment
from app.parallel import replicas
from app.parallel.topology import Topology, slice_of
from app.recovery import heartbeat, preemption
from app.training.agreement import run_on_all_ranks
from app.training.state import State
from input.batches import DataSet

Metrics: TypeAlias = dict[str, dict[str, float]]  # by split


class Evaluator:
    """The objective's metrics over the evaluation split.

    Each process sums over its own slice of the examples; there is no collective in the
    loop, so processes with slices of different length cannot wait for each other.

    Raises:
        DataError: on every process, if one cannot read an example.
    """

    def __init__(
        self, experiment: Experiment, state: State, data: DataSet, topology: Topology
    ) -> None:
        own = slice_of(data.num_evaluation, topology.size, topology.rank)
        self.objective, self.state = experiment.objective, state
        self.data, self.split = data, data.evaluation_split
        self.batches = data.evaluation(experiment.micro_batch, own)

    def evaluate(self) -> Metrics | None:
        """Returns the metrics of the weights and, if there are any, of their moving averages.

        None if a stop was requested of any rank.
        """
        found = {self.split: self()}
        if self.state.has_average:
            with self.state.averaged():
                found[f"{self.split}_average"] = self()
        metrics = {split: values for split, values in found.items() if values}
        return metrics if len(metrics) == len(found) else None

    def __call__(self) -> dict[str, float] | None:
        """Returns the metrics of the state's weights; None if a stop was requested of any rank."""
        own = run_on_all_ranks(self._own_sums)
        flat = [np.ravel(value) for value in own.values()]
        flat.append(np.array([float(preemption.is_requested())]))
        *total, stops = replicas.all_reduce_numpy(np.concatenate(flat), "evaluation")
        if stops:
            return None
        ends = np.cumsum([value.size for value in own.values()])
        pieces = zip(own.items(), np.split(total, ends[:-1]), strict=True)
        return self.objective.metrics({n: x.reshape(value.shape) for (n, value), x in pieces})

    def _own_sums(self) -> dict[str, np.ndarray]:
        total: dict[str, np.ndarray] = {}
        for batch in self.batches:
            heartbeat.beat("evaluating")
            sums = {name: value.numpy() for name, value in self._sums(*batch).items()}
            total = {n: total[n] + value for n, value in sums.items()} if total else sums
            if preemption.is_requested():
                break
        return total or self._zeros()

    def _zeros(self) -> dict[str, np.ndarray]:
        """Returns the sums over no example, of a process that has none."""
        specs = self.data.input_spec, self.data.target_spec, tf.TensorSpec([None])
        sums = self._sums.get_concrete_function(*specs).structured_outputs
        return {name: np.zeros(value.shape) for name, value in sums.items()}

    @tf.function(autograph=False, reduce_retracing=True)
    def _sums(self, inputs: Any, targets: Any, weights: tf.Tensor) -> dict[str, tf.Tensor]:
        """Sums over a batch, whose examples count as often as `weights` says."""
        return self.objective.sums(self.state.outputs(inputs), targets, weights)
