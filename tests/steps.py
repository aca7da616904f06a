"""Makes a training step with what it needs, without a trainer."""

from app.config import Experiment, Layout
from app.parallel.topology import Topology
from app.strategies import partition
from app.training.batch_stream import training_batches
from app.training.state import State
from app.training.step import make_step


def made(experiment: Experiment, layout: Layout | None = None, micro_batches: range | None = None):
    """Returns the state, its step on these places of a step (all), and micro-batches in order."""
    layout, steps = layout or Layout(), range(experiment.steps)
    data, own = experiment.data.open(""), micro_batches or range(experiment.num_micro_batches)
    count = len(experiment.model.blocks(experiment.objective.num_outputs(data)))
    costs = partition.Costs((1.0,) * count, (1,) * count)  # not measured, which takes long
    placement = partition.place(experiment, layout, Topology(), data, costs)
    state = State.of(experiment, data, placement)
    step = make_step(experiment, layout, state, own, steps)
    return state, step, training_batches(experiment, data, Topology(), steps)
