"""Joins a job's processes and computes with Horovod, the only file that does.

Horovod 0.28.1 is older than Keras 3: it is given `tf.Variable`s and tensors only, never
Keras variables or optimizers (horovod#4290).
"""

from __future__ import annotations

import importlib.metadata
import json
import os
import zlib
from collections.abc import Sequence
from typing import Any

import horovod.tensorflow as hvd
import numpy as np
import tensorflow as tf

from app.errors import UsageError, UserError
from app.parallel.sharded import Weight
from app.parallel.topology import Topology

GROUP_BYTES = 2**26  # that are broadcast at once
STALL_SECONDS = 600  # that a rank waits in a collective for the others


def enter() -> Topology:
    """Joins the job; returns this process's place in it."""
    hvd.init()
    return Topology(hvd.rank(), hvd.size(), hvd.local_rank(), hvd.local_size())


def leave() -> None:
    """Leaves the job, so that another can be entered; operations that wait for peers fail."""
    hvd.shutdown()


def _size() -> int:
    return hvd.size() if hvd.is_initialized() else 1


def _rank() -> int:
    return hvd.rank() if hvd.is_initialized() else 0


def join(exact: bool = False, devices: int = 1, local: Topology | None = None) -> Topology:
    """Joins the job, and takes this process's cores and GPUs of the machine.

    A process that needs several devices takes as many GPUs; on a machine without GPUs it makes as
    many logical CPU devices.

    With `exact` an operator runs on one thread: a step of a narrow ResNet-18 was seen to
    differ between one thread and two (which operator does so is not known).

    Args:
        exact: as --exact.
        devices: that this process needs.
        local: the place on this machine of an elastic process, which joins later, when it has a
            model to share.

    Raises:
        UsageError: on every rank; the machine has too few GPUs.
    """
    os.environ.setdefault("HOROVOD_STALL_SHUTDOWN_TIME_SECONDS", str(STALL_SECONDS))
    topology = local or enter()
    cores = len(os.sched_getaffinity(0))
    threads = 1 if exact else topology.threads(cores, devices)
    tf.config.threading.set_intra_op_parallelism_threads(threads)
    # At least one per device, and one more that can start an all-reduce or a copy; as many as
    # there are cores, for several batches at once.
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
    """Sums over the processes, in Horovod's order; starts as soon as `tensor` is computed."""
    if _size() == 1:
        return tensor
    return hvd.allreduce(tensor, op=hvd.Sum, name=name)


def all_gather(tensor: tf.Tensor, name: str) -> tf.Tensor:
    """Concatenates over the processes along axis 0, in rank order; lengths may differ."""
    return tensor if _size() == 1 else hvd.allgather(tensor, name=name)


def all_reduce_numpy(values: np.ndarray, name: str) -> np.ndarray:
    """Sums a small float64 array over the processes, outside any graph."""
    return all_reduce(tf.constant(values, tf.float64), name).numpy()


def all_gather_scalar(value: float) -> list[float]:
    """Returns the number of each process, in rank order."""
    return all_gather(tf.constant([value], tf.float64), "scalar").numpy().tolist()


def barrier() -> None:
    """Waits until all processes have come here."""
    all_gather_scalar(0)


def all_gather_integers(values: np.ndarray) -> np.ndarray:
    """Returns a few whole numbers of every process, int64 [ranks, n]."""
    return all_gather(tf.constant([values], tf.int64), "integers").numpy()


def broadcast(variables: Sequence[Weight], root: int = 0) -> None:
    """Gives every process the values of `root`.

    Values that all have already are not sent: processes of one seed begin with the same weights.
    The others are sent in groups, as each broadcast waits for one of Horovod's cycles.
    """
    if _size() == 1:
        return
    groups = _groups(variables)
    digests = all_gather_integers(np.array([_digest(group) for group in groups]))  # [ranks, groups]
    for i, group in enumerate(groups):
        if not np.ptp(digests[:, i]):
            continue
        with tf.device("CPU:0"):  # variables of a stage may be in another process
            flat = tf.concat([tf.reshape(v.read_value(), [-1]) for v in group], 0)
            flat = hvd.broadcast(flat, root_rank=root, name=f"variables{i}")
            values = tf.split(flat, [v.shape.num_elements() for v in group])
        for variable, value in zip(group, values, strict=True):
            variable.assign(tf.reshape(value, variable.shape))


def _digest(group: Sequence[Weight]) -> int:
    digest = 0
    for variable in group:
        digest = zlib.crc32(np.ascontiguousarray(variable.numpy()).data, digest)
    return digest


def _groups(variables: Sequence[Weight]) -> list[list[Weight]]:
    """Groups variables of one type, up to GROUP_BYTES or one variable in each group."""
    groups: list[list[Weight]] = []
    room: dict[tf.DType, tuple[list[Weight], int]] = {}  # the last group of a type, bytes left
    for variable in variables:
        size = variable.shape.num_elements() * variable.dtype.size
        group, left = room.get(variable.dtype, ([], 0))
        if size > left:
            group, left = [], GROUP_BYTES
            groups.append(group)
        group.append(variable)
        room[variable.dtype] = group, left - size
    return groups


def broadcast_json(value: Any, root: int = 0) -> Any:
    """Returns the value of `root`, as JSON holds it.

    Horovod's `broadcast_object` would unpickle what it receives, and a pickle can run code.
    """
    if _size() == 1:
        return value
    encoded = np.frombuffer(json.dumps(value).encode(), np.uint8)
    length = hvd.broadcast(tf.constant([len(encoded)]), root, name="json_length").numpy()[0]
    if _rank() != root:
        encoded = np.zeros(length, np.uint8)
    return json.loads(bytes(hvd.broadcast(tf.constant(encoded), root, name="json").numpy()))


def raise_on_all_ranks(error: UserError | None) -> None:
    """Raises an error of any rank on every rank; of several, the lowest rank's.

    A rank that stopped by itself would leave the others waiting for it in a collective.

    Raises:
        UserError: some rank has one.
    """
    codes = all_gather_scalar(error.exit_code if error else 0)
    first = next((rank for rank, code in enumerate(codes) if code), None)
    if first is None:
        return
    if error is None or _rank() != first:
        error = UserError(f"rank {first} failed and said why")
        error.exit_code = int(codes[first])
    raise error.on_every_rank(speaker=_rank() == first)


def versions() -> dict[str, str]:
    """Returns the versions of the packages that a result depends on."""
    packages = ("horovod", "tensorflow", "keras", "numpy", "tensorflow-datasets")
    return {package: importlib.metadata.version(package) for package in packages}
