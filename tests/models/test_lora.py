"""Low-rank updates are trained as LoRA says, on every layout, beside a frozen model."""

import dataclasses

import numpy as np
import pytest
import tensorflow as tf
from steps import made

from app.config import Layout
from models import ModelError, blocks
from models.lora import LowRankDense
from models.transformer import BASE_OF_LORA, Transformer

RATE, STEPS = 0.01, 2


@pytest.fixture
def lora(sentences):
    model = dataclasses.replace(sentences.model, lora_rank=3, dropout=0.1)
    return dataclasses.replace(sentences, model=model, frozen=BASE_OF_LORA, steps=STEPS)


def trained(experiment, layout=None):
    state, step, stream = made(experiment, layout)
    for s in range(STEPS):
        step(s, stream, RATE)
    return state


def test_the_update_is_what_the_paper_writes():
    layer = LowRankDense(5, 2, 4.0, name="dense")
    blocks.build([layer], tf.zeros([1, 3]), 0)
    x = np.random.default_rng(0).normal(size=[7, 3]).astype(np.float32)
    w, bias, a, b = (v.numpy() for v in layer.weights)
    assert (w.shape, bias.shape, a.shape, b.shape) == ((3, 5), (5,), (3, 2), (2, 5))
    assert not b.any() and a.any()
    np.testing.assert_allclose(layer(x), x @ w + bias, rtol=1e-5)
    b = np.random.default_rng(1).normal(size=[2, 5]).astype(np.float32)
    layer.up.assign(b)
    np.testing.assert_allclose(layer(x), x @ (w + 4.0 * a @ b) + bias, rtol=1e-4, atol=1e-4)


def test_it_starts_as_the_model_that_it_updates(lora):
    base = dataclasses.replace(lora.model, lora_rank=0)
    plain = dataclasses.replace(lora, model=base, frozen=())
    (state, _, stream), (expected, _, _) = made(lora), made(plain)
    inputs = next(stream)[0]
    assert expected.weights.keys() < state.weights.keys()
    np.testing.assert_allclose(state.outputs(inputs), expected.outputs(inputs), atol=1e-5)


def test_only_updates_and_head_are_trained(lora):
    before = {name: v.numpy() for name, v in made(lora)[0].weights.items()}
    state = trained(lora)
    moved = {n for n, v in state.weights.items() if not np.array_equal(v, before[n])}
    assert moved == {n for n in before if "/lora_" in n or n.startswith("head/")}
    assert len([n for n in moved if "/lora_" in n]) == 4 * 4 * 2
    slots = {n for n in state.state_dict() if n.startswith("first_moment/")}
    assert slots == {f"first_moment/{n}" for n in moved}


def test_exact_has_the_same_bits_for_any_cut(lora):
    layouts = [Layout(exact=True), Layout(exact=True, stages=2, cut=(2, 4), recompute=True)]
    assert len({trained(lora, layout).sha256() for layout in layouts}) == 1


def test_tensor_parallelism_is_refused_with_the_way_out():
    with pytest.raises(ModelError, match="lora_rank=3: split the model with --stages"):
        Transformer(layers=1, width=16, heads=2, lora_rank=3).blocks(2, shards=2)
    with pytest.raises(ValueError, match="lora_rank must be 0 or more"):
        Transformer(lora_rank=-1)
