r"""Fixes the order of summation: one binary tree over the V micro-batches of a step.

Floating-point addition is not associative, so "the sum over V micro-batches" has one
value only if the order of additions is fixed. Node (start, length) is the sum of
micro-batches [start, start + length), length a power of two that divides start:

    V = 6        (0,4)         (4,2)       roots: the binary digits of V,
                /     \        /   \       added left to right
            (0,2)    (2,2)  (4,1) (5,1)
            /   \    /   \
         (0,1)(1,1)(2,1)(3,1)

A process adds up the whole subtrees that lie inside its contiguous run of micro-batches;
siblings that lie in two processes meet after an all-gather. Either way the same pairs of
numbers are added, so the root has the same bits for every number of processes.
"""

from collections.abc import Callable, Iterable
from typing import TypeVar

Value = TypeVar("Value")
Node = tuple[int, int]  # (start, length)


def merge(
    nodes: list[tuple[Node, Value]], node: Node, value: Value, add: Callable[[Value, Value], Value]
) -> None:
    """Appends a node to an ordered list, and adds siblings together as long as there are any."""
    while nodes:
        (start, length), left = nodes[-1]
        if length != node[1] or start % (2 * length) or start + length != node[0]:
            break
        nodes.pop()
        node, value = (start, 2 * length), add(left, value)
    nodes.append((node, value))


def subtrees(micro_batches: Iterable[int]) -> list[Node]:
    """Returns the maximal nodes inside a contiguous run of micro-batches, left to right."""
    nodes: list[tuple[Node, None]] = []
    for place in micro_batches:
        merge(nodes, (place, 1), None, lambda left, right: None)
    return [node for node, _ in nodes]


def total(
    nodes: Iterable[Node], values: Iterable[Value], add: Callable[[Value, Value], Value]
) -> Value:
    """Sums over all micro-batches, from the subtrees of all processes in rank order."""
    merged: list[tuple[Node, Value]] = []
    for node, value in zip(nodes, values, strict=True):
        merge(merged, node, value, add)
    (_, result), *rest = merged
    for _, value in rest:
        result = add(result, value)
    return result
