import dataclasses
import json

import numpy as np
import pytest
import tensorflow as tf
from steps import made

from app.cli.overrides import override
from app.config import Layout
from app.errors import NumbersError
from app.recovery import manifest
from app.strategies.elastic import Commit
from app.tools import overhead
from app.training.checkpoint import Checkpoints
from app.training.joined import SMALL
from app.training.state import State
from models.resnet import ResNet


def test_a_run_leaves_what_is_documented(tiny, train, tmp_path):
    result = train(tiny, checkpoint_every=2, evaluate_every=2, log_every=1)
    folder = tmp_path / "run"
    lines = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    steps = [line for line in lines if line["event"] == "train"]
    assert [line["step"] for line in steps] == [1, 2, 3, 4]
    assert {"loss", "epoch", "learning_rate", "examples_per_second"} <= steps[0].keys()
    assert [line["step"] for line in lines if line["event"] == "test"] == [2, 4]
    assert json.loads((folder / "result.json").read_text()) == result
    assert result["steps"] == 4 and result["finished"]
    assert result["metrics"]["test"]["examples"] == 101
    kept = json.loads((folder / "config.json").read_text())
    assert kept["experiment"] == result["experiment"]
    assert "tensorflow" in kept["versions"]
    assert sorted(p.name for p in (folder / "checkpoints").iterdir()) == [
        "step-00000002", "step-00000004",
    ]  # fmt: skip
    assert list((folder / "tensorboard").iterdir())


def test_training_learns_and_moves_every_weight(tiny):
    # Of 16 images over and over, each is then of one class.
    tiny = override(tiny, ["steps=30", "data.synthetic_classes=8"])
    state, step, stream = made(tiny)
    before = {n: v.numpy() for n, v in state.weights.items()}
    losses = [float(step(s, stream, 0.05)["loss"]) for s in range(30)]
    assert np.mean(losses[-3:]) < 0.8 * np.mean(losses[:3])
    still = [n for n, v in state.weights.items() if np.array_equal(v.numpy(), before[n])]
    assert not still


def test_moving_averages_take_the_mean_over_all_micro_batches(tiny):
    tiny = dataclasses.replace(tiny, steps=1)
    state, step, stream = made(tiny)
    stream = list(stream)
    kernel = state.weights["stem/convolution/kernel"].numpy()
    pad = [[0, 0], [3, 3], [3, 3], [0, 0]]
    means = [
        tf.nn.conv2d(tf.pad(x, pad), kernel, 2, "VALID").numpy().mean((0, 1, 2))
        for x, _, _ in stream
    ]
    step(0, iter(stream), 0.1)
    moving = state.weights["stem/normalization/moving_mean"].numpy()
    np.testing.assert_allclose(moving, 0.1 * np.mean(means, 0), rtol=1e-4, atol=1e-6)


def test_average_of_the_weights(tiny):
    tiny = override(tiny, ["optimization.ema_decay=0.75", "steps=1"])
    state, step, stream = made(tiny)
    name = "head/dense/kernel"
    before = state.weights[name].numpy()
    step(0, stream, 0.1)
    after = state.weights[name].numpy()
    np.testing.assert_allclose(
        state.state_dict()[f"average/{name}"], 0.75 * before + 0.25 * after, rtol=1e-4
    )
    with state.averaged():
        assert np.array_equal(state.weights[name], state.state_dict()[f"average/{name}"])
    assert np.array_equal(state.weights[name], after)


def test_a_finished_run_is_only_evaluated(tiny, train):
    first = train(tiny)
    again = train(tiny)
    assert again["examples_per_second"] == first["examples_per_second"] > 0
    assert again["weights_sha256"] == first["weights_sha256"]
    assert again["metrics"]["test"]["accuracy"] == first["metrics"]["test"]["accuracy"]


def test_checkpoints_kept_are_the_last_and_the_best(tiny, tmp_path, joined):
    state = State(tiny, tf.TensorSpec([None, 16, 16, 3]), 7)
    checkpoints = Checkpoints(tmp_path, state, joined, keep=2, about={})
    for step, accuracy in enumerate([0.1, 0.9, 0.2, None, 0.3], 1):
        checkpoints.save(step, {} if accuracy is None else {"accuracy": accuracy})
    assert checkpoints.wait() is None
    assert manifest.steps(tmp_path) == [2, 4, 5]


def test_a_checkpoint_has_the_metrics_of_its_own_step_or_none(tiny, train, tmp_path):
    train(tiny, checkpoint_every=1, evaluate_every=2, keep=4)
    manifests = sorted((tmp_path / "run" / "checkpoints").glob("*/manifest.json"))
    metrics = [manifest.read(path.parent)["metrics"] for path in manifests]
    assert [bool(m) for m in metrics] == [False, True, False, True]


def test_a_loss_that_is_not_finite_stops_and_keeps_the_weights(tiny, train, tmp_path):
    tiny = override(tiny, ["optimization.learning_rate=1e30", "steps=20"])
    with pytest.raises(NumbersError, match="must be finite"):
        train(tiny)
    assert not list((tmp_path / "run").glob("checkpoints/*"))


def test_float16_skips_an_overflow_and_halves_the_scale(tiny):
    tiny = override(tiny, ["precision=float16", "steps=3"])
    state, step, stream = made(tiny)
    state.loss_scale.assign(1e30)
    before = state.sha256()
    first = step(0, stream, 0.1)
    assert first["skipped"] and not first["finite"]
    assert state.sha256() == before
    assert state.loss_scale.numpy() == np.float32(5e29)
    state.loss_scale.assign(1024.0)
    assert step(1, stream, 0.1)["finite"]
    assert state.sha256() != before
    assert state.loss_scale.numpy() == 1024.0 and state.good_steps.numpy() == 1


@pytest.mark.parametrize("precision", ["bfloat16", "float16"])
def test_low_precision_follows_float32(tiny, precision):
    losses = {}
    for name in ("float32", precision):
        e = override(tiny, [f"precision={name}"])
        state, step, stream = made(e)
        losses[name] = [float(step(s, stream, 0.01)["loss"]) for s in range(4)]
        assert state.trainable[0].dtype == tf.float32
    np.testing.assert_allclose(losses[precision], losses["float32"], rtol=0.05)


def test_compiled_functions_do_not_grow_with_micro_batches(tiny):
    _, step, stream = made(tiny)
    for s in range(3):
        step(s, stream, 0.1)
    compiled = (step._accumulate, step._finish, step._move)
    assert [f.experimental_get_tracing_count() for f in compiled] == [1, 1, 1]


def test_compiled_functions_are_soon_ready(tiny):
    """TensorFlow computes constants before a function runs, and copies them; nodes take time."""
    model = ResNet(depth=18, width=16)
    experiment = override(dataclasses.replace(tiny, model=model), ["optimization.optimizer=lars"])
    state, step, stream = made(experiment)
    step(0, stream, 0.1)
    compiled = (step._accumulate, step._finish, step._move, step.sums.accumulate, step.sums.total)
    nodes = [f._list_all_concrete_functions()[0].graph.get_operations() for f in compiled]
    constants = [op for each in nodes for op in each if op.type in ("Const", "Fill")]
    assert max(op.outputs[0].shape.num_elements() or 0 for op in constants) <= SMALL
    move, accumulate, total = (len(each) / len(state.trainable) for each in nodes[2:])
    assert move < 14 and accumulate < 4 and total < 7


def test_an_iterator_that_ends_waits_for_no_tuning(tiny, words):
    """A run was seen to end 84 s late: the thread that tunes a data set slept."""
    for experiment in (tiny, words):
        data = experiment.data.open("")
        for found in (data.evaluation(4, range(8)), data.train(0, 4, lambda k: k, 2)):
            assert found._dataset.options().autotune.enabled is False


def test_overhead_measures_what_it_says(tiny, joined, tmp_path, monkeypatch, capsys):
    saved, committed = [], []
    monkeypatch.setattr(overhead, "PERIOD", 2)
    monkeypatch.setattr(overhead, "ROUNDS", 1)
    monkeypatch.setattr(Checkpoints, "save", lambda self, step, *_: saved.append(step))
    monkeypatch.setattr(Commit, "take", lambda self, step: committed.append(step))
    overhead.main(tiny, Layout(), joined, "", tmp_path)
    ratios = dict(line.rsplit(maxsplit=1) for line in capsys.readouterr().out.splitlines()[-2:])
    assert float(ratios["watched / bare"]) > 0 and float(ratios["elastic / bare"]) > 0
    # 5 steps to compile, then chunks: bare, watched, elastic with saves, watched, elastic, bare
    assert saved == [20, 30]
    assert committed == [30, 50]
