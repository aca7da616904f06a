"""Runs our side: the compiled step of `app/training/step.py` on one batch in memory.

python -m app.tools.peers.ours <case> <folder>       started as the ranks of a job
"""

import importlib.metadata
import itertools
import sys
from collections.abc import Callable
from typing import Any

from app.cli import loading
from app.tools.peers import child
from app.tools.peers.cases import Case, case
from app.training import kernels

kernels.choose()
loading.tensorflow()

import tensorflow as tf

from app.config import Layout
from app.parallel.topology import Topology
from app.tools.benchmark import take_steps
from app.training import setup
from app.training.state import State
from app.training.step import SingleStageStep


def main(name: str, folder: str) -> None:
    """Joins the job, builds the step of a case, and takes its turns."""
    topology, _ = setup.join(Layout())
    state, run = make(case(name, topology.size, 1), topology)
    facts = {
        "rank": topology.rank,
        "threads": tf.config.threading.get_intra_op_parallelism_threads(),
        "sizes": sizes(state),
        "version": f"TensorFlow {importlib.metadata.version('tensorflow')}",
        "settings": f"kernels: {kernels.text(kernels.names())}",
    }
    child.serve(folder, facts, run)


def make(given: Case, topology: Topology) -> tuple[State, Callable[[int], Any]]:
    """Returns the state, and a function that takes a number of steps."""
    experiment = given.experiment
    inputs = random_inputs(given)
    spec = tf.TensorSpec([None, *given.inputs[1:]], inputs.dtype)
    state = State(experiment, spec, given.classes)
    layout, mine = Layout(processes=topology.size), topology.micro_batches(topology.size)
    step = SingleStageStep(experiment, layout, state, mine)
    labels = tf.random.uniform(given.inputs[:1], maxval=given.classes, dtype=tf.int32)
    batch = (inputs, tf.one_hot(labels, given.classes), None)
    return state, lambda count: take_steps(count, step, itertools.repeat(batch))


def random_inputs(given: Case) -> tf.Tensor:
    """Returns pixels [b, H, W, 3], or ids of tokens [b, T] without padding."""
    if len(given.inputs) == 4:
        return tf.random.normal(given.inputs)
    vocabulary = given.experiment.model.vocabulary  # type: ignore[attr-defined]
    return tf.random.uniform(given.inputs, 1, vocabulary, tf.int32)


def sizes(state: State) -> list[int]:
    """Returns the number of elements of every trained weight, sorted."""
    return sorted(int(variable.shape.num_elements()) for variable in state.trainable)


if __name__ == "__main__":
    main(*sys.argv[1:])
