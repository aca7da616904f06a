"""Random folders of pretrained weights are loaded, or refused in a sentence."""

import dataclasses
import json
import struct

import numpy as np
import pytest
from fuzz import examples
from hypothesis import given
from hypothesis import strategies as st

from models import ModelError, pretrained
from models.transformer import Transformer

pytestmark = pytest.mark.fast

MODEL = Transformer(layers=1, width=8, heads=2, vocabulary=6, positions=16)
FIELDS = dataclasses.asdict(MODEL)
CONFIG = {
    "model_type": "bert", "num_hidden_layers": 1, "hidden_size": 8, "num_attention_heads": 2,
    "vocab_size": 6, "max_position_embeddings": 16, "intermediate_size": 32, "type_vocab_size": 2,
    "hidden_act": "gelu", "layer_norm_eps": 1e-12,
}  # fmt: skip
SHAPES = pretrained.shapes(FIELDS, 2)
JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=9),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner),
    max_leaves=5,
)


def whole():
    """A header of safetensors, and the bytes behind it."""
    header, at = {}, 0
    for name, shape in SHAPES.items():
        size = 4 * int(np.prod(shape))
        header[name] = {"dtype": "F32", "shape": list(shape), "data_offsets": [at, at + size]}
        at += size
    return header, bytes(at)


@st.composite
def folders(draw):
    """A config and weights, some of their values replaced, some bytes of the file changed."""
    config, (header, content) = dict(CONFIG), whole()
    for name in draw(st.lists(st.sampled_from(sorted(CONFIG)), max_size=2)):
        config[name] = draw(JSON)
    for name in draw(st.lists(st.sampled_from(sorted(header)), max_size=2)):
        entry = dict(whole()[0][name])
        entry[draw(st.sampled_from(["dtype", "shape", "data_offsets"]))] = draw(
            JSON | st.lists(st.integers(-(2**70), 2**70), max_size=3)
        )
        header[name] = draw(st.sampled_from([entry, draw(JSON)]))
    text = json.dumps(header).encode()
    length = draw(st.sampled_from([len(text)] * 5 + [0, 2**63, 2**64 - 1, len(text) + 99]))
    raw = struct.pack("<Q", length) + text + content
    for _ in range(draw(st.integers(0, 2))):
        at = draw(st.integers(0, len(text) + 8))
        raw = raw[:at] + draw(st.binary(max_size=3)) + raw[at + draw(st.integers(0, 3)) :]
    cut = draw(st.sampled_from([None, None, None, draw(st.integers(0, len(raw)))]))
    contents = draw(st.sampled_from([json.dumps(config).encode()] * 9 + [draw(st.binary())]))
    return contents, raw[:cut]


@given(folders())
@examples(share=2)
def test_fuzz_weights_are_loaded_or_refused(tmp_path_factory, contents):
    folder = tmp_path_factory.getbasetemp() / "weights"
    folder.mkdir(exist_ok=True)
    for name, content in zip(("config.json", "model.safetensors"), contents, strict=True):
        (folder / name).write_bytes(content)
    try:
        weights = pretrained.check(FIELDS, folder)
        for name, shape in SHAPES.items():
            assert weights[name].shape == shape
    except ModelError as error:
        assert str(folder) in str(error) and len(str(error)) < 3000


def test_an_undamaged_folder_loads(tmp_path):
    header, content = whole()
    text = json.dumps(header).encode()
    (tmp_path / "config.json").write_text(json.dumps(CONFIG))
    (tmp_path / "model.safetensors").write_bytes(struct.pack("<Q", len(text)) + text + content)
    weights = pretrained.check(FIELDS, tmp_path)
    assert all(weights[name].shape == shape for name, shape in SHAPES.items())
