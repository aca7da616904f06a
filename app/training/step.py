"""One training step for every layout: the only GradientTape of synchronous training.

A process runs its micro-batches one after the other. All but the last are added up in
place; while the last one's backward pass still computes, its first gradients are already
on their way:

    rank 0   forward backward | forward backward
                                          all-reduce...   update
    rank 1   forward backward | forward backward
                                          all-reduce...   update

With one micro-batch a process this is plain data parallelism in one compiled function.
With `exact` the sums go along the fixed tree of `parallel/tree.py` instead.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import tensorflow as tf

from app.config import Experiment, Layout
from app.parallel import replicas, topology, tree
from app.training import optimization
from app.training.state import State
from models import blocks

GROWTH_STEPS = 2000  # good steps before the float16 loss scale doubles
Sums = list[tf.Tensor]  # gradients, then statistics, then [loss, correct]


class Step:
    """Calling it advances the state by one step; returns the step's metrics.

    A step whose gradients are not finite changes no weight. Every replica decides so from
    the same sums.
    """

    def __init__(
        self,
        experiment: Experiment,
        layout: Layout,
        state: State,
        micro_batches: range,
        is_alone: bool = False,  # sums nothing between processes: for measuring what that costs
    ) -> None:
        self.is_alone = is_alone
        self.experiment, self.layout, self.state = experiment, layout, state
        self.micro_batches = micro_batches
        self.accumulators: list[tf.Variable] = []
        # The subtrees of every process, in rank order.
        total = experiment.num_micro_batches
        shares = [topology.share(total, layout.processes, r) for r in range(layout.processes)]
        self.nodes = [node for share in shares for node in tree.subtrees(share)]

    def __call__(
        self, step: int, batches: Iterator[tuple[tf.Tensor, ...]], rate: float
    ) -> dict[str, tf.Tensor]:
        """Runs step `step` on this process's next micro-batches at learning rate `rate`."""
        first = step * self.experiment.num_micro_batches
        numbers = [tf.constant(first + place, tf.int64) for place in self.micro_batches]
        learning_rate = tf.constant(rate, tf.float32)
        if self.layout.exact:
            return self._exact(numbers, batches, learning_rate)
        *early, last = numbers
        if early and not self.accumulators:
            shapes = [v.shape for v in self.state.trainable]
            shapes += [v.shape for v, _ in self.state.statistics] + [tf.TensorShape([2])]
            self.accumulators = [tf.Variable(tf.zeros(s), trainable=False) for s in shapes]
        for number in early:
            inputs, targets, _ = next(batches)
            self._accumulate(inputs, targets, number)
        inputs, targets, _ = next(batches)
        return self._finish(inputs, targets, last, learning_rate)

    def _exact(
        self,
        numbers: Sequence[tf.Tensor],
        batches: Iterator[tuple[tf.Tensor, ...]],
        rate: tf.Tensor,
    ) -> dict[str, tf.Tensor]:
        merged: list[tuple[tree.Node, Sums]] = []
        for place, number in zip(self.micro_batches, numbers, strict=True):
            inputs, targets, _ = next(batches)
            tree.merge(merged, (place, 1), self._leaf(inputs, targets, number), self._add)
        return self._finish_exact([sums for _, sums in merged], rate)

    @tf.function
    def _accumulate(self, inputs: tf.Tensor, targets: tf.Tensor, number: tf.Tensor) -> None:
        sums = self._sums(inputs, targets, number)
        for accumulator, value in zip(self.accumulators, sums, strict=True):
            accumulator.assign_add(value)

    @tf.function
    def _finish(
        self, inputs: tf.Tensor, targets: tf.Tensor, number: tf.Tensor, rate: tf.Tensor
    ) -> dict[str, tf.Tensor]:
        sums = self._sums(inputs, targets, number)
        if self.accumulators:
            sums = [a + value for a, value in zip(self.accumulators, sums, strict=True)]
            for accumulator in self.accumulators:  # for the next step
                accumulator.assign(tf.zeros_like(accumulator))
        compression = self.experiment.update.compression
        count = len(self.state.trainable)
        if self.is_alone:
            return self._apply(sums, rate)
        return self._apply(
            [
                replicas.all_reduce(s, f"sum{i}", compression if i < count else "none")
                for i, s in enumerate(sums)
            ],
            rate,
        )

    @tf.function
    def _leaf(self, inputs: tf.Tensor, targets: tf.Tensor, number: tf.Tensor) -> Sums:
        return self._sums(inputs, targets, number)

    @tf.function
    def _add(self, left: Sums, right: Sums) -> Sums:
        return [a + b for a, b in zip(left, right, strict=True)]

    @tf.function
    def _finish_exact(self, subtrees: list[Sums], rate: tf.Tensor) -> dict[str, tf.Tensor]:
        sums = []
        for i, values in enumerate(zip(*subtrees, strict=True)):
            gathered = replicas.all_gather(tf.stack(values), f"subtrees{i}")
            each = tf.unstack(gathered, num=len(self.nodes))
            sums.append(tree.total(self.nodes, each, tf.add))
        return self._apply(sums, rate)

    def _sums(self, inputs: tf.Tensor, targets: tf.Tensor, number: tf.Tensor) -> Sums:
        """One micro-batch's part of the step: already divided by G, so parts add up."""
        e, state = self.experiment, self.state
        smoothing = e.optimization.label_smoothing
        seed = tf.stack([tf.cast(e.seed, tf.int64), number])
        seed = tf.random.experimental.stateless_fold_in(tf.cast(seed, tf.int32), 0)
        with tf.GradientTape() as tape, blocks.recording() as statistics:
            logits = tf.cast(blocks.forward(state.blocks, inputs, True, seed), tf.float32)
            smooth = targets * (1 - smoothing) + smoothing / targets.shape[-1]
            losses = tf.nn.softmax_cross_entropy_with_logits(smooth, logits)  # [b]
            loss = tf.reduce_sum(losses) / e.global_batch
            scaled = loss * state.loss_scale
        gradients = tape.gradient(
            scaled, state.trainable, unconnected_gradients=tf.UnconnectedGradients.ZERO
        )
        correct = tf.equal(tf.argmax(logits, -1), tf.argmax(targets, -1))
        metrics = tf.stack([loss, tf.reduce_sum(tf.cast(correct, tf.float32))])
        return [*gradients, *(s.value for s in statistics), metrics]

    def _apply(self, sums: Sums, rate: tf.Tensor) -> dict[str, tf.Tensor]:
        """Moves the state by the sums over all micro-batches of all processes."""
        e, o, state = self.experiment, self.experiment.optimization, self.state
        count = len(state.trainable)
        gradients = sums[:count]
        if e.precision == "float16":
            gradients = [g / state.loss_scale for g in gradients]
        loss, correct = tf.unstack(sums[-1])
        norm = tf.linalg.global_norm(gradients)
        finite = tf.math.is_finite(norm) & tf.math.is_finite(loss)

        def move() -> tf.Tensor:
            optimization.update(o, state.trainable, state.momentum, gradients, rate)
            for (variable, momentum), total in zip(state.statistics, sums[count:-1], strict=True):
                mean = total / e.num_micro_batches
                variable.assign(momentum * variable + (1 - momentum) * mean)
            for name, average in state.average.items():
                average.assign_sub((1 - o.ema_decay) * (average - state.weights[name]))
            return tf.constant(True)

        tf.cond(finite, move, lambda: tf.constant(False))
        skipped = ~finite & (state.loss_scale > 1)  # the next step runs at half the scale
        if e.precision == "float16":
            self._rescale(finite)
        return {
            "loss": loss,
            "accuracy": correct / e.global_batch,
            "gradient_norm": norm,
            "finite": finite,
            "skipped": skipped,
        }

    def _rescale(self, finite: tf.Tensor) -> None:
        """Dynamic loss scaling: halve on overflow, double after GROWTH_STEPS without."""
        scale, good = self.state.loss_scale, self.state.good_steps
        grown = finite & (good + 1 >= GROWTH_STEPS)
        scale.assign(tf.where(finite, tf.where(grown, scale * 2, scale), tf.maximum(scale / 2, 1)))
        good.assign(tf.where(finite & ~grown, good + 1, 0))
