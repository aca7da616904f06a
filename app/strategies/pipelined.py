"""Takes a training step on several stages: micro-batches stream through the parts of the model.

    stage 0   F0 F1 .. B0 F2 B1 .. B2 | all-reduce of its gradients | move
    stage 1      F0 B0 F1 B1 F2 B2 |  all-reduce of its gradients   | move
                                    each starts when its stage is ready; one norm for all

The sums are those of `training/step.py` on the same examples; the schedule changes no number.
"""

from __future__ import annotations

from typing import Any

import tensorflow as tf

from app.config import Experiment, Layout
from app.parallel import placement, schedule
from app.parallel.pipeline import Pipeline, Span
from app.parallel.schedule import Task
from app.training import step_sums, update
from app.training import sums as summing
from app.training.differentiation import Differentiation, MicroBatch, Record
from app.training.exchange import nbytes
from app.training.state import State
from app.training.step import Batches, Step
from app.training.sums import InPlaceSums, TreeSums


class PipelinedStep(Step):
    """A step of a model that is cut in stages.

    Attributes:
        spans: None, or a list to which the time of each task is added.
        most_alive: of each part, the most micro-batches that were alive at once.
    """

    def __init__(
        self, experiment: Experiment, layout: Layout, state: State, micro_batches: range
    ) -> None:
        self.experiment, self.layout, self.state = experiment, layout, state
        self.micro_batches = micro_batches
        count = len(state.parts)
        orders = schedule.orders(layout.schedule, layout.stages, layout.chunks, len(micro_batches))
        # Where one micro-batch is alive, its backward follows at once: nothing is saved.
        recompute = [layout.recompute and schedule.most_alive(order) > 1 for order in orders]
        self.parts = [
            Differentiation(
                experiment, state, i, is_compiled=True, recompute=recompute[i % layout.stages]
            )
            for i in range(count)
        ]
        self.pipeline = Pipeline(orders, count)
        self.spans: list[Span] | None = None
        self.most_alive = [0] * count
        self.largest: list[Any] = [None] * count  # specs of (input, MicroBatch) of each part
        self.sums = [self._make_sums(i) for i in range(count)]
        self.norms = [tf.function(update.norms, autograph=False) for _ in range(count)]
        self.move = [tf.function(update.move, autograph=False) for _ in range(count)]
        self.is_compiled = False

    def __call__(self, step: int, batches: Batches, rate: float) -> dict[str, tf.Tensor]:
        """See base class."""
        e, state = self.experiment, self.state
        self._compile()
        scale = state.loss_scale.read_value()
        work = _Work(self, step * e.num_micro_batches, batches, scale)
        sums = {part: s for held in self.pipeline(work, self.spans) for part, s in held.items()}
        ordered = [sums[i] for i in range(len(self.parts))]
        each = [norms for _, norms in ordered]
        metrics = step_sums.judge(e, each, ordered[-1][0][-1], scale)
        if metrics["finite"]:
            count = tf.cast(state.updates + 1, tf.float32)
            learning_rate = tf.constant(rate, tf.float32)

            def move(stage: int) -> None:
                for i in self.held_by(stage):
                    part = state.parts[i]
                    with tf.device(part.device):
                        self.move[i](
                            e, part, *ordered[i], learning_rate, count,
                            metrics["gradient_norm"], metrics["scale"],
                        )  # fmt: skip

            self.pipeline.each(move)
        update.settle(e, state, metrics["finite"])
        for held in self.sums:
            held.settle(metrics["finite"])
        return metrics

    def _compile(self) -> None:
        """Compiles each part for any length that the data may have, before the first step."""
        specs = self.state.batch_specs(self.experiment.micro_batch)
        if specs is None or self.is_compiled:
            return
        self.is_compiled, (x, targets) = True, specs
        scalar = tf.TensorSpec([])
        weight = scalar if self.experiment.objective.is_weighted else None
        for part in self.parts:
            own = targets if part.is_last else None
            micro_batch = MicroBatch(tf.TensorSpec([], tf.int64), own, scalar, weight)
            with tf.device(part.part.device):
                compiled = part.run.get_concrete_function(x, micro_batch)
            x = tf.nest.map_structure(
                lambda y: tf.TensorSpec(y.shape, y.dtype), compiled.structured_outputs[0]
            )

    @property
    def bytes_sent(self) -> float:
        """See base class."""
        return sum(s.bytes_sent for s in self.sums)

    def table(self) -> list[dict[str, Any]]:
        """Returns a row per part and device: its blocks, and the bytes that it holds there.

        Activations are those of the most micro-batches alive at once, each as large as the
        largest seen; with recomputation only their inputs, and all activations of one.
        """
        rows = []
        for i, part in enumerate(self.state.parts):
            run = [block.name for block in part.blocks]
            activations = self._activation_bytes(i)
            slots = [v for slot in part.slots for v in slot]
            for device in sorted({v.device for v in part.variables}):
                weights = [v for v in part.variables if v.device == device]
                rows.append(
                    {
                        "stage": self.state.placement.stage(i),
                        "device": device,
                        "blocks": run[0] if len(run) == 1 else f"{run[0]} to {run[-1]}",
                        "parameters": _elements([v for v in part.trainable if v.device == device]),
                        "weight_bytes": sum(map(nbytes, weights)),
                        "optimizer_bytes": sum(nbytes(v) for v in slots if v.device == device),
                        "micro_batches_alive": self.most_alive[i],
                        "activation_bytes": activations.get(device, 0),
                    }
                )
        return rows

    def _activation_bytes(self, index: int) -> dict[str, int]:
        """Returns the most bytes that a part's activations take, by device."""
        part, specs, alive = self.parts[index], self.largest[index], self.most_alive[index]
        if specs is None:  # no step was run
            return {}
        one = part.activation_bytes(*specs)
        if not part.recompute:
            return {device: alive * size for device, size in one.items()}
        inputs = sum(map(nbytes, tf.nest.flatten(specs[0])))
        device = part.part.device
        return one | {device: one.get(device, 0) + alive * inputs}

    def held_by(self, stage: int) -> range:
        """Returns the parts of a stage."""
        return range(stage, len(self.parts), self.layout.stages)

    def _make_sums(self, index: int) -> InPlaceSums | TreeSums:
        layout, parts = self.layout, self.state.parts
        lengths = [len(p.trainable) + len(p.statistics) for p in parts]
        lengths[-1] += 1  # the loss and metrics
        start = sum(lengths[:index])  # names on the wire do not depend on the cut
        names = [f"sum{start + k}" for k in range(lengths[index])]
        return summing.make(self.experiment, layout, parts[index], names, self.micro_batches)


class _Work:
    """The tasks of one step."""

    def __init__(self, step: PipelinedStep, first: int, batches: Batches, scale: tf.Tensor) -> None:
        self.step, self.first, self.batches, self.scale = step, first, batches, scale
        self.micro_batches: dict[int, MicroBatch] = {}
        self.records: list[dict[int, Record]] = [{} for _ in step.parts]

    def forward(self, task: Task, x: Any) -> Any:
        part = self.step.parts[task.part]
        if task.part == 0:
            x, targets, _ = next(self.batches)
            number = tf.constant(self.first + self.step.micro_batches[task.micro_batch], tf.int64)
            weight = step_sums.weight(self.step.experiment, targets)
            micro_batch = MicroBatch(number, targets, self.scale, weight)
            self.micro_batches[task.micro_batch] = micro_batch
        records = self.records[task.part]
        with tf.device(part.part.device):
            x = tf.nest.map_structure(tf.identity, x)  # to this device, once
            micro_batch = self._micro_batch(task)
            y, records[task.micro_batch] = part.forward(x, micro_batch)
        step = self.step
        step.most_alive[task.part] = max(step.most_alive[task.part], len(records))
        specs, largest = tf.nest.map_structure(_spec, (x, micro_batch)), step.largest[task.part]
        if largest is None or _elements(specs) > _elements(largest):
            step.largest[task.part] = specs
        return placement.to_host(part.part.device, y)

    def backward(self, task: Task, gradient: Any) -> Any:
        part, record = self.step.parts[task.part], self.records[task.part].pop(task.micro_batch)
        with tf.device(part.part.device):
            if gradient is not None:
                gradient = [tf.identity(g) for g in gradient]
            gradient, values = part.backward(record, self._micro_batch(task), gradient)
            sums = self.step.sums[task.part]
            sums.hold(self.step.micro_batches[task.micro_batch], sums.accumulate(values))
        return placement.to_host(part.part.device, gradient)

    def finish(self, stage: int) -> dict[int, tuple[list[tf.Tensor], tf.Tensor]]:
        """Returns for each part of the stage its sums over all processes and gradients' norms."""
        result = {}
        for i in self.step.held_by(stage):
            part = self.step.state.parts[i]
            # A stage server has no Horovod.
            with tf.device(placement.collective_device(part.device)):
                sums = self.step.sums[i].total(self.step.sums[i].held())
            with tf.device(part.device):
                result[i] = sums, self.step.norms[i](part, sums)
        return result

    def _micro_batch(self, task: Task) -> MicroBatch:
        """Returns the task's micro-batch; without the targets, which only the last part needs."""
        whole = self.micro_batches[task.micro_batch]
        return whole if self.step.parts[task.part].is_last else whole._replace(targets=None)


def _spec(tensor: tf.Tensor | None) -> tf.TensorSpec | None:
    return None if tensor is None else tf.TensorSpec(tensor.shape, tensor.dtype)


def _elements(specs: Any) -> int:
    return sum(spec.shape.num_elements() for spec in tf.nest.flatten(specs) if spec is not None)
