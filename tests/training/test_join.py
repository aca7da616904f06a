"""Which of a machine's GPUs a process takes, on a machine that says it has some."""

from collections import namedtuple

import pytest
import tensorflow as tf

from app.errors import USAGE, UsageError
from app.parallel import replicas
from app.parallel.topology import Topology

Device = namedtuple("Device", "name device_type")


@pytest.fixture
def taken(monkeypatch):
    """Joins as a rank of a machine with `gpus`; returns the numbers of those that it takes."""
    for name in ("set_intra_op_parallelism_threads", "set_inter_op_parallelism_threads"):
        monkeypatch.setattr(tf.config.threading, name, lambda threads: None)
    monkeypatch.setattr(tf.config.experimental, "set_memory_growth", lambda gpu, is_on: None)

    def join(rank, ranks, gpus, devices=1):
        found = [Device(str(i), "GPU") for i in range(gpus)]
        visible = []
        monkeypatch.setattr(tf.config, "list_physical_devices", lambda kind: found)
        monkeypatch.setattr(tf.config, "set_visible_devices", lambda own, kind: visible.extend(own))
        replicas.join(devices=devices, local=Topology(rank, ranks, rank, ranks))
        return [int(gpu.name) for gpu in visible]

    return join


def test_every_rank_takes_gpus_of_its_own(taken):
    assert [taken(rank, 3, gpus=4) for rank in range(3)] == [[0], [1], [2]]
    assert [taken(rank, 2, gpus=4, devices=2) for rank in range(2)] == [[0, 1], [2, 3]]


@pytest.mark.parametrize(("ranks", "devices"), [(3, 1), (2, 2), (1, 3)])
def test_ranks_that_would_share_a_gpu_are_refused(taken, ranks, devices):
    needed = f"{ranks} processes on a machine x {devices} devices .* need {ranks * devices} GPUs"
    for rank in range(ranks):
        with pytest.raises(UsageError, match=f"{needed}, but .* sees 2: start fewer") as refused:
            taken(rank, ranks, gpus=2, devices=devices)
        assert refused.value.exit_code == USAGE
        assert refused.value.everywhere and refused.value.speaker == (rank == 0)  # one message
