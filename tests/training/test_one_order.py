"""What every replica computes for itself from the same sums has the same bits on each.

Whatever its threads, their timing, and other work on its cores.
"""

import dataclasses
import os
import random
import subprocess
import sys
import time

import numpy as np
import pytest
import ranks
import tensorflow as tf
from pixels import Pixels
from shallow import Shallow
from tensorflow.python.eager import context

from app.cli.overrides import override
from app.config import Experiment, Layout, Optimization, Update
from app.parallel.topology import Topology
from app.schedules import Constant
from app.strategies.adasum import adasum
from app.strategies.pipelined import PipelinedStep
from app.training import ordered, setup, trainer
from app.training.batch_stream import training_batches
from app.training.state import State
from app.training.step import SingleStageStep

# A sum of which is in the order in which its terms arrive, and what makes such sums of others.
IN_ANY_ORDER = {"TemporaryVariable", "DestroyTemporaryVariable", "AccumulateNV2", "AssignAdd"}
REWRITTEN = ("ArithmeticOptimizer", "AddOpsRewrite", "ConstantFolding/", "DepOptimizer")
RECIPES = {
    "sgd": ["optimization.nesterov=true"],
    "lars": ["optimization.optimizer=lars"],
    "adamw": ["optimization.optimizer=adamw", "optimization.clip_norm=0.5",
              "optimization.ema_decay=0.9"],
    "lamb": ["optimization.optimizer=lamb", "optimization.no_decay=*/kernel"],
    "keras": ["optimization.optimizer=keras", "optimization.rate_factors=*/kernel:0.5"],
    "float16": ["precision=float16", "optimization.clip_norm=0.5"],
}  # fmt: skip
RULES = {
    "rounded": ["update.compression=float16", "optimization.optimizer=lars"],
    "topk": ["update.compression=topk", "update.topk=0.05", "optimization.optimizer=lars"],
    "adasum": ["update.kind=adasum", "optimization.optimizer=lars"],
    "local": ["update.kind=local_sgd", "update.local_steps=2", "update.outer_momentum=0.9",
              "optimization.optimizer=lars"],
}  # fmt: skip
STEPS = int(os.environ.get("SCALEPROOF_LOAD_STEPS", 12))  # of each recipe under load
LIMIT = 200 + 10 * STEPS  # seconds


def graphs(function):
    """The nodes of every graph that runs as `function` is called first, as they are run."""
    context.context().enable_graph_collection()
    try:
        function()
        found = context.context().export_run_metadata().function_graphs
    finally:
        context.context().disable_graph_collection()
    return [
        node
        for graph in found
        for part in (graph.post_optimization_graph,)
        for node in [*part.node, *(n for f in part.library.function for n in f.node_def)]
    ]


def assert_in_order(nodes):
    assert len(nodes) > 100  # of a step, not of an operator
    assert not {node.op for node in nodes} & IN_ANY_ORDER
    assert not [node.name for node in nodes if any(mark in node.name for mark in REWRITTEN)]


@pytest.mark.parametrize("recipe", RECIPES)
@pytest.mark.parametrize("kind", [SingleStageStep, PipelinedStep])
def test_the_graph_of_a_step_is_run_as_it_was_written(tiny, recipe, kind):
    experiment = override(dataclasses.replace(tiny, global_batch=8), RECIPES[recipe])
    data = experiment.data.open("")
    state = State(experiment, data.input_spec, data.num_classes)
    step = kind(experiment, Layout(), state, range(2))
    batches = training_batches(experiment, data, Topology(0, 1), range(1))
    assert_in_order(graphs(lambda: step(0, batches, 1e-3)["loss"].numpy()))


def test_the_graphs_of_combinations_are_run_as_they_were_written():
    values = [tf.random.normal([n, 300]) for n in range(1, 40)]

    @tf.function(autograph=False)
    def combine():
        return [adasum(v, v + 1) for v in values]

    assert_in_order(graphs(combine))


def reductions():
    """On a rank with as many threads as its place: the bits of reductions over large tensors."""
    with_threads_of_its_own()
    setup.join(Layout())
    numbers = np.random.default_rng(0)
    tensors = [
        tf.constant(numbers.standard_normal(shape), tf.float32)
        for shape in [(3, 3, 512, 512), (1_000_003,), (30_522, 64), (7,), ()]
    ]

    @tf.function(autograph=False)
    def reduced():
        return [
            value
            for x in tensors
            for value in (ordered.total(x), ordered.norm(x), adasum(x, x + 1))
        ]

    return [x.numpy().tobytes() for x in tensors], [value.numpy() for value in reduced()]


def with_threads_of_its_own():
    Topology.threads = lambda self, cores, devices=1: self.rank + 1


@pytest.mark.ranks
def test_reductions_do_not_depend_on_the_number_of_threads(tmp_path):
    (tensors, ours), *others = ranks.call(5, tmp_path, reductions)
    for _, theirs in others:
        for mine, other in zip(ours, theirs, strict=True):
            np.testing.assert_array_equal(mine, other)
    for i, tensor in enumerate(tensors):
        values = np.frombuffer(tensor, np.float32).astype(np.float64)
        assert ours[3 * i] == pytest.approx(values.sum(), rel=1e-5, abs=1e-3)
        assert ours[3 * i + 1] == pytest.approx(np.linalg.norm(values), rel=1e-6)


COMPETE = """
import random, sys, time
choose = random.Random(int(sys.argv[1]))
while True:
    end = time.monotonic() + choose.uniform(0.002, 0.08)
    while time.monotonic() < end:
        pass
    time.sleep(choose.uniform(0.002, 0.08))
"""


@dataclasses.dataclass(frozen=True)
class Wide:
    """Layers so large that TensorFlow splits a reduction over their weights among threads."""

    def blocks(self, num_classes):
        import keras

        return [
            keras.layers.Flatten(),
            keras.layers.Dense(4096, activation="relu"),
            keras.layers.Dense(1024, activation="relu"),
            keras.layers.Dense(num_classes),
        ]


def drift(workdir, settings, model, steps):
    """Trains on this rank with a process that competes with it on and off; compares each step."""
    with_threads_of_its_own()
    topology, layout = setup.join(Layout())
    choose = random.Random(topology.rank)
    experiment = Experiment(
        model=model, data=Pixels(size=16, synthetic_examples=60, synthetic_classes=5),
        global_batch=12, micro_batch=2, steps=steps,
        optimization=Optimization(warmup_epochs=0, schedule=Constant(), learning_rate=0.05),
    )  # fmt: skip
    with subprocess.Popen([sys.executable, "-c", COMPETE, str(topology.rank)]) as rival:
        try:
            results = {}
            for name, given in settings.items():
                time.sleep(choose.uniform(0, 0.1))
                run = trainer.Run(workdir / name, "", compare_every=1)
                results[name] = trainer.train(override(experiment, given), layout, topology, run)
        finally:
            rival.kill()
    return {name: result["weights_sha256"] for name, result in results.items()}


UNDER_LOAD = RECIPES | RULES
PAIRS = {"adasum": UNDER_LOAD.pop("adasum")}  # what combines two ranks


@pytest.mark.ranks
@pytest.mark.parametrize(("np", "recipes"), [(2, PAIRS), (3, UNDER_LOAD)])
def test_replicas_do_not_drift_apart_under_uneven_load(tmp_path, np, recipes):
    each = ranks.call(np, tmp_path, drift, tmp_path, recipes, Shallow(), STEPS, limit=LIMIT)
    assert all(found == each[0] for found in each) and each[0].keys() == recipes.keys()


@pytest.mark.ranks
def test_replicas_of_large_layers_do_not_drift_apart_under_uneven_load(tmp_path):
    recipes = {"lars": RECIPES["lars"]}
    each = ranks.call(3, tmp_path, drift, tmp_path, recipes, Wide(), STEPS, limit=LIMIT)
    assert all(found == each[0] for found in each)


def test_update_rules_under_load_are_all():
    """Those that keep the replicas the same; a parameter server's job has none."""
    kinds = {override(Experiment(None, None, 1, 1, steps=1), r).update for r in RULES.values()}
    assert {u.kind for u in kinds} | {Update().kind, "parameter_server"} == {
        "all_reduce", "adasum", "local_sgd", "parameter_server",
    }  # fmt: skip
