import contextlib
import dataclasses
import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import tensorflow as tf

from models import ModelError, blocks
from models.packing import Packed, Padded, packing
from models.transformer import Transformer

BERT = Path(__file__).parent / "fixtures" / "bert"
SMALL = Transformer(layers=3, width=32, heads=4, vocabulary=50, positions=24)
KEY = np.zeros(2, np.int32)  # no tensor: devices are named before the first


def built(config, num_classes=2, shares=1):
    model = list(config.blocks(num_classes, shares))
    places = [[contextlib.nullcontext] * shares] * len(model)
    blocks.build(model, tf.zeros([2, 8], tf.int32), 0, places)
    return model


def test_the_answers_are_the_reference_s():
    answers = np.load(BERT / "answers.npz")
    model = built(SMALL)
    SMALL.load(model, BERT)
    *encoder, head = model
    x, mask = blocks.forward(encoder, tf.constant(answers["ids"], tf.int32), False, KEY)
    real = answers["ids"] > 0
    assert np.array_equal(mask, real)
    np.testing.assert_allclose(x.numpy()[real], answers["hidden"][real], atol=2e-5)
    np.testing.assert_allclose(tf.tanh(head.pooler(x[:, 0])), answers["pooled"], atol=2e-5)


@pytest.mark.parametrize("norm", ["post", "pre"])
@pytest.mark.parametrize("pooling", ["cls", "mean"])
def test_padding_never_changes_a_result(norm, pooling):
    model = built(dataclasses.replace(SMALL, norm=norm, pooling=pooling))
    ids = np.random.default_rng(0).integers(4, 50, [2, 7]).astype(np.int32)
    padded = np.pad(ids, [[0, 0], [0, 9]])
    short, long = (blocks.forward(model, tf.constant(i), False, KEY) for i in (ids, padded))
    np.testing.assert_allclose(short, long, atol=1e-5)


@pytest.mark.parametrize("norm", ["post", "pre"])
@pytest.mark.parametrize("shares", [1, 3])
def test_tokens_alone_give_what_all_places_give(norm, shares):
    config = dataclasses.replace(SMALL, norm=norm, pooling="mean", dropout=0.0)
    model = built(config, shares=shares)
    ids = np.random.default_rng(0).integers(4, 50, [3, 9]).astype(np.int32)
    ids[0, 4:] = ids[1, 1:] = ids[2, 3] = 0  # and one with a gap
    padded, packed = (blocks.forward(model, ids, training, KEY) for training in (True, False))
    assert np.ptp(padded.numpy()[:, 0]) > 1e-3  # the texts differ
    np.testing.assert_allclose(padded, packed, atol=1e-6)


def test_what_is_padded_is_not_computed():
    mask = tf.constant([[True, True, False, False], [False] * 4, [True, False, True, False]])
    x = tf.reshape(tf.range(12.0), [3, 4, 1])
    tokens = Packed(mask)
    # A text without a token keeps one place, so that the others are computed all the same.
    assert tokens.pack(x).numpy().ravel().tolist() == [0, 1, 4, 8, 10]
    assert np.array_equal(tf.boolean_mask(tokens.pad(tokens.pack(x)), mask), x[mask])
    of_one = tf.TensorSpec([1, None], tf.bool)
    kinds = [type(packing(m, t)) for m, t in ((mask, False), (mask, True), (mask[:1], False))]
    assert kinds == [Packed, Padded, Padded]
    tf.function(lambda m: kinds.append(type(packing(m, False)))).get_concrete_function(of_one)
    assert kinds[-1] is Padded


@pytest.mark.parametrize("kind", [Padded, Packed])
def test_heads_are_cut_and_put_together(kind):
    mask = tf.constant([[True] * 5, [True] * 2 + [False] * 3])
    tokens, heads, size = kind(mask), 2, 3
    qkv = np.random.default_rng(0).normal(size=[2, 5, heads, 3, size]).astype(np.float32)
    q, k, v = tokens.apart(tokens.pack(tf.reshape(qkv, [2, 5, -1])), heads)
    for i, found in enumerate((q, k, v)):
        wanted = qkv[:, :, :, i].transpose(0, 2, 1, 3)  # [B, H, T, s]
        assert found.shape == wanted.shape
        assert np.array_equal(found[0], wanted[0])
        assert np.array_equal(found[1, :, :2], wanted[1, :, :2])
    back = tokens.pad(tokens.together(v))
    assert np.array_equal(back[0], qkv[0, :, :, 2].reshape(5, -1))
    assert np.array_equal(back[1, :2], qkv[1, :2, :, 2].reshape(2, -1))


def test_dropout_is_a_function_of_the_seed():
    model = built(dataclasses.replace(SMALL, dropout=0.5))
    ids = tf.ones([2, 8], tf.int32)
    first, again = (blocks.forward(model, ids, True, KEY) for _ in range(2))
    other = blocks.forward(model, ids, True, tf.constant([0, 1]))
    assert np.array_equal(first, again) and not np.allclose(first, other)
    # A block's draws depend on its place in the whole model, however the model is cut.
    x = blocks.forward(model[:2], ids, True, KEY)
    assert np.array_equal(blocks.forward(model[2:], x, True, KEY, first=2), first)


@pytest.mark.parametrize("size", ["tiny", "large"])
def test_the_published_sizes(size):
    layers, width, heads, count = {
        "tiny": (2, 128, 2, 4_385_920),
        "large": (24, 1024, 16, 335_141_888),
    }[size]
    config = Transformer(layers=layers, width=width, heads=heads)
    # BERT without a classifier: embeddings, layers, pooler.
    each = 12 * width**2 + 13 * width
    assert (30522 + 512 + 2) * width + 2 * width + layers * each + width**2 + width == count
    if size == "tiny":
        model = built(config)
        weights = sum(v.value.shape.num_elements() for b in model for v in b.variables)
        assert weights == count + 2 * width + 2


def change(folder, **values):
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | values))


@pytest.mark.parametrize(
    ("config", "spoil", "words"),
    [
        (SMALL, lambda f: (f / "config.json").unlink(), ["config.json", "init_from"]),
        (SMALL, lambda f: (f / "model.safetensors").write_bytes(b"x"), ["model.safetensors"]),
        (SMALL, lambda f: change(f, model_type="roberta"), ["'roberta'", "BERT"]),
        (SMALL, lambda f: change(f, intermediate_size=64), ["64", "128"]),
        (dataclasses.replace(SMALL, width=16), None, ["model.width=32", "16"]),
        (dataclasses.replace(SMALL, norm="pre"), None, ["model.norm=post"]),
        # config.json lies about what model.safetensors holds.
        (dataclasses.replace(SMALL, layers=4), lambda f: change(f, num_hidden_layers=4),
         ["no tensor 'encoder.layer.3.attention.self.query.weight'"]),
        (dataclasses.replace(SMALL, vocabulary=60), lambda f: change(f, vocab_size=60),
         ["[50, 32]", "[60, 32]", "word_embeddings"]),
    ],
)  # fmt: skip
def test_what_is_not_this_bert_is_refused(tmp_path, config, spoil, words):
    folder = tmp_path / "bert"
    shutil.copytree(BERT, folder)
    if spoil:
        spoil(folder)
    with pytest.raises(ModelError) as error:
        config.load(built(config), folder)
    assert all(word in str(error.value) for word in words)
