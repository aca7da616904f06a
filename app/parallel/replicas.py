"""Replicas are Horovod processes. The only file that computes with Horovod.

Horovod 0.28.1 is older than Keras 3: it is handed `tf.Variable`s and tensors only, never
Keras variables or optimizers (horovod#4290).
"""

from __future__ import annotations

import importlib.metadata
import os
import zlib
from collections.abc import Sequence

import horovod.tensorflow as hvd
import numpy as np
import tensorflow as tf

from app.errors import UsageError, UserError
from app.parallel.sharded import Weight
from app.parallel.topology import Topology

LOAD_BYTES = 2**26  # that are broadcast at once
STALL_SECONDS = 600  # a rank in a collective waits this long for the others to come


def enter() -> Topology:
    """Joins the job."""
    hvd.init()
    return Topology(hvd.rank(), hvd.size(), hvd.local_rank(), hvd.local_size())


def leave() -> None:
    """Leaves it, to enter another; what is waiting for peers fails."""
    hvd.shutdown()


def _size() -> int:
    return hvd.size() if hvd.is_initialized() else 1


def _rank() -> int:
    return hvd.rank() if hvd.is_initialized() else 0


def join(exact: bool = False, devices: int = 1, beside: Topology | None = None) -> Topology:
    """Joins the job, and takes this process's part of the machine's cores and GPUs.

    A process that needs several devices takes as many GPUs; without any GPU it makes as many
    logical CPU devices.

    An elastic one joins later, when it has a model to share: `beside` says what is known of this
    machine until then.

    With `exact` an operator runs on one thread: a step of a narrow ResNet-18 was seen to
    differ between one thread and two (which operator does so is not known).
    """
    os.environ.setdefault("HOROVOD_STALL_SHUTDOWN_TIME_SECONDS", str(STALL_SECONDS))
    topology = beside or enter()
    cores = len(os.sched_getaffinity(0))
    threads = 1 if exact else topology.threads(cores, devices)
    tf.config.threading.set_intra_op_parallelism_threads(threads)
    # One a device at least, and another that can start an all-reduce or copy; as many as there
    # are cores, for several batches at once.
    most = max(devices + 1, topology.threads(cores))
    tf.config.threading.set_inter_op_parallelism_threads(most)
    gpus = tf.config.list_physical_devices("GPU")
    if gpus:
        needed = topology.local_size * devices
        if needed > len(gpus):
            raise UsageError(
                f"{topology.local_size} processes on a machine x {devices} devices each (stages x "
                f"tensor) need {needed} GPUs, but this process sees {len(gpus)}: start fewer "
                "processes, set fewer --stages or a smaller --tensor, or let every process see "
                "all of the machine's GPUs (CUDA_VISIBLE_DEVICES)."
            ).on_every_rank(speaker=topology.local_rank == 0)
        own = gpus[topology.local_rank * devices :][:devices]
        tf.config.set_visible_devices(own, "GPU")
        for gpu in own:
            tf.config.experimental.set_memory_growth(gpu, True)
    elif devices > 1:
        tf.config.set_logical_device_configuration(
            tf.config.list_physical_devices("CPU")[0],
            [tf.config.LogicalDeviceConfiguration() for _ in range(devices)],
        )
    return topology


def all_reduce(tensor: tf.Tensor, name: str) -> tf.Tensor:
    """Sum over the processes, in Horovod's order; starts as soon as `tensor` is computed."""
    if _size() == 1:
        return tensor
    return hvd.allreduce(tensor, op=hvd.Sum, name=name)


def all_gather(tensor: tf.Tensor, name: str) -> tf.Tensor:
    """Concatenation over the processes along axis 0, in rank order; lengths may differ."""
    return tensor if _size() == 1 else hvd.allgather(tensor, name=name)


def add_up(values: np.ndarray, name: str) -> np.ndarray:
    """Sum over the processes of a small float64 array, outside any graph."""
    return all_reduce(tf.constant(values, tf.float64), name).numpy()


def gather(values: np.ndarray) -> np.ndarray:
    """Small whole numbers below 2^53 of every process, [ranks, n]."""
    table = np.zeros([_size(), len(values)])
    table[_rank()] = values
    return add_up(table, "gather").astype(np.int64)


def broadcast(variables: Sequence[Weight], root: int = 0) -> None:
    """Gives every process the values that `root` has.

    What all have is not sent: processes of one seed begin with the same weights. The rest travels
    joined, as each broadcast waits for a round of Horovod's.
    """
    if _size() == 1:
        return
    loads = _loads(variables)
    digests = gather(np.array([_digest(load) for load in loads]))  # [ranks, loads]
    for i, load in enumerate(loads):
        if not np.ptp(digests[:, i]):
            continue
        with tf.device("CPU:0"):  # variables of a stage may be in another process
            flat = tf.concat([tf.reshape(v.read_value(), [-1]) for v in load], 0)
            flat = hvd.broadcast(flat, root_rank=root, name=f"variables{i}")
            values = tf.split(flat, [v.shape.num_elements() for v in load])
        for variable, value in zip(load, values, strict=True):
            variable.assign(tf.reshape(value, variable.shape))


def _digest(load: Sequence[Weight]) -> int:
    digest = 0
    for variable in load:
        digest = zlib.crc32(np.ascontiguousarray(variable.numpy()).data, digest)
    return digest


def _loads(variables: Sequence[Weight]) -> list[list[Weight]]:
    """Variables of one type in loads of about LOAD_BYTES, or of one variable."""
    loads: list[list[Weight]] = []
    room: dict[tf.DType, tuple[list[Weight], int]] = {}  # the last load of a type, bytes left
    for variable in variables:
        size = variable.shape.num_elements() * variable.dtype.size
        load, left = room.get(variable.dtype, ([], 0))
        if size > left:
            load, left = [], LOAD_BYTES
            loads.append(load)
        load.append(variable)
        room[variable.dtype] = load, left - size
    return loads


def broadcast_text(text: str, root: int = 0) -> str:
    """The text of `root` on every process, a path's bytes that are not UTF-8 included."""
    if _size() == 1:
        return text
    encoded = np.frombuffer(text.encode("utf-8", "surrogateescape"), np.uint8)
    length = hvd.broadcast(tf.constant([len(encoded)]), root, name="text_length").numpy()[0]
    if _rank() != root:
        encoded = np.zeros(length, np.uint8)
    received = bytes(hvd.broadcast(tf.constant(encoded), root, name="text").numpy())
    return received.decode("utf-8", "surrogateescape")


def agree(error: UserError | None) -> None:
    """Lets every process go on, or fail with the same error: the lowest failing rank's.

    A rank that stopped alone would leave the others waiting for it in a collective.

    Raises:
        UserError: if any process has one.
    """
    codes = np.zeros(_size())
    codes[_rank()] = error.exit_code if error else 0
    codes = add_up(codes, "agree")
    if not codes.any():
        return
    first = int(np.flatnonzero(codes)[0])
    if error is None or _rank() != first:
        error = UserError(f"rank {first} failed and told why")
        error.exit_code = int(codes[first])
    raise error.on_every_rank(speaker=_rank() == first)


def each(value: float) -> list[float]:
    """The value of each process, in rank order."""
    values = np.zeros(_size())
    values[_rank()] = value
    return [float(v) for v in add_up(values, "each")]


def versions() -> dict[str, str]:
    """What a result was computed with."""
    packages = ("horovod", "tensorflow", "keras", "numpy", "tensorflow-datasets")
    return {package: importlib.metadata.version(package) for package in packages}
