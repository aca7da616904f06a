import dataclasses
import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import tensorflow as tf

from models import ModelError, blocks
from models.transformer import Transformer

BERT = Path(__file__).parent / "fixtures" / "bert"
SMALL = Transformer(layers=3, width=32, heads=4, vocabulary=50, positions=24)
KEY = np.zeros(2, np.int32)  # no tensor: devices are named before the first


def built(config, num_classes=2):
    model = list(config.blocks(num_classes))
    blocks.build(model, tf.zeros([2, 8], tf.int32), 0)
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
