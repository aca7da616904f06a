import contextlib
import dataclasses
import json
import shutil
from pathlib import Path

import ml_dtypes
import numpy as np
import pytest
import tensorflow as tf

from models import ModelError, blocks, shards
from models.packing import Packed, Padded, packing
from models.transformer import Transformer

BERT = Path(__file__).parents[1] / "fixtures" / "bert"
SMALL = Transformer(layers=3, width=32, heads=4, vocabulary=50, positions=24)
KEY = np.zeros(2, np.int32)  # no tensor: devices are named before the first


def built(config, num_classes=2, shards=1):
    model = list(config.blocks(num_classes, shards))
    places = [[contextlib.nullcontext] * shards] * len(model)
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
@pytest.mark.parametrize("shards", [1, 3])
def test_computing_only_tokens_gives_what_computing_all_places_gives(norm, shards):
    config = dataclasses.replace(SMALL, norm=norm, pooling="mean", dropout=0.0)
    model = built(config, shards=shards)
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
    q, k, v = tokens.split_heads(tokens.pack(tf.reshape(qkv, [2, 5, -1])), heads)
    for i, found in enumerate((q, k, v)):
        wanted = qkv[:, :, :, i].transpose(0, 2, 1, 3)  # [B, H, T, s]
        assert found.shape == wanted.shape
        assert np.array_equal(found[0], wanted[0])
        assert np.array_equal(found[1, :, :2], wanted[1, :, :2])
    back = tokens.pad(tokens.join_heads(v))
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


@pytest.mark.parametrize("activation", ["gelu_tanh", "relu"])
def test_other_activations(activation):
    config = dataclasses.replace(SMALL, activation=activation)
    (mlp,) = built(config)[1].mlp.shards
    x = np.random.default_rng(0).normal(size=[5, 32]).astype(np.float32)
    inner = (x @ mlp.inner.kernel.numpy() + mlp.inner.bias.numpy()).astype(np.float64) * 20
    mlp.inner.kernel.assign(mlp.inner.kernel * 20)
    # As `transformers` has them: NewGELUActivation and ReLU.
    cubic = np.sqrt(2 / np.pi) * (inner + 0.044715 * inner**3)
    wanted = {"gelu_tanh": 0.5 * inner * (1 + np.tanh(cubic)), "relu": np.maximum(inner, 0)}
    np.testing.assert_allclose(
        mlp(tf.constant(x)), wanted[activation] @ mlp.out.kernel.numpy(), atol=1e-5
    )


def read(path):
    """Arrays of a safetensors file."""
    data = path.read_bytes()
    length = int.from_bytes(data[:8], "little")
    header = json.loads(data[8 : 8 + length])
    header.pop("__metadata__", None)
    return {
        name: np.frombuffer(data[8 + length :][slice(*about["data_offsets"])], np.float32).reshape(
            about["shape"]
        )
        for name, about in header.items()
    }


def raw(header, data=b""):
    """A safetensors file's bytes."""
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    return len(text).to_bytes(8, "little") + text + data


def write(path, arrays):
    """A safetensors file of arrays."""
    kinds = {"float32": "F32", "float16": "F16", "bfloat16": "BF16"}
    header, data = {}, b""
    for name, array in arrays.items():
        about = {"dtype": kinds[array.dtype.name], "shape": array.shape}
        header[name] = about | {"data_offsets": [len(data), len(data) + array.nbytes]}
        data += array.tobytes()
    path.write_bytes(raw(header, data))


def sharded(folder):
    """The weights in two files and an index."""
    arrays = list(read(folder / "model.safetensors").items())
    (folder / "model.safetensors").unlink()
    names = {}
    for name, some in (("1.safetensors", arrays[:20]), ("2.safetensors", arrays[20:])):
        write(folder / name, dict(some))
        names |= dict.fromkeys(dict(some), name)
    (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": names}))


def as_type(kind):
    def rewrite(folder):
        path = folder / "model.safetensors"
        write(path, {name: value.astype(kind) for name, value in read(path).items()})

    return rewrite


def one_segment(folder):
    path, name = folder / "model.safetensors", "embeddings.token_type_embeddings.weight"
    arrays = read(path)
    write(path, arrays | {name: arrays[name][:1]})
    change(folder, type_vocab_size=1)


def of_a_task(folder):
    path = folder / "model.safetensors"
    old = {"weight": "gamma", "bias": "beta"}
    write(path, {
        f"bert.{name}".replace("LayerNorm." + kind, "LayerNorm." + old[kind]): value
        for name, value in read(path).items() for kind in [name.rpartition(".")[2]]
    })  # fmt: skip


@pytest.mark.parametrize(
    ("rewrite", "error"),
    [
        (sharded, 0), (one_segment, 0), (of_a_task, 0), (as_type("float16"), 2**-11),
        (as_type(ml_dtypes.bfloat16), 2**-8),
    ],
)  # fmt: skip
def test_other_forms_of_the_same_weights(tmp_path, rewrite, error):
    model, other = built(SMALL), built(SMALL)
    SMALL.load(model, BERT)
    folder = tmp_path / "bert"
    shutil.copytree(BERT, folder)
    rewrite(folder)
    SMALL.check(folder)
    SMALL.load(other, folder)
    *encoder, head = model
    for block, found in zip([*encoder, head.pooler], [*other[:-1], other[-1].pooler], strict=True):
        for a, b in zip(block.variables, found.variables, strict=True):
            rows = slice(1 if a.name == "segments" else None)
            np.testing.assert_allclose(a[rows], b[rows], rtol=error, atol=1e-6 if error else 0)


def tensor(begin, end, shape=(2,), kind="F32"):
    return {"dtype": kind, "shape": shape, "data_offsets": [begin, end]}


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (b"", ["header"]),
        (b"1234567", ["header"]),
        ((2**63).to_bytes(8, "little") + b"{}", ["9,223,372,036,854,775,808 bytes in 10"]),
        (raw(b"{}")[:9], ["2 bytes in 9"]),
        (raw(b"{\xff"), ["header", "UnicodeDecodeError"]),
        (raw(b"[" * 100_000), ["header", "RecursionError"]),
        (raw(b"[1]"), ["header"]),
        (raw({"a": 1}), ["header"]),
        (raw({"a": tensor(0, 8)}, b"1234567"), ["up to byte", "of"]),
        (raw({"a": tensor(0, 8), "b": tensor(4, 12)}, b"x" * 12), ["'b' at 4 to 12", "8 is next"]),
        (raw({"a": tensor(4, 12)}, b"x" * 12), ["'a' at 4 to 12", "0 is next"]),
        (raw({"a": tensor(0, 8, [3])}, b"x" * 8), ["F32 [3] in 8 bytes"]),
        (raw({"a": tensor(0, 8, [-2])}, b"x" * 8), ["'a'", "(-2,)"]),
        (raw({"a": tensor(0, 8, [10**30])}, b"x" * 8), ["in 8 bytes"]),
        (b"version https://git-lfs.github.com/spec/v1\n", ["git lfs pull"]),
    ],
)  # fmt: skip
def test_damaged_weights_are_one_message(tmp_path, content, words):
    shutil.copy(BERT / "config.json", tmp_path)
    (tmp_path / "model.safetensors").write_bytes(content)
    with pytest.raises(ModelError) as error:
        SMALL.check(tmp_path)
    assert all(word in str(error.value) for word in ["model.safetensors", *words]), error.value


def only(name):
    """Has its weights in a file of this name."""
    return lambda folder: (folder / "model.safetensors").rename(folder / name)


def index(names):
    def spoil(folder):
        sharded(folder)
        path = folder / "model.safetensors.index.json"
        path.write_text(json.dumps({"weight_map": names(json.loads(path.read_text()))}))

    return spoil


def change(folder, **values):
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | values))


@pytest.mark.parametrize(
    ("config", "spoil", "words"),
    [
        (SMALL, lambda f: (f / "config.json").unlink(), ["config.json", "init_from"]),
        (SMALL, lambda f: (f / "model.safetensors").write_bytes(b"x"), ["model.safetensors"]),
        (SMALL, lambda f: change(f, model_type="roberta"), ["'roberta'", "BERT"]),
        (SMALL, lambda f: change(f, intermediate_size=64), ["intermediate_size 64", "128"]),
        (SMALL, lambda f: change(f, hidden_act="swish"), ["hidden_act 'swish'", "gelu_new"]),
        (SMALL, lambda f: change(f, hidden_act="gelu_new"), ["model.activation=gelu_tanh"]),
        (dataclasses.replace(SMALL, activation="relu"), None, ["model.activation=gelu", "relu)"]),
        (SMALL, lambda f: change(f, layer_norm_eps=1e-5), ["model.epsilon=1e-05", "1e-12"]),
        (SMALL, lambda f: change(f, is_decoder=True), ["is_decoder True", "False"]),
        (SMALL, lambda f: change(f, add_cross_attention=True), ["add_cross_attention True"]),
        (SMALL, lambda f: change(f, position_embedding_type="relative_key"),
         ["position_embedding_type 'relative_key'", "'absolute'"]),
        (SMALL, lambda f: change(f, pruned_heads={"0": [1]}), ["pruned_heads {'0': [1]}"]),
        (SMALL, lambda f: change(f, quantization_config={"bits": 4}), ["quantization_config"]),
        (SMALL, lambda f: change(f, type_vocab_size=1), ["token_type", "[2, 32]", "[1, 32]"]),
        (SMALL, lambda f: (f / "config.json").write_text("[]"), ["config.json", "object", "list"]),
        (SMALL, lambda f: (f / "config.json").write_text("version https://git-lfs.github.com/"),
         ["config.json", "git lfs pull"]),
        (SMALL, only("pytorch_model.bin"), ["pytorch_model.bin", "save_pretrained", "run code"]),
        (SMALL, only("tf_model.h5"), ["tf_model.h5", "save_pretrained"]),
        (SMALL, only("other"), ["model.safetensors", "model.init_from"]),
        (SMALL, index(lambda i: 1), ["index.json", "weight_map"]),
        (SMALL, index(lambda i: i["weight_map"] | {"x": "../1.safetensors"}), ["of its folder"]),
        (SMALL, index(lambda i: i["weight_map"] | {"x": "1.safetensors"}), ["1 tensors", "x"]),
        (SMALL, index(lambda i: i["weight_map"] | {"x": "3.safetensors"}), ["3.safetensors"]),
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
    for refuse in (config.check, lambda folder: config.load(built(config), folder)):
        with pytest.raises(ModelError) as error:
            refuse(folder)
        assert all(word in str(error.value) for word in words), error.value


def test_nested_layers_are_listed_in_the_order_on_which_initial_weights_depend():
    """They come from a private method of Keras, which a new version may change."""
    embeddings, layer, *_ = built(SMALL, shards=2)
    names = [nested.name for nested in shards.nested_layers(embeddings)]
    assert names == ["embeddings", "words", "share1", "share0", "normalization"]
    attention = ["attention", "share1", "out", "qkv", "share0", "out", "qkv"]
    mlp = ["mlp", "share1", "out", "inner", "share0", "out", "inner"]
    names = [nested.name for nested in shards.nested_layers(layer)]
    assert names == [
        "layer00", *attention, "attention_normalization", *mlp, "mlp_normalization"
    ]  # fmt: skip
