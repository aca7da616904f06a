"""Data of your own: what the docstring of `input.config` shows, and what it can be grown to."""

import ast
import textwrap
from pathlib import Path

import numpy as np
import pytest
import tensorflow as tf

from input import InputError, config, nests
from input.config import DataConfig, Source, data_set
from input.nests import Spec
from input.order import Order

pytestmark = pytest.mark.fast

DOCS = Path(__file__).parents[2] / "docs" / "data.md"


def example() -> str:
    """The code of the docstring."""
    return textwrap.dedent(str(config.__doc__).partition("runs it:\n\n")[2])


def test_the_example_is_15_lines_and_the_one_of_the_manual():
    lines = [line for line in example().splitlines() if line.strip()]
    assert len(lines) <= 15 and ast.parse(example())
    shown = DOCS.read_text().partition("# houses.py\n")[2].partition("```")[0]
    assert [line for line in shown.splitlines() if line.strip()] == lines


def test_the_example_trains_and_is_evaluated(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    rows = np.random.default_rng(0).normal(size=[400, 4])
    np.save("houses.npy", rows)
    names: dict = {"__name__": "houses"}
    exec(example(), names)
    houses = names["Houses"]()
    report = houses.prepare("data")
    assert "Houses (train 300, test 100): inputs float32 [3]; targets float32 [1]" in report
    data = houses.open("data")
    assert data.input_spec == tf.TensorSpec([None, 3]) and data.num_classes == 0
    assert data.target_spec == tf.TensorSpec([None, 1])
    order = Order(7, 300, 8)
    for k, (x, y, ids) in enumerate(data.train(7, 8, lambda k: 2 * k, 3)):
        assert np.array_equal(ids, order.examples(2 * k))
        assert np.array_equal(x, rows[ids, :3].astype(np.float32)) and y.dtype == tf.float32
        assert np.array_equal(y[:, 0], rows[ids, 3].astype(np.float32))
    (x, y, weights), *_ = data.evaluation(8, range(95, 100))
    assert np.array_equal(x[:5], rows[395:, :3].astype(np.float32))
    assert weights.numpy().tolist() == [1] * 5 + [0] * 3
    np.save("houses.npy", np.where(rows == rows[123], np.nan, rows))
    with pytest.raises(InputError, match=r"cannot read example 123 of Rows: the targets are NaN"):
        houses.prepare("data")


class Rows(Source):
    """Examples that a test gives."""

    def __init__(self, inputs, targets, **attributes):
        self.inputs, self.targets = inputs, targets
        vars(self).update(attributes)

    def __len__(self):
        return len(self.inputs)

    def fetch(self, ids):
        return [self.inputs[i] for i in ids], [self.targets[i] for i in ids]


def opened(inputs, targets, **attributes):
    rows = Rows(inputs, targets, **attributes)
    return data_set(rows, rows)


def test_inputs_and_targets_are_nests_of_any_form():
    inputs = [{"pair": (f"a{i}", b"b"), "image": np.full([2, 2], i, np.uint8)} for i in range(8)]
    targets = [{"box": [0.5, i], "depth": np.ones([2, 1])} for i in range(8)]
    data = opened(inputs, targets)
    assert (
        next(iter(opened(np.ones([4, 2], np.uint16), [0.5] * 4).evaluation(4, range(4))))[0].dtype
        == tf.int32
    )
    string = tf.TensorSpec([None], tf.string)
    image = tf.TensorSpec([None, 2, 2], tf.uint8)
    assert data.input_spec == {"pair": (string, string), "image": image}
    assert data.target_spec == {
        "box": tf.TensorSpec([None, 2]),
        "depth": tf.TensorSpec([None, 2, 1]),
    }
    for x, y, ids in data.train(1, 4, lambda k: k, 2):
        assert x["pair"][0].numpy().tolist() == [b"a%d" % i for i in ids.numpy()]
        assert np.array_equal(x["image"][:, 1, 1], ids) and np.array_equal(y["box"][:, 1], ids)


@pytest.mark.parametrize(
    ("targets", "classes", "spec", "found"),
    [
        ([2, 0, 1, 1], ("a", "b", "c"), tf.TensorSpec([None, 3]), np.eye(3)[[2, 0, 1, 1]]),
        ([[1.0, 0], [0, 0], [1, 1], [0, 1]], ("a", "b"), tf.TensorSpec([None, 2]),
         [[1, 0], [0, 0], [1, 1], [0, 1]]),
        ([0.5, 1.5, 2, 4], (), tf.TensorSpec([None, 1]), [[0.5], [1.5], [2], [4]]),
        ([[1, -1], [2, 2], [0, 0], [1, 0]], ("a", "b", "c"), tf.TensorSpec([None, 2], tf.int32),
         [[1, -1], [2, 2], [0, 0], [1, 0]]),
    ],
)  # fmt: skip
def test_what_targets_mean_follows_from_their_type(targets, classes, spec, found):
    data = opened(np.zeros([4, 1]), targets, classes=classes)
    assert (data.target_spec, data.num_classes) == (spec, len(classes))
    (_, y, _), *_ = data.evaluation(4, range(4))
    assert np.array_equal(y, found) and y.dtype == spec.dtype


def test_examples_of_different_length_are_padded_and_grouped():
    lengths = np.arange(1, 41)
    inputs = [np.arange(1, n + 1) for n in lengths]
    specs = Spec((None,), "int32"), Spec((None,), "int32", pad=-1)
    data = opened(inputs, inputs, specs=specs, lengths=lengths, classes=tuple(map(str, range(41))))
    assert data.input_spec == tf.TensorSpec([None, None], tf.int32)
    order = Order(3, 40, 4, lengths)
    for k, (x, y, ids) in enumerate(data.train(3, 4, lambda k: k, 10)):
        assert np.array_equal(ids, order.examples(k))
        assert x.shape == y.shape == [4, -(-lengths[ids.numpy()].max() // 8) * 8]
        for row, target, n in zip(x.numpy(), y.numpy(), lengths[ids.numpy()], strict=True):
            assert row.tolist() == [*range(1, n + 1), *[0] * (len(row) - n)]
            assert target.tolist() == [*range(1, n + 1), *[-1] * (len(row) - n)]


class Noisy(Rows):
    def example(self, inputs, targets, random):
        return inputs if random is None else random.normal(size=3), targets


def test_what_is_drawn_is_a_function_of_seed_and_place():
    rows = Noisy(np.zeros([16, 3]), np.zeros(16))
    data = data_set(rows, rows)
    whole = [x.numpy() for x, _, _ in data.train(5, 4, lambda k: k, 6)]
    again = [x.numpy() for x, _, _ in data.train(5, 4, lambda k: k + 3, 3)]
    assert np.array_equal(whole[3:], again)
    assert len({x.tobytes() for x in np.concatenate(whole)}) == 24  # a second epoch differs
    assert not np.array_equal(whole[0], next(iter(data.train(6, 4, lambda k: k, 1)))[0])
    assert not next(iter(data.evaluation(4, range(4))))[0].numpy().any()


GOOD = np.zeros([8, 3])


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda x, y: x.__setitem__(5, np.zeros(4)), r"inputs have the shape \[4\], not \[3\]"),
        (lambda x, y: y.__setitem__(5, np.nan), r"the targets are NaN"),
        (lambda x, y: y.__setitem__(5, np.inf), r"the targets are infinite"),
        (lambda x, y: y.__setitem__(5, [1, 2]), r"targets have the shape \[2\], not \[1\]"),
        (lambda x, y: x.__setitem__(5, {"a": 1}), r"have the parts \['a'\], not \(one array\)"),
        (lambda x, y: x.__setitem__(5, "text"), r"inputs have the shape \[\], not \[3\]"),
        (lambda x, y: x.__setitem__(5, ["a"] * 3), r"inputs are object, not float32"),
        (lambda x, y: x.__setitem__(5, [1, [2, 3]]), r"inputs are rows of different lengths"),
    ],
)  # fmt: skip
def test_an_example_that_does_not_fit_is_named(change, message):
    inputs, targets = list(GOOD), [0.5] * 8
    change(inputs, targets)
    data = opened(inputs, targets)
    with pytest.raises(InputError, match=f"^cannot read example 5 of Rows: .*{message}[^.]*\\.$"):
        list(data.train(1, 4, lambda k: k, 2))
    with pytest.raises(InputError, match=f"^cannot read example 5 of Rows: .*{message}"):
        list(data.evaluation(4, range(8)))


@pytest.mark.parametrize(
    ("targets", "classes", "message"),
    [
        ([0, 1, 2, 1], ("a", "b"), r"example 2 of Rows: label 2 is not in \[0, 2\)"),
        ([0, 1, -1, 1], ("a", "b"), r"example 2 of Rows: label -1 is not in"),
        ([[0, 1], [1, -1], [0, 2], [0, 0]], ("a", "b"), r"example 2 .* classes from 0 to 2, but"),
        ([[0.0, 1], [1, 0], [0, 2], [0, 0]], ("a", "b"), r"example 2 .*2.0\] must be from 0"),
        ([0, 1, 0, 1], (), r"targets of Rows are whole numbers, which are classes, but"),
        ([[0.0, 1]] * 4, ("a", "b", "c"), r"of Rows have the shape \[2\], but `classes` has 3"),
    ],
)  # fmt: skip
def test_targets_outside_the_classes(targets, classes, message):
    with pytest.raises(InputError, match=message):
        list(opened(GOOD[:4], targets, classes=classes).train(1, 4, lambda k: k, 1))


def test_prepare_counts_classes_and_shares():
    class Labelled(DataConfig):
        def open(self, data_dir):
            return opened(GOOD, [0, 1] * 4, classes=("even", "odd"))

    class Marked(DataConfig):
        def open(self, data_dir):
            return opened(GOOD, [[1.0, i % 2] for i in range(8)], classes=("all", "odd"))

    assert "even" in Labelled().prepare("") and " 4 " in Labelled().prepare("")
    report = Marked().prepare("").split("\n")
    assert report[2].split() == ["all", "100.0%", "100.0%"]
    assert report[3].split() == ["odd", "50.0%", "50.0%"]


def test_nests_are_in_the_order_of_tensorflow():
    nest = {"b": (1, {"z": 2, "y": 3}), "a": 4}
    flat = [leaf for _, leaf in nests.flatten(nest)]
    assert flat == tf.nest.flatten(nest)
    assert nests.pack(nest, iter(flat)) == nest
