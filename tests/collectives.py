"""Checks Horovod's operations for TensorFlow against NumPy, on any number of ranks.

    horovodrun -np 3 python tests/collectives.py
    python tests/collectives.py allreduce join      # on one rank, those whose names begin so

It is what to run first on another TensorFlow, another build of Horovod or another machine, so it
imports those two and NumPy, nothing of this project. Every operation is tried with every type that
Horovod registers it for, over all ranks and over process sets that were made at the start
("static") and later ("dynamic"). Every rank compares what it gets with what NumPy makes of all
ranks' inputs, which differ by rank and by place. A check that does not end is ended, by name.
Horovod's optimizers, layers and callbacks for Keras are not among them: Keras 3 is not theirs.
"""

from __future__ import annotations

import contextlib
import faulthandler
import functools
import itertools
import os
import re
import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from typing import Any

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")

import horovod
import horovod.tensorflow as hvd
import numpy as np
import tensorflow as tf

LIMIT = 60  # seconds that a check may take
# What Horovod registers its operations for: mpi_ops.cc.
REDUCED = ("uint8", "int8", "int32", "int64", "float16", "float32", "float64")
SCATTERED = ("int32", "int64", "float16", "float32", "float64")
INPLACE = (*REDUCED, "bool")
MOVED = (*INPLACE, "uint16", "int16")
FLOATS = ("float16", "float32", "float64")
PRECISION = {"float16": 2e-3, "float32": 1e-6, "float64": 1e-12}
OPS = {
    "sum": hvd.Sum, "average": hvd.Average, "min": hvd.Min, "max": hvd.Max,
    "product": hvd.Product,
}  # fmt: skip
UFUNCS = {
    "sum": np.add, "average": np.add, "min": np.minimum, "max": np.maximum,
    "product": np.multiply,
}  # fmt: skip
ERRORS = (tf.errors.OpError, ValueError, TypeError, NotImplementedError)

CHECKS: list[Check] = []
FACTS: dict[str, str] = {}  # what may be so or otherwise, and was found
WRONG: list[str] = []  # what the check that runs has found so far


class Check:
    """One call of a check's function, with the values of its axes.

    Over process sets only float32 is tried, of several types.
    """

    def __init__(self, function: Callable, values: tuple, sets: bool, least: int) -> None:
        self.name = " ".join([function.__name__, *map(str, values)])
        self.call = functools.partial(function, *values)
        self.sets = sets and not any(v in MOVED and v != "float32" for v in values)
        self.least = least


def check(*axes: Sequence, sets: bool = True, least: int = 1) -> Callable:
    """Registers a function as a check for every combination of its arguments' values.

    A tuple is the values of several arguments. Without `sets` it is tried over all ranks only;
    with `least`, from so many ranks on.
    """

    def register(function: Callable) -> Callable:
        for combination in itertools.product(*axes):
            values = [v if isinstance(v, tuple) else (v,) for v in combination]
            CHECKS.append(Check(function, tuple(itertools.chain(*values)), sets, least))
        return function

    return register


# Process sets: a check reads which one it is about.


class Scope:
    """The process set that is checked, and the others."""

    current = hvd.global_process_set
    static: tuple[hvd.ProcessSet, ...] = ()
    dynamic: tuple[hvd.ProcessSet, ...] = ()


def group() -> hvd.ProcessSet:
    """Returns the process set that is checked."""
    return Scope.current


def ranks() -> list[int]:
    """Returns the ranks in it."""
    return list(group().ranks)


def place() -> int:
    """Returns this rank's place in it."""
    return ranks().index(hvd.rank())


def start() -> None:
    """Starts Horovod, with two process sets if it has ranks for them."""
    os.environ.setdefault("HOROVOD_DYNAMIC_PROCESS_SETS", "1")
    os.environ.setdefault("HOROVOD_FUSION_THRESHOLD", str(2**20))  # bytes, which `large` exceeds
    names = ("HOROVOD_SIZE", "OMPI_COMM_WORLD_SIZE", "PMI_SIZE")
    size = int(next(filter(None, map(os.environ.get, names)), 1))
    if size > 1:
        Scope.static = (hvd.ProcessSet([0]), hvd.ProcessSet(range(1, size)))
    hvd.init(process_sets=list(Scope.static))
    assert hvd.size() == size, f"expected {size} ranks, got {hvd.size()}"
    if gpus := tf.config.list_physical_devices("GPU"):
        tf.config.set_visible_devices(gpus[hvd.local_rank() % len(gpus)], "GPU")


def scopes() -> Iterator[str]:
    """Moves through the process sets, by name: in each scope every rank is in one set."""
    Scope.current = hvd.global_process_set
    yield ""
    if hvd.size() == 1:
        return
    Scope.current = next(s for s in Scope.static if s.included())
    yield "in a static process set"
    for process_set in Scope.static:
        assert hvd.remove_process_set(process_set)
    # Ranks 0 and 2 of 3: a rank's place in the set is not its number.
    Scope.dynamic = tuple(hvd.add_process_set(range(i, hvd.size(), 2)) for i in range(2))
    Scope.current = next(s for s in Scope.dynamic if s.included())
    yield "in a dynamic process set"


# Inputs and expected values.

# Graphs without AutoGraph, which takes longer than the checks.
compiled = functools.partial(tf.function, autograph=False)


def value(rank: int, dtype: str, *shape: int, below: int = 9) -> np.ndarray:
    """Returns a rank's input: integers that differ by rank and place, quarters of them for floats.

    They are less than `below`, half of those of signed types negative, so that sums and products
    of some ranks are exact in every type.
    """
    numbers = (7 * np.arange(np.prod(shape, dtype=int)) + 4 * rank + 1) % below
    if dtype == "bool":
        numbers = numbers % 3 == 0
    elif not dtype.startswith("u"):
        numbers = numbers - below // 2
    return (numbers / 4 if dtype in FLOATS else numbers).astype(dtype).reshape(shape)


def values(dtype: str, *shape: int, below: int = 9) -> list[np.ndarray]:
    """Returns the inputs of all ranks, of one shape."""
    return [value(rank, dtype, *shape, below=below) for rank in ranks()]


def ragged(dtype: str, *shape: int) -> list[np.ndarray]:
    """Returns the inputs of all ranks, the first of which has no rows, the next one and so on."""
    return [value(rank, dtype, i, *shape, below=100) for i, rank in enumerate(ranks())]


def own(given: Sequence) -> Any:
    """Returns this rank's of the inputs, as a tensor or tensors."""
    return tf.nest.map_structure(tf.constant, given[place()])


def scaled(array: np.ndarray, factor: float) -> np.ndarray:
    """Multiplies; integers are cut to integers."""
    return array if factor == 1 else (array.astype("float64") * factor).astype(array.dtype)


def reduced(
    op: str, given: Sequence[np.ndarray], prescale: float = 1, postscale: float = 1
) -> np.ndarray:
    """Returns what a reduction of all ranks' inputs is."""
    stacked = np.stack([scaled(array, prescale) for array in given])
    total = UFUNCS[op].reduce(stacked, dtype=stacked.dtype)
    return scaled(total, postscale / len(given) if op == "average" else postscale)


def part(array: np.ndarray) -> np.ndarray:
    """Returns the rows that a reducescatter gives this rank: the first ranks have one more."""
    return np.array_split(array, len(ranks()))[place()]


def described(array: np.ndarray) -> str:
    shown = np.array2string(array, threshold=40, separator=",").replace("\n", "")
    return f"{array.dtype} {list(array.shape)} {shown}"


def said(error: Exception) -> str:
    """Returns an error's kind and message, without what TensorFlow adds to say where."""
    text = re.sub(r"\{\{.*?\}\}|\[Op:.*", "", str(error))
    return f"{type(error).__name__}: {' '.join(text.split())}"[:500]


def expect(got: Any, expected: Any, note: str = "") -> None:
    """Compares a result with what NumPy computed: structure, type, shape, every element.

    What is wrong is noted, and the check goes on: this rank stays in step with the others.
    """
    if isinstance(expected, list | tuple):
        if len(got) != len(expected):
            WRONG.append(f"{note}expected {len(expected)} tensors, got {len(got)}")
            return
        for i, (one, other) in enumerate(zip(got, expected, strict=True)):
            expect(one, other, f"{note}tensor {i + 1} of {len(expected)}: ")
        return
    got, expected = np.asarray(got), np.asarray(expected)
    if got.dtype == expected.dtype and got.shape == expected.shape:
        precision = PRECISION.get(str(got.dtype))
        is_close = functools.partial(np.isclose, rtol=precision, atol=precision)
        differ = ~is_close(got, expected) if precision else got != expected
        if not differ.any():
            return
        at = [int(i) for i in np.argwhere(differ)[0]]
        note += f"{differ.sum()} of {differ.size} elements differ, the first at {at}: "
    WRONG.append(f"{note}expected {described(expected)}, got {described(got)}")


def refused(function: Callable[[], Any], because: str = "") -> None:
    """Expects an error that says why, on this rank."""
    try:
        got = function()
    except ERRORS as error:
        if because.lower() not in str(error).lower():
            WRONG.append(f"expected an error that says {because!r}, got {said(error)}")
    else:
        WRONG.append(f"expected an error that says {because!r}, got {got!r}")


# Reductions.


@check(OPS, REDUCED)
def allreduce(op: str, dtype: str) -> None:
    given = values(dtype, 2, 3)
    expect(hvd.allreduce(own(given), op=OPS[op], process_set=group()), reduced(op, given))


@check(("sum", "average", "max"), REDUCED)
def allreduce_scaled(op: str, dtype: str) -> None:
    given = values(dtype, 7)
    factors = {"prescale_factor": 0.5, "postscale_factor": 3.0}
    got = hvd.allreduce(own(given), op=OPS[op], process_set=group(), **factors)
    expect(got, reduced(op, given, 0.5, 3.0))


@check([[], [1], [17], [2, 3, 4], [1, 1, 1, 1, 5]])
def allreduce_shape(shape: list[int]) -> None:
    given = values("float32", *shape)
    expect(hvd.allreduce(own(given), process_set=group()), reduced("average", given))


@check(FLOATS)
def allreduce_float16_on_the_wire(dtype: str) -> None:
    given = [array + np.asarray(1 / 3, dtype) for array in values(dtype, 5)]
    got = hvd.allreduce(
        own(given), op=hvd.Sum, compression=hvd.Compression.fp16, process_set=group()
    )
    halves = reduced("sum", [array.astype("float16") for array in given])
    if got.dtype != dtype:
        WRONG.append(f"expected {dtype}, got {got.dtype}")
    expect(tf.cast(got, "float16"), halves)


@check(OPS, REDUCED)
def grouped_allreduce(op: str, dtype: str) -> None:
    given = [values(dtype, *shape) for shape in ((2, 3), (), (5,))]
    mine = [own(one) for one in given]
    got = hvd.grouped_allreduce(mine, op=OPS[op], process_set=group())
    expect(got, [reduced(op, one) for one in given])


@check(("sum", "average"), REDUCED)
def grouped_allreduce_scaled(op: str, dtype: str) -> None:
    given = [values(dtype, *shape) for shape in ((4,), (2, 2))]
    factors = {"prescale_factor": 3.0, "postscale_factor": 0.5}
    mine = [own(one) for one in given]
    got = hvd.grouped_allreduce(mine, op=OPS[op], process_set=group(), **factors)
    expect(got, [reduced(op, one, 3.0, 0.5) for one in given])


@check(("sum", "average"), SCATTERED)
def reducescatter(op: str, dtype: str) -> None:
    for rows in (2 * len(ranks()), 2 * len(ranks()) + 1, 1):  # even, uneven, none for some
        given = values(dtype, rows, 3)
        got = hvd.reducescatter(own(given), op=OPS[op], process_set=group())
        expect(got, part(reduced(op, given)), f"{rows} rows: ")


@check(("sum", "average"), SCATTERED)
def reducescatter_scaled(op: str, dtype: str) -> None:
    given = values(dtype, len(ranks()) + 1, 2)
    factors = {"prescale_factor": 3.0, "postscale_factor": 0.5}
    got = hvd.reducescatter(own(given), op=OPS[op], process_set=group(), **factors)
    expect(got, part(reduced(op, given, 3.0, 0.5)))


@check(("sum", "average"), SCATTERED)
def grouped_reducescatter(op: str, dtype: str) -> None:
    n = len(ranks())
    given = [values(dtype, *shape) for shape in ((n, 3), (2 * n + 1,), (1, 2))]
    mine = [own(one) for one in given]
    got = hvd.grouped_reducescatter(mine, op=OPS[op], process_set=group())
    expect(got, [part(reduced(op, one)) for one in given])
    factors = {"prescale_factor": 0.5, "postscale_factor": 3.0}
    got = hvd.grouped_reducescatter(mine, op=OPS[op], process_set=group(), **factors)
    expect(got, [part(reduced(op, one, 0.5, 3.0)) for one in given], "scaled: ")


@check(("sum", "average"), FLOATS)
def allreduce_sparse(op: str, dtype: str) -> None:
    """IndexedSlices are gathered, not added: rank 0 has none, and places repeat."""
    rows = ragged(dtype, 2)
    places = [np.arange(len(array)) * 2 % 3 for array in rows]
    slices = tf.IndexedSlices(own(rows), own(places), dense_shape=tf.constant([3, 2], "int64"))
    share = 1 if op == "sum" else len(ranks())
    expected = [np.concatenate(rows) / np.asarray(share, dtype), np.concatenate(places)]
    got = hvd.allreduce(slices, op=OPS[op], process_set=group())
    expect([got.values, got.indices], expected)
    dense = np.zeros([3, 2], dtype)
    np.add.at(dense, expected[1], expected[0])
    expect(tf.convert_to_tensor(got), dense, "as dense: ")
    both = hvd.grouped_allreduce([slices, own(values(dtype, 4))], op=OPS[op], process_set=group())
    expect([both[0].values, both[0].indices], expected, "grouped: ")
    expect(both[1], reduced(op, values(dtype, 4)), "dense beside it: ")


@check(sets=False)
def adasum() -> None:
    """Horovod has it with MPI or NCCL only, and for 2, 4, 8... ranks."""
    given = values("float32", 6)
    try:
        got = hvd.allreduce(own(given), op=hvd.Adasum)
    except ERRORS as error:
        FACTS["adasum"] = f"refused: {said(error)}"
        return
    FACTS["adasum"] = "works"
    while len(given) > 1:
        given = [adasum_of(*pair) for pair in zip(given[::2], given[1::2], strict=True)]
    expect(got, given[0])


def adasum_of(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    return (1 - a @ b / (2 * a @ a)) * a + (1 - a @ b / (2 * b @ b)) * b


# Moving.


@check(MOVED)
def allgather(dtype: str) -> None:
    for shape in ((2, 3), (1,)):
        given = values(dtype, *shape, below=100)
        expect(hvd.allgather(own(given), process_set=group()), np.concatenate(given))
    for shape in ((), (3, 2)):
        given = ragged(dtype, *shape)
        got = hvd.allgather(own(given), process_set=group())
        expect(got, np.concatenate(given), "ragged, no rows on the first rank: ")


@check(MOVED)
def grouped_allgather(dtype: str) -> None:
    given = [values(dtype, 2, 2, below=100), ragged(dtype, 3), ragged(dtype)[::-1]]
    got = hvd.grouped_allgather([own(one) for one in given], process_set=group())
    expect(got, [np.concatenate(one) for one in given])


@check(MOVED)
def broadcast(dtype: str) -> None:
    for shape in ((2, 3), ()):
        given = values(dtype, *shape, below=100)
        for root, expected in zip(ranks(), given, strict=True):
            got = hvd.broadcast(own(given), root_rank=root, process_set=group())
            expect(got, expected, f"root {root}: ")


@check((False, True))
def broadcast_variables(inplace: bool) -> None:
    """Variables of all types at once; in place by their names, which must differ."""
    given = [values(dtype, 2, 3, below=100) for dtype in (INPLACE if inplace else MOVED)]
    for i, root in enumerate(ranks()):
        variables = [tf.Variable(own(one), name=f"v{j}") for j, one in enumerate(given)]
        hvd.broadcast_variables(variables, root, process_set=group(), inplace=inplace)
        expect(variables, [one[i] for one in given], f"root {root}: ")


@check(INPLACE)
def broadcast_in_place(dtype: str) -> None:
    given = [values(dtype, *shape, below=100) for shape in ((2, 3), (4,))]
    for i, root in enumerate(ranks()):
        variables = [tf.Variable(own(one), name=f"v{j}") for j, one in enumerate(given)]
        got = hvd.broadcast_(variables, root, process_set=group())
        expect([*got, *variables], 2 * [one[i] for one in given], f"root {root}: ")


@check()
def objects() -> None:
    """Pickled ones, of another size on every rank."""
    given = [{"rank": rank, "text": "é" * 50 * rank, "array": (1.5, None)} for rank in ranks()]
    mine = given[place()]
    for root, expected in zip(ranks(), given, strict=True):
        got = hvd.broadcast_object(mine, root_rank=root, process_set=group())
        if got != expected:
            WRONG.append(f"broadcast_object, root {root}: expected {expected}, got {got}")
    got = hvd.allgather_object(mine, process_set=group())
    if got != given:
        WRONG.append(f"allgather_object: expected {given}, got {got}")


@check(MOVED)
def alltoall(dtype: str) -> None:
    n = len(ranks())
    for rows in (1, 2):
        given = values(dtype, rows * n, 3, below=100)
        blocks = [np.split(array, n)[place()] for array in given]
        expect(hvd.alltoall(own(given), process_set=group()), np.concatenate(blocks))


@check(MOVED)
def alltoall_splits(dtype: str) -> None:
    """Place i sends (i + 2 j) % 4 rows to place j: none to some."""
    n = len(ranks())
    splits = [[(i + 2 * j) % 4 for j in range(n)] for i in range(n)]
    given = [value(r, dtype, sum(s), 2, below=100) for r, s in zip(ranks(), splits, strict=True)]
    blocks = [
        np.split(array, np.cumsum(s)[:-1])[place()]
        for array, s in zip(given, splits, strict=True)
    ]  # fmt: skip
    got = hvd.alltoall(own(given), splits=splits[place()], process_set=group())
    received = np.asarray([s[place()] for s in splits], "int32")
    expect(got, [np.concatenate(blocks), received])


@check(sets=False)
def barrier() -> None:
    FACTS["barrier"] = "offered" if hasattr(hvd, "barrier") else "not offered: join, or allreduce"
    if hasattr(hvd, "barrier"):
        hvd.barrier()


@check()
def rank_and_size() -> None:
    """The operations that a graph reads them with."""
    got = [hvd.rank_op(), hvd.size_op(), hvd.local_rank_op(), hvd.local_size_op()]
    expected = [hvd.rank(), hvd.size(), hvd.local_rank(), hvd.local_size()]
    number = group().process_set_id
    got += [hvd.size_op(number), hvd.process_set_included_op(number)]
    expect(got, [np.int32(n) for n in [*expected, len(ranks()), 1]])
    expect(np.int64([group().rank(), group().size()]), np.int64([place(), len(ranks())]))


# Join: ranks that have nothing left count as zeros until all have joined.


def join_others() -> tf.Tensor:
    """Returns the last rank to join, once all have.

    In a graph of its own: Horovod 0.28.1 does not register its operation as stateful, so TensorFlow
    (2.18.1 and 2.21.0) takes it for a constant, which it computes once a graph, once in eager mode.
    """
    return compiled(lambda: hvd.join())()


def zeros_before(step: int, array: np.ndarray, rank: int) -> np.ndarray:
    """Returns what a rank counts as in a step, when rank r has r + 1 of them."""
    return array if rank >= step else np.zeros_like(array)


@check(("sum", "average"), REDUCED, sets=False)
def join(op: str, dtype: str) -> None:
    """Rank r takes r + 1 steps, twice: the second time they come from Horovod's cache."""
    for _ in range(2):
        for step in range(hvd.rank() + 1):
            given = [zeros_before(step, array, r) for r, array in enumerate(values(dtype, 3))]
            got = hvd.allreduce(own(given), op=OPS[op], name=f"join_{dtype}_{op}_{step}")
            expect(got, reduced(op, given), f"step {step}: ")
        expect(join_others(), np.int32(hvd.size() - 1), "the last to join: ")


@check(sets=False)
def join_grouped() -> None:
    for step in range(hvd.rank() + 1):
        given = [
            [zeros_before(step, array, r) for r, array in enumerate(values("float32", *shape))]
            for shape in ((3,), (2, 2))
        ]
        mine = [own(one) for one in given]
        got = hvd.grouped_allreduce(mine, op=hvd.Sum, name=f"join_grouped_{step}")
        expect(got, [reduced("sum", one) for one in given], f"step {step}: ")
    expect(join_others(), np.int32(hvd.size() - 1), "the last to join: ")


@check(sets=False, least=2)
def join_refuses_what_it_has_no_zeros_for() -> None:
    if hvd.rank():
        x = tf.ones([hvd.size()])
        refused(lambda: hvd.allgather(x, name="joined_allgather"), "not supported with Join")
        refused(lambda: hvd.broadcast(x, 1, name="joined_broadcast"), "not supported with Join")
        refused(lambda: hvd.alltoall(x, name="joined_alltoall"), "not supported with Join")
        refused(lambda: hvd.reducescatter(x, name="joined_scatter"), "not supported with Join")
    join_others()


@check(sets=False, least=2)
def join_again() -> None:
    """In eager mode: first rank 0 is the last, then it is the first, and cannot be that at once."""
    for delayed in (0, hvd.size() - 1):
        time.sleep(0.5 * (hvd.rank() == delayed))
        last = int(hvd.join())
    FACTS["a second join in eager mode"] = "waits" if last else "returns at once"


# Gradients: those that Horovod registers. Where it averages, so does NumPy. (What it registers for
# min, max and product, the same reduction of the gradients, is no derivative: not checked.)

WAYS = (*(("eager", dtype) for dtype in FLOATS), ("compiled", "float32"))


def differentiated(
    function: Callable, given: Sequence, weights: Sequence, how: str, unknown: int | None = None
) -> list:
    """Returns a function's results at this rank's inputs, and the gradients of their sum.

    The results are weighted with this rank's weights; `how` is "eager" or "compiled".
    """

    def run(inputs: list, factors: list) -> tuple[list, list]:
        with tf.GradientTape() as tape:
            for tensor in inputs:
                tape.watch(tensor)
            results = function(inputs)
            total = tf.add_n(
                [tf.reduce_sum(y * w) for y, w in zip(results, factors, strict=True)]
            )  # fmt: skip
        return results, tape.gradient(total, inputs)

    inputs = [own(one) for one in given]
    if how == "compiled":
        # The number of rows is not known while the graph is built.
        run = compiled(
            run, input_signature=[[spec(x) for x in inputs], [spec(own(one)) for one in weights]]
        )
    results, gradients = run(inputs, [own(one) for one in weights])
    return [*results, *gradients]


def spec(tensor: tf.Tensor) -> tf.TensorSpec:
    return tf.TensorSpec([None, *tensor.shape[1:]], tensor.dtype)


@check(("sum", "average"), WAYS)
def gradient_of_allreduce(op: str, how: str, dtype: str) -> None:
    given, weights = values(dtype, 2, 3), values(dtype, 2, 3, below=5)
    factors = {"prescale_factor": 0.5, "postscale_factor": 3.0}
    expected = [reduced(op, given, 0.5, 3.0), reduced(op, weights, 0.5, 3.0)]
    got = differentiated(
        lambda xs: [hvd.allreduce(xs[0], op=OPS[op], process_set=group(), **factors)],
        [given], [weights], how,
    )  # fmt: skip
    expect(got, expected, "value and gradient: ")


@check(("eager", "compiled"), ("sum", "average"))
def gradient_of_grouped_allreduce(how: str, op: str) -> None:
    given = [values("float32", 2, 3), values("float32", 4)]
    weights = [values("float32", 2, 3, below=5), values("float32", 4, below=5)]
    got = differentiated(
        lambda xs: hvd.grouped_allreduce(xs, op=OPS[op], process_set=group()),
        given, weights, how,
    )  # fmt: skip
    expect(got, [reduced(op, one) for one in given + weights], "values and gradients: ")


@check(WAYS)
def gradient_of_allgather(how: str, dtype: str) -> None:
    given = ragged(dtype, 2)
    gathered = np.concatenate(given)
    weights = values(dtype, *gathered.shape, below=5)
    ends = np.cumsum([len(array) for array in given])[:-1]
    expected = [gathered, np.split(reduced("average", weights), ends)[place()]]
    got = differentiated(
        lambda xs: [hvd.allgather(xs[0], process_set=group())], [given], [weights], how
    )
    expect(got, expected, "value and gradient: ")
    got = differentiated(
        lambda xs: hvd.grouped_allgather(xs, process_set=group()),
        [given, given[::-1]], 2 * [weights], how,
    )  # fmt: skip
    ends = np.cumsum([len(array) for array in given[::-1]])[:-1]
    other = np.split(reduced("average", weights), ends)[place()]
    both = [gathered, np.concatenate(given[::-1]), expected[1], other]
    expect(got, both, "grouped, values and gradients: ")


@check(WAYS)
def gradient_of_broadcast(how: str, dtype: str) -> None:
    given, weights = values(dtype, 2, 3), values(dtype, 2, 3, below=5)
    for root, expected in zip(ranks(), given, strict=True):
        got = differentiated(
            lambda xs, root=root: [hvd.broadcast(xs[0], root, process_set=group())],
            [given], [weights], how,
        )  # fmt: skip
        gradient = reduced("average", weights) * np.asarray(hvd.rank() == root, dtype)
        expect(got, [expected, gradient], f"root {root}, value and gradient: ")


@check(WAYS)
def gradient_of_alltoall(how: str, dtype: str) -> None:
    """Place i sends i + 1 rows to all: weights go back where the rows came from."""
    n = len(ranks())
    given = [value(r, dtype, (i + 1) * n, 2) for i, r in enumerate(ranks())]
    blocks = [np.split(array, n)[place()] for array in given]
    weights = values(dtype, len(np.concatenate(blocks)), 2, below=5)
    ends = np.cumsum([i + 1 for i in range(n)])[:-1]
    back = np.concatenate([np.split(array, ends)[place()] for array in weights])
    splits = n * [place() + 1]
    got = differentiated(
        lambda xs: [hvd.alltoall(xs[0], splits, process_set=group())[0]], [given], [weights], how
    )
    expect(got, [np.concatenate(blocks), back], "value and gradient: ")


@check(("sum", "average"), WAYS)
def gradient_of_reducescatter(op: str, how: str, dtype: str) -> None:
    n = len(ranks())
    given = values(dtype, n + 1, 2)
    weights = [
        value(r, dtype, len(rows), 2, below=5)
        for r, rows in zip(ranks(), np.array_split(given[0], n), strict=True)
    ]
    times = np.asarray(n if op == "sum" else 1, dtype)
    expected = [part(reduced(op, given)), np.concatenate(weights) * times]
    got = differentiated(
        lambda xs: [hvd.reducescatter(xs[0], op=OPS[op], process_set=group())],
        [given], [weights], how,
    )  # fmt: skip
    expect(got, expected, "value and gradient: ")
    got = differentiated(
        lambda xs: hvd.grouped_reducescatter(xs, op=OPS[op], process_set=group()),
        2 * [given], 2 * [weights], how,
    )  # fmt: skip
    expect(got, [x for x in expected for _ in range(2)], "grouped, values and gradients: ")


TAPES: dict[str, dict[str, Any]] = {
    "average": {},
    "sum": {"op": hvd.Sum},
    "float16 on the wire": {"compression": hvd.Compression.fp16},
    "sparse as dense": {"sparse_as_dense": True},
    "divided before": {"gradient_predivide_factor": 2.0, "sparse_as_dense": True},
    # A group of both kinds has the sparse ones' shapes wrong in Horovod 0.28.1.
    "in a group": {"groups": 1, "sparse_as_dense": True},
    "in two groups": {"groups": 2, "sparse_as_dense": True},
}


@check(TAPES, sets=False)  # those have the next check: a graph for each takes long
def gradient_tape(options: str) -> None:
    """DistributedGradientTape, over a dense variable, a gathered one, one without a gradient."""
    options = {"sparse_as_dense": False} | TAPES[options]
    weights = tf.Variable(tf.ones([3]))
    scale = tf.Variable(tf.constant(2.0))
    table = tf.Variable(tf.ones([4, 2]))
    unused = tf.Variable(0.0)
    factors = values("float32", 3)
    rows = [np.arange(i + 1) % 4 for i, _ in enumerate(ranks())]
    sources = [weights, scale, table, unused]
    if options.get("groups"):
        del sources[3]  # Horovod's groups have no place for None

    @compiled
    def run(factor: tf.Tensor, row: tf.Tensor) -> list:
        with tf.GradientTape() as tape:
            loss = tf.reduce_sum(weights * factor * scale)
            loss += 3 * tf.reduce_sum(tf.gather(table, row))
        tape = hvd.DistributedGradientTape(tape, process_set=group(), **options)
        return tape.gradient(loss, sources)

    got = run(own(factors), own(rows))
    if len(sources) == 4 and got.pop() is not None:
        WRONG.append("expected None for a variable that has no gradient")
    if isinstance(got[2], tf.IndexedSlices) == options["sparse_as_dense"]:
        WRONG.append(f"sparse_as_dense={options['sparse_as_dense']}, got {got[2]!r}")
    gathered = np.zeros([len(rows), 4, 2], "float32")
    for i, row in enumerate(rows):
        np.add.at(gathered[i], row, 3)
    op = "sum" if "op" in options else "average"
    expected = [[2 * f for f in factors], [f.sum() for f in factors], gathered]
    for i, (one, other) in enumerate(zip(got, expected, strict=True)):
        one, other = np.asarray(tf.convert_to_tensor(one)), reduced(op, other)
        if "compression" in options:
            one, other = one.astype("float16"), other.astype("float16")
        expect(one, other, f"gradient {i + 1}: ")


@check()
def gradient_tape_with_a_local_variable() -> None:
    """A rank's own variable is not reduced, but divided as the others are; in eager mode."""
    shared, local = tf.Variable(1.0), tf.Variable(1.0)
    given = values("float32", 2, below=100)
    with tf.GradientTape() as tape:
        loss = shared * own(given)[0] + local * own(given)[1]
    tape = hvd.DistributedGradientTape(tape, process_set=group())
    tape.register_local_source(local)
    mean = reduced("average", [array[0] for array in given])
    expect(tape.gradient(loss, [shared, local]), [mean, given[place()][1] / np.float32(len(given))])


# Many, large, empty; names; threads.


@check()
def many_at_once() -> None:
    """120 operations of all kinds and types in one graph, in any order."""
    n = len(ranks())
    dtypes = [MOVED[i % len(MOVED)] for i in range(120)]
    given = [values(dtype, n * (i % 4), 2) for i, dtype in enumerate(dtypes)]
    kinds = []
    for i, dtype in enumerate(dtypes):
        kind = ("allreduce", "reducescatter", "broadcast", "allgather")[i // len(MOVED) % 4]
        types = {"allreduce": REDUCED, "reducescatter": SCATTERED}.get(kind, MOVED)
        kinds.append(kind if dtype in types else "allgather")

    @compiled
    def run(tensors: list) -> list:
        found = []
        for i, (x, kind) in enumerate(zip(tensors, kinds, strict=True)):
            options = {"op": hvd.Sum} if "reduce" in kind else {}
            options |= {"root_rank": ranks()[-1]} if kind == "broadcast" else {}
            found.append(getattr(hvd, kind)(x, name=f"m{i}", process_set=group(), **options))
        return found

    computed = {
        "allreduce": lambda one: reduced("sum", one),
        "reducescatter": lambda one: part(reduced("sum", one)),
        "broadcast": lambda one: one[-1],
        "allgather": np.concatenate,
    }
    expected = [computed[kind](one) for kind, one in zip(kinds, given, strict=True)]
    for turn in ("first", "second"):
        expect(run([own(one) for one in given]), expected, f"the {turn} time, ")


@check()
def large() -> None:
    """More than the fusion buffer holds: in one tensor, and in a group."""
    n = int(os.environ["HOROVOD_FUSION_THRESHOLD"]) // 4
    given = values("float32", 3 * n // 2, below=97)
    mine = own(given)
    expect(hvd.allreduce(mine, op=hvd.Sum, process_set=group()), reduced("sum", given))
    expect(hvd.broadcast(mine, ranks()[-1], process_set=group()), given[-1])
    expect(hvd.allgather(mine, process_set=group()), np.concatenate(given))
    got = hvd.reducescatter(mine, op=hvd.Sum, process_set=group())
    expect(got, part(reduced("sum", given)))
    given = [[(i + 1) * array for array in values("float32", n // 3)] for i in range(7)]
    got = hvd.grouped_allreduce([own(one) for one in given], op=hvd.Sum, process_set=group())
    expect(got, [reduced("sum", one) for one in given])
    got = hvd.grouped_allgather([own(one) for one in given], process_set=group())
    expect(got, [np.concatenate(one) for one in given])


@check([[0], [0, 3], [3, 0]])
def empty(shape: list[int]) -> None:
    """Tensors of no elements, and one of them beside one that has some."""
    nothing, some = values("float32", *shape), values("float32", 2)
    mine, last = own(nothing), ranks()[-1]
    expect(hvd.allreduce(mine, process_set=group()), nothing[0], "allreduce: ")
    both = hvd.grouped_allreduce([mine, own(some)], op=hvd.Sum, process_set=group())
    expect(both, [nothing[0], reduced("sum", some)], "grouped_allreduce: ")
    expect(hvd.broadcast(mine, last, process_set=group()), nothing[0], "broadcast: ")
    gathered = np.concatenate(nothing)
    expect(hvd.allgather(mine, process_set=group()), gathered, "allgather: ")
    both = hvd.grouped_allgather([mine, own(some)], process_set=group())
    expect(both, [gathered, np.concatenate(some)], "grouped_allgather: ")
    splits = [shape[0]] + [0] * (len(ranks()) - 1)  # all to the first rank
    got, received = hvd.alltoall(mine, splits=splits, process_set=group())
    rows = shape[0] if place() == 0 else 0
    expect(got, np.zeros([rows * len(ranks()), *shape[1:]], "float32"), "alltoall: ")
    expect(received, np.int32([rows] * len(ranks())), "alltoall's received splits: ")
    got = hvd.reducescatter(mine, op=hvd.Sum, process_set=group())
    expect(got, part(nothing[0]), "reducescatter: ")


@check(("eager", "compiled"))
def names_that_repeat(how: str) -> None:
    """One name, for other shapes, types, reductions and operations in turn: Horovod caches by it.

    In eager mode every operation has the name of its kind, whatever name it is given.
    """
    shapes, ops = (((3,), (2, 2)), OPS) if how == "eager" else (((3,),), ("sum", "max"))
    for dtype, shape, op in itertools.product(("float32", "int64"), shapes, ops):
        given = values(dtype, *shape)
        options = {"name": "repeated", "process_set": group()}
        reduce = functools.partial(hvd.allreduce, op=OPS[op], **options)
        gather = functools.partial(hvd.allgather, **options)
        if how == "compiled":
            reduce, gather = compiled(reduce), compiled(gather)
        note = f"{op} {dtype} {list(shape)}: "
        for _ in range(2):
            expect(reduce(own(given)), reduced(op, given), note)
        expect(gather(own(given)), np.concatenate(given), f"allgather after {note}")


@check(least=2)
def a_name_in_use_is_refused() -> None:
    """The first rank uses a name twice at once, while the others have not used it yet."""
    given = values("float32", 3)
    found: list[Any] = []
    first = threading.Event()

    def attempt() -> None:
        try:
            found.append(hvd.allreduce(own(given), op=hvd.Sum, process_set=group()))
        except ERRORS as error:
            found.append(error)
        first.set()

    threads = [threading.Thread(target=attempt) for _ in range(2 if place() == 0 else 1)]
    if place() == 0:
        for thread in threads:
            thread.start()
        first.wait()  # one ends: the other waits for the other ranks
    hvd.allgather(tf.zeros([1]), process_set=group())
    if place():
        threads[0].start()
    for thread in threads:
        thread.join()
    if place() == 0 and not (isinstance(found[0], Exception) and "same name" in str(found[0])):
        WRONG.append(f"expected an error for a name in use, got {found[0]!r}")
    if isinstance(found[-1], Exception):
        raise found[-1]
    expect(found[-1], reduced("sum", given))


@check()
def threads_at_once() -> None:
    """Four threads of every rank, started in another order on each."""
    given = values("float32", 5)
    found: dict[int, list] = {i: [] for i in range(4)}

    def run(thread: int, function: Callable) -> None:
        for step in range(5):
            try:
                found[thread].append(function((thread + step) * own(given)))
            except ERRORS as error:
                found[thread].append(error)

    functions = [
        compiled(
            functools.partial(
                hvd.allreduce, op=hvd.Sum, name=f"thread_{i}", process_set=group()
            ),
            input_signature=[tf.TensorSpec([5])],
        )
        for i in range(4)
    ]  # fmt: skip
    order = np.roll(np.arange(4), place()).tolist()
    threads = [threading.Thread(target=run, args=(i, functions[i])) for i in order]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    total = reduced("sum", given)
    for i in range(4):
        for error in [got for got in found[i] if isinstance(got, Exception)]:
            raise error
        expect(found[i], [total * np.float32(i + step) for step in range(5)], f"thread {i}: ")


# Errors: on every rank, and the next operation works.

OPERATIONS: dict[str, Callable] = {
    "allreduce": hvd.allreduce,
    "grouped_allreduce": lambda x, **o: hvd.grouped_allreduce([x[:1], x], **o),
    "allgather": hvd.allgather,
    "grouped_allgather": lambda x, **o: hvd.grouped_allgather([x[:1], x], **o),
    "broadcast": lambda x, root_rank=None, **o: hvd.broadcast(
        x, ranks()[-1] if root_rank is None else root_rank, **o),
    "alltoall": hvd.alltoall,
    "reducescatter": hvd.reducescatter,
    "grouped_reducescatter": lambda x, name=None, **o: hvd.grouped_reducescatter([x[:1], x], **o),
}  # fmt: skip
# What Horovod compares between ranks, for each of them.
DISAGREEMENTS = {
    "allreduce": ("rows", "width", "dimensions", "type", "op", "prescale"),
    "grouped_allreduce": ("rows", "width", "type"),
    "allgather": ("width", "dimensions", "type"),
    "grouped_allgather": ("width", "dimensions", "type"),
    "broadcast": ("rows", "width", "type", "root"),
    "alltoall": ("width", "dimensions", "type"),
    "reducescatter": ("rows", "width", "type", "prescale"),
    "grouped_reducescatter": ("rows", "width", "type"),
}


@check(
    [("eager", one, what) for one, found in DISAGREEMENTS.items() for what in found]
    + [("compiled", one, "type") for one in DISAGREEMENTS]
    + [("compiled", "allreduce", "operation")],  # in eager mode the names differ: both would wait
    least=2,
)  # fmt: skip
def disagreement(how: str, operation: str, what: str) -> None:
    """The last rank does not do what the others do, before and after calls that agree."""
    rows = 2 * len(ranks())
    options = {"name": f"disagreement_{operation}_{what}", "process_set": group()}
    call = functools.partial(OPERATIONS[operation], **options)
    x = tf.ones([rows, 2])
    odd_call, odd_x = call, x
    if place() == len(ranks()) - 1:
        shapes = {"rows": [2 * rows, 2], "width": [rows, 3], "dimensions": [rows]}
        odd_x = tf.ones(shapes.get(what, [rows, 2]), "int32" if what == "type" else "float32")
        odd_options = {
            "op": {"op": hvd.Max}, "prescale": {"prescale_factor": 2.0},
            "root": {"root_rank": ranks()[0]},
        }.get(what, {})  # fmt: skip
        odd_call = functools.partial(
            OPERATIONS["allgather" if what == "operation" else operation], **options, **odd_options
        )
    if how == "compiled":
        call, odd_call = compiled(call), compiled(odd_call)
    for _ in range(2):
        call(x)
    refused(lambda: odd_call(odd_x), "mismatched")
    call(x)
    given = values("float32", 3)
    expect(hvd.allreduce(own(given), process_set=group()), reduced("average", given), "after: ")


def ones(*shape: int, dtype: str = "float32") -> tf.Tensor:
    return tf.ones(shape, dtype)


# What no rank may do, with words of the error. (An alltoall of a scalar without splits is not
# among them: Horovod 0.28.1 reads its first dimension unseen, and the process may die.)
MISUSES: dict[str, tuple[str, Callable]] = {
    "allgather of a scalar": ("rank-zero", lambda **o: hvd.allgather(ones(), **o)),
    "reducescatter of a scalar": ("scalar", lambda **o: hvd.reducescatter(ones(), **o)),
    "reducescatter max": (
        "only supports average and sum", lambda **o: hvd.reducescatter(ones(6), op=hvd.Max, **o)),
    "alltoall of more rows than there are": (
        "splits", lambda **o: hvd.alltoall(ones(1), splits=2 * np.int32(ranks()) + 2, **o)),
    "alltoall with a split too many": (
        "splits", lambda **o: hvd.alltoall(ones(9), splits=[1] * (len(ranks()) + 1), **o)),
    "alltoall with splits that are not integers": (
        "int32", lambda **o: hvd.alltoall(ones(9), splits=[1.0] * len(ranks()), **o)),
    "broadcast from a rank that is not there": (
        "root rank", lambda **o: hvd.broadcast(ones(2), hvd.size(), **o)),
    "allreduce of text": ("string", lambda **o: hvd.allreduce(tf.constant(["a"]), **o)),
    "allreduce max of IndexedSlices": (
        "sum and average",
        lambda **o: hvd.allreduce(tf.IndexedSlices(ones(1, 2), [0]), op=hvd.Max, **o)),
}  # fmt: skip


@check(MISUSES)
def misuse(case: str) -> None:
    because, function = MISUSES[case]
    refused(lambda: function(process_set=group()), because)
    given = values("float32", 3)
    expect(hvd.allreduce(own(given), process_set=group()), reduced("average", given), "after: ")


@check(least=2)
def alltoall_that_does_not_divide() -> None:
    rows = len(ranks()) + 1
    refused(lambda: hvd.alltoall(ones(rows), process_set=group()), "even multiple")


@check()
def other_process_sets_are_refused() -> None:
    """A set that this rank is not in, one that was removed, one that there is already."""
    for process_set in (*Scope.static, *Scope.dynamic):
        is_there = process_set.process_set_id is not None
        if not is_there or not process_set.included():
            because = "not a member" if is_there else ""
            refused(lambda ps=process_set: hvd.allreduce(ones(2), process_set=ps), because)
    refused(lambda: hvd.add_process_set(range(hvd.size())), "duplicate")


# What a build may have or not.


@check(OPERATIONS, sets=False)
def bfloat16(operation: str) -> None:
    """It is refused, or does what float32 does."""
    function, given = OPERATIONS[operation], own(values("float32", hvd.size(), 4))
    try:
        got = function(tf.cast(given, tf.bfloat16))
    except ERRORS as error:
        if "bfloat16" not in str(error):
            raise
        FACTS[f"bfloat16 {operation}"] = "refused"
        return
    FACTS[f"bfloat16 {operation}"] = "works"
    expected = tf.nest.map_structure(lambda x: tf.cast(x, tf.bfloat16), function(given))
    for one, other in zip(tf.nest.flatten(got), tf.nest.flatten(expected), strict=True):
        expect(tf.cast(one, "float32"), tf.cast(other, "float32"))


# Running them.


@contextlib.contextmanager
def limited(name: str) -> Iterator[None]:
    """Ends the process if a check does not end."""

    def end() -> None:
        print(f"{this_rank()}: {name}: has not ended after {LIMIT} s", file=sys.stderr, flush=True)
        faulthandler.dump_traceback()
        os._exit(3)

    timer = threading.Timer(LIMIT, end)
    timer.daemon = True
    timer.start()
    try:
        yield
    finally:
        timer.cancel()


def this_rank() -> str:
    return f"rank {hvd.rank()} of {hvd.size()}"


def run(*beginnings: str) -> dict[str, Any]:
    """Runs the checks whose names begin so, or all; returns what this rank found."""
    start()
    count, failures = 0, []
    for scope in scopes():
        for one in CHECKS:
            if (scope and not one.sets) or len(ranks()) < one.least:
                continue
            if beginnings and not one.name.startswith(beginnings):
                continue
            name = f"{one.name} {scope}".strip()
            with limited(name):
                text = outcome(one)
            count += 1
            if text:  # at once: the ranks may be out of step now, and the next check without end
                failures.append(f"{name}, {this_rank()}: {text}")
                print(failures[-1], file=sys.stderr, flush=True)
        with limited(f"waiting for the other ranks {scope}".strip()):
            hvd.allgather(tf.zeros([1]))  # who ends first takes the process sets from the others
    return {"checks": count, "failures": failures, "facts": FACTS}


def outcome(one: Check) -> str:
    """Returns what is wrong first, if anything."""
    WRONG.clear()
    try:
        one.call()
    except Exception as error:  # of whatever kind: the other checks are still of interest
        WRONG.append(f"expected a result, got {said(error)}")
    return WRONG[0] if WRONG else ""


def main(beginnings: list[str]) -> int:
    """Prints every rank's failures, and what rank 0 found; returns the exit code."""
    tf.get_logger().setLevel("ERROR")  # graphs are built anew on purpose
    found = run(*beginnings)
    if hvd.rank() == 0:
        for name, fact in found["facts"].items():
            print(f"{name}: {fact}")
        print(
            f"TensorFlow {tf.__version__}, Horovod {horovod.__version__}, NumPy {np.__version__}, "
            f"{hvd.size()} ranks: {found['checks']} checks, {len(found['failures'])} failures "
            "on rank 0"
        )
    return int(bool(found["failures"]))


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
