"""Evaluates exactly: every example once, sums reduced once, any split on any processes."""

from __future__ import annotations

from typing import TypeAlias

import numpy as np
import tensorflow as tf

from app.parallel import replicas
from app.parallel.topology import Topology, slice_of
from app.recovery import heartbeat, preemption
from app.training.agreement import run_on_all_ranks
from app.training.state import State
from input.batches import DataSet

Metrics: TypeAlias = dict[str, dict[str, float]]  # by split


class Evaluator:
    """Top-1 and top-5 accuracy and loss over the evaluation split.

    Each process sums over its own slice of the examples; there is no collective in the
    loop, so processes with slices of different length cannot wait for each other.

    Raises:
        DataError: on every process, if one cannot read an example.
    """

    def __init__(self, state: State, data: DataSet, micro_batch: int, topology: Topology) -> None:
        own = slice_of(data.num_evaluation, topology.size, topology.rank)
        self.state, self.split = state, data.evaluation_split
        self.batches = data.evaluation(micro_batch, own)

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
        """Returns accuracy, top5_accuracy, loss and examples (a count) of the state's weights.

        None if a stop was requested of any rank.
        """
        own = np.append(run_on_all_ranks(self._own_sums), float(preemption.is_requested()))
        loss, top1, top5, count, stops = replicas.all_reduce_numpy(own, "evaluation")
        if stops:
            return None
        return {
            "accuracy": top1 / count,
            "top5_accuracy": top5 / count,
            "loss": loss / count,
            "examples": int(count),
        }

    def _own_sums(self) -> np.ndarray:
        sums = np.zeros(4)
        for batch in self.batches:
            heartbeat.beat("evaluating")
            if preemption.is_requested():
                break
            sums += self._sums(*batch).numpy()
        return sums

    @tf.function(autograph=False, reduce_retracing=True)
    def _sums(self, inputs: tf.Tensor, targets: tf.Tensor, weights: tf.Tensor) -> tf.Tensor:
        """Sums loss, top-1, top-5 and count over a batch, each example times its weight; [4]."""
        logits = self.state.logits(inputs)
        labels = tf.argmax(targets, -1)  # [b]
        losses = tf.nn.softmax_cross_entropy_with_logits(targets, logits)
        # The label's place in the ranking: how many classes score higher; ties go to the lower.
        own = tf.gather(logits, labels, batch_dims=1)[:, tf.newaxis]
        lower = tf.range(logits.shape[-1], dtype=tf.int64) < labels[:, tf.newaxis]
        rank = tf.reduce_sum(tf.cast((logits > own) | ((logits == own) & lower), tf.int32), -1)
        # A NaN is above nothing and below nothing: it must not count as right.
        known = tf.math.is_finite(own[:, 0])
        columns = [losses, tf.cast(known & (rank < 1), tf.float32)]
        columns += [tf.cast(known & (rank < 5), tf.float32), tf.ones_like(losses)]
        stacked = tf.cast(tf.stack(columns), tf.float64)
        return tf.reduce_sum(stacked * tf.cast(weights, tf.float64), -1)
