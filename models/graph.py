"""Cuts a functional Keras model into blocks, where the fewest tensors cross.

    input -> conv -> bn -> relu ----> conv -> bn -> add -> relu -> pool -> dense
                           |                         |
                           +-------- 2 cross --------+      1 crosses everywhere else

A block is a run of the model's operations in topological order. What crosses from one block to the
next is a tensor or a tuple of such: skip connections and inputs that are used later travel along,
and Keras' masks with them. An operation need not be a layer (`x + y`, `keras.ops`); nested
functional models are taken apart into their operations.

Where Keras keeps the graph is private to it: only `_trace` and `is_functional` read it, and a test
pins what they find.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import keras
import tensorflow as tf

LARGEST = 1 / 8  # of a model's operations: a larger segment is cut again, if it can be


@dataclass(frozen=True)
class Step:
    """One call of an operation in a model's graph.

    Attributes:
        operation: a Keras layer, or an operation without state.
        arguments: of the call, with symbolic tensors in it.
        reads: the number of each symbolic tensor in the arguments, by its id.
        writes: the number of each tensor that the call returns.
    """

    operation: Any
    arguments: Any
    reads: Mapping[int, int]
    writes: tuple[int, ...]

    def __call__(self, tensors: Mapping[int, Any], training: bool | None) -> list[Any]:
        """Calls the operation, as Keras calls it in a functional model; returns its outputs."""
        filled = {key: tensors[number] for key, number in self.reads.items()}
        args, kwargs = self.arguments.fill_in(filled)
        if training is not None and isinstance(self.operation, keras.Layer):
            kwargs = kwargs | {"training": training}
        return list(keras.tree.flatten(self.operation(*args, **kwargs)))

    @property
    def weights(self) -> list[keras.Variable]:
        """Variables that the call reads."""
        own = self.operation.weights if isinstance(self.operation, keras.Layer) else []
        given = keras.tree.flatten((self.arguments.args, self.arguments.kwargs))
        return [*own, *(value for value in given if isinstance(value, keras.Variable))]


@dataclass(frozen=True)
class Graph:
    """A model's calls in topological order.

    Attributes:
        steps: the calls; inputs are none.
        inputs: the number of each input tensor.
        outputs: the number of each output tensor.
    """

    steps: tuple[Step, ...]
    inputs: tuple[int, ...]
    outputs: tuple[int, ...]


def is_functional(operation: Any) -> bool:
    """Returns whether an operation is a model that its graph describes completely."""
    if isinstance(operation, keras.Sequential):
        has_graph = operation.built and operation._functional is not None
        return bool(has_graph and type(operation).call is keras.Sequential.call)
    is_graph = isinstance(operation, keras.Model) and isinstance(operation, keras.Function)
    return is_graph and type(operation).call.__qualname__ == "Functional.call"


def graph_of(model: keras.Model) -> Graph:
    """Returns the graph of a functional or a built sequential model, nested models taken apart."""
    numbers, steps = itertools.count(), list[Step]()
    inputs = tuple(next(numbers) for _ in model.inputs)
    outputs = _trace(model, inputs, numbers, steps)
    return Graph(tuple(steps), inputs, outputs)


def unwrapped(model: Any) -> Any:
    """Returns the functional model of a built sequential one; others as they are."""
    return model._functional if isinstance(model, keras.Sequential) else model


def _trace(
    model: Any, inputs: Sequence[int], numbers: Iterator[int], steps: list[Step]
) -> tuple[int, ...]:
    """Adds a model's steps to a list; returns the numbers of its outputs."""
    model = unwrapped(model)
    known = dict(zip(map(id, model.inputs), inputs, strict=True))
    by_depth = model._nodes_by_depth  # the largest depth is farthest from the outputs
    for node in (node for depth in sorted(by_depth, reverse=True) for node in by_depth[depth]):
        if node.is_input or all(id(tensor) in known for tensor in node.outputs):
            continue
        given = _inputs_of_nested(node)
        writes: tuple[int, ...]
        if given is not None:
            writes = _trace(node.operation, [known[id(t)] for t in given], numbers, steps)
        else:
            reads = {id(tensor): known[id(tensor)] for tensor in node.input_tensors}
            writes = tuple(next(numbers) for _ in node.outputs)
            steps.append(Step(node.operation, node.arguments, reads, writes))
        known |= zip(map(id, node.outputs), writes, strict=True)
    return tuple(known[id(tensor)] for tensor in model.outputs)


def _inputs_of_nested(node: Any) -> list[Any] | None:
    """Returns what a nested model is given, in the order of its inputs.

    None for what stays one step: other operations, and models that would change their inputs or
    are given more, such as a mask.
    """
    model, arguments = node.operation, node.arguments
    kwargs = {name for name, value in arguments.kwargs.items() if value is not None}
    if not is_functional(model) or len(arguments.args) != 1 or kwargs - {"training"}:
        return None
    given, wanted = arguments.args[0], unwrapped(model).input
    if isinstance(given, dict) or isinstance(wanted, dict):
        if (
            not (isinstance(given, dict) and isinstance(wanted, dict))
            or given.keys() != wanted.keys()
        ):
            return None
        given = {name: given[name] for name in wanted}
    flat = keras.tree.flatten(given)
    alike = len(flat) == len(model.inputs) and all(
        isinstance(a, keras.KerasTensor) and a.dtype == b.dtype and len(a.shape) == len(b.shape)
        for a, b in zip(flat, model.inputs, strict=True)
    )
    return list(flat) if alike else None


def cut(graph: Graph) -> list[int]:
    """Returns where to cut: each block begins at one of these steps, the first at 0.

    At all positions that the fewest tensors cross, then likewise inside each segment that
    has more than LARGEST of all operations. Never between two uses of a weight.
    """
    crossing = [len(numbers) for numbers in crossings(graph)]
    count = len(graph.steps)
    allowed = set(range(1, count))
    uses: dict[int, list[int]] = {}
    for place, step in enumerate(graph.steps):
        for variable in step.weights:
            uses.setdefault(id(variable), []).append(place)
    for places in uses.values():
        allowed -= set(range(places[0] + 1, places[-1] + 1))

    def inside(begin: int, end: int) -> list[int]:
        places = [place for place in range(begin + 1, end) if place in allowed]
        if not places or ((begin, end) != (0, count) and end - begin <= count * LARGEST):
            return []
        fewest = min(crossing[place] for place in places)
        found = [place for place in places if crossing[place] == fewest]
        bounds = itertools.pairwise([begin, *found, end])
        return sorted([*found, *(place for a, b in bounds for place in inside(a, b))])

    return [0, *inside(0, count)]


def crossings(graph: Graph) -> list[list[int]]:
    """Returns for each position the tensors that cross it: made before, and used after it.

    Position p is before step p; the last one is the end of the model, which its outputs cross.
    """
    last = {number: -1 for number in graph.inputs}
    for place, step in enumerate(graph.steps):
        last |= {number: place for number in step.reads.values()}
    last |= {number: len(graph.steps) for number in graph.outputs}
    made = {number: -1 for number in graph.inputs}
    made |= {n: place for place, step in enumerate(graph.steps) for n in step.writes}
    return [
        [number for number in made if made[number] < place <= last.get(number, -1)]
        for place in range(len(graph.steps) + 1)
    ]


class Segment(keras.layers.Layer):
    """A run of a model's steps: a block.

    Args:
        steps: of the model, in order.
        reads: numbers of the tensors that come in.
        writes: numbers of the tensors that go out.
        entry: of the first segment: makes the model's input tensors of the data's inputs.
        leave: of the last segment: makes the model's outputs of its output tensors.
        name: of the block.

    Attributes:
        kind: names of the operations' types; blocks of one kind and shape cost the same.
    """

    def __init__(
        self,
        steps: Sequence[Step],
        reads: Sequence[int],
        writes: Sequence[int],
        entry: Callable[[Any], list[tf.Tensor]] | None,
        leave: Callable[[list[tf.Tensor]], Any] | None,
        name: str,
    ) -> None:
        super().__init__(autocast=False, name=name)  # each layer inside casts its own inputs
        self._steps, self._reads, self._writes = tuple(steps), tuple(reads), tuple(writes)
        self._entry, self._leave = entry, leave
        layers = [step.operation for step in steps if isinstance(step.operation, keras.Layer)]
        self.nested = list({id(layer): layer for layer in layers}.values())
        self.kind = " ".join(type(step.operation).__name__ for step in steps)
        self.built = True

    def call(self, x: Any, training: bool = False) -> Any:
        """Computes what crosses to the next segment; the last one, the model's outputs."""
        given, masks = (self._entry(x), {}) if self._entry else _unpacked(x)
        given = _together(given)
        for place, mask in masks.items():
            given[int(place)]._keras_mask = mask  # where Keras' layers look for it
        tensors = dict(zip(self._reads, given, strict=True))
        for step in self._steps:
            tensors |= zip(step.writes, step(tensors, training), strict=True)
        found = [tensors[number] for number in self._writes]
        masks = {str(i): mask for i, t in enumerate(found) if (mask := _mask_of(t)) is not None}
        found = _together(found)
        if self._leave is not None:
            return self._leave(found)
        if masks:
            return {"tensors": tuple(found), "masks": masks}
        return found[0] if len(found) == 1 else tuple(found)


def segments(
    model: keras.Model,
    entry: Callable[[Any], list[tf.Tensor]],
    leave: Callable[[list[tf.Tensor]], Any],
) -> list[keras.Layer]:
    """Cuts a model into blocks.

    Args:
        model: functional, or sequential and built.
        entry: makes the model's input tensors of the data's inputs.
        leave: makes the model's outputs of its output tensors.
    """
    graph = graph_of(model)
    starts, crossing = cut(graph), crossings(graph)
    found: list[keras.Layer] = []
    names: set[str] = set()
    for begin, end in itertools.pairwise([*starts, len(graph.steps)]):
        steps, is_last = graph.steps[begin:end], end == len(graph.steps)
        name = steps[0].operation.name
        name = name if name not in names else f"{name}_at{begin}"  # a layer may be called twice
        names.add(name)
        found.append(
            Segment(
                steps,
                crossing[begin] if begin else graph.inputs,
                graph.outputs if is_last else crossing[end],
                entry if begin == 0 else None,
                leave if is_last else None,
                name,
            )
        )
    return found


def _mask_of(tensor: tf.Tensor) -> tf.Tensor | None:
    return getattr(tensor, "_keras_mask", None)


def _unpacked(x: Any) -> tuple[list[tf.Tensor], dict[str, tf.Tensor]]:
    """Returns what a segment passed on: tensors, and the masks of some of them by their place."""
    if isinstance(x, dict):
        return list(x["tensors"]), x["masks"]
    return list(x) if isinstance(x, (tuple, list)) else [x], {}


def _together(tensors: Sequence[tf.Tensor]) -> list[tf.Tensor]:
    """Returns the tensors unchanged; their gradients come back all at once.

    So a gradient that several operations contribute to is added up in one order, whether
    the next segment is part of the same graph or on another device.
    """
    found = list(tensors)
    places = [i for i, tensor in enumerate(found) if tensor.dtype.is_floating]
    if places:
        for i, tensor in zip(places, tf.identity_n([found[i] for i in places]), strict=True):
            found[i] = tensor
    return found
