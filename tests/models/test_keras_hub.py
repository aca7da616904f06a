"""A text model that KerasHub builds, without its presets, trains as any whole Keras model."""

import dataclasses
from dataclasses import dataclass

import keras
import keras_hub
import numpy as np
import pytest
import tensorflow as tf
from steps import made

from app.config import Experiment, Layout, Optimization
from app.optimizers import SGD, AdamW
from app.parallel.topology import Topology
from app.schedules import Constant
from app.training.evaluation import Evaluator
from input.config import DataConfig, Source, data_set
from models.keras_model import KerasModel

RATE, STEPS, LENGTH, VOCABULARY, CLASSES = 0.05, 2, 16, 100, 3


class Rows(Source):
    """Random tokens of one length in a batch, padded: what a KerasHub preprocessor returns."""

    classes = tuple("abc")

    def __init__(self, count, seed):
        random = np.random.default_rng(seed)
        tokens = random.integers(1, VOCABULARY, [count, LENGTH], np.int32)
        self.mask = (np.arange(LENGTH) < random.integers(4, LENGTH + 1, [count, 1])).astype(
            np.int32
        )
        self.tokens = tokens * self.mask
        self.segments = (np.arange(LENGTH) >= 3).astype(np.int32) * self.mask

    def __len__(self):
        return len(self.tokens)

    def inputs(self, i):
        return {
            "token_ids": self.tokens[i],
            "segment_ids": self.segments[i],
            "padding_mask": self.mask[i],
        }

    def fetch(self, ids):
        return [self.inputs(i) for i in ids], [self.label(i) for i in ids]

    def label(self, i):
        return int(self.tokens[i, 0]) % CLASSES


@dataclass(frozen=True)
class Texts(DataConfig):
    def open(self, data_dir):
        return data_set(Rows(24, seed=0), Rows(10, seed=1))


def backbone(dropout):
    return keras_hub.models.BertBackbone(
        vocabulary_size=VOCABULARY, num_layers=2, num_heads=2, hidden_dim=16, intermediate_dim=32,
        dropout=dropout, max_sequence_length=LENGTH,
    )  # fmt: skip


def classifier(num_outputs, dropout=0.1):
    bert = backbone(dropout)
    logits = keras.layers.Dense(num_outputs, name="head")(bert.output["pooled_output"])
    return keras.Model(bert.input, logits)


def undropped(num_outputs):
    return classifier(num_outputs, dropout=0.0)


@pytest.fixture
def experiment() -> Experiment:
    return Experiment(
        model=KerasModel(classifier),
        data=Texts(),
        global_batch=12,
        micro_batch=4,
        steps=STEPS,
        optimization=Optimization(AdamW(weight_decay=0.01), Constant(), warmup_epochs=0),
    )


def trained(experiment, layout=None):
    state, step, stream = made(experiment, layout)
    return state, [float(step(s, stream, RATE)["loss"]) for s in range(STEPS)]


def copied(state, build):
    """Returns Keras' own model with a state's weights."""
    model = build(CLASSES)
    for variable in model.weights:
        variable.assign(state.weights[variable.path])
    return model


def test_stages_train_the_same_bits_and_are_evaluated(experiment):
    blocks = [block.name for block in experiment.model.blocks(CLASSES)]
    assert {"transformer_layer_0", "transformer_layer_1"} <= set(blocks)
    data, found = experiment.data.open(""), []
    initial = made(experiment)[0].sha256()
    for stages in (1, 2):
        state, losses = trained(experiment, Layout(stages=stages, exact=True))
        metrics = Evaluator(experiment, state, data, Topology())()
        assert state.sha256() != initial and len(state.parts) == stages
        found.append((state.sha256(), losses, metrics))
    assert found[0] == found[1]

    inputs, targets, weights = next(iter(data.evaluation(10, range(10))))
    logits = copied(state, classifier)(inputs, training=False)
    losses = tf.nn.softmax_cross_entropy_with_logits(targets, logits)
    right = np.argmax(logits, -1) == np.argmax(targets, -1)
    assert weights.numpy().sum() == metrics["examples"] == 10
    assert metrics["loss"] == pytest.approx(np.mean(losses), rel=1e-5)
    assert metrics["accuracy"] == pytest.approx(np.mean(right))


def test_one_micro_batch_is_what_keras_trains(experiment):
    """Without dropout, whose masks are keyed otherwise."""
    plain = dataclasses.replace(experiment.optimization, optimizer=SGD(weight_decay=0.0))
    one = dataclasses.replace(
        experiment, model=KerasModel(undropped), micro_batch=12, optimization=plain
    )
    state, step, stream = made(one)
    theirs = copied(state, undropped)
    cross_entropy = keras.losses.CategoricalCrossentropy(from_logits=True)
    theirs.compile(keras.optimizers.SGD(RATE, momentum=0.9), cross_entropy, jit_compile=False)
    for s in range(STEPS):
        batch = next(stream)
        theirs.reset_metrics()
        expected = float(theirs.train_on_batch(*batch[:2]))
        assert float(step(s, iter([batch]), RATE)["loss"]) == pytest.approx(expected, rel=1e-5)
    for variable in theirs.weights:
        found = state.weights[variable.path]
        np.testing.assert_allclose(found, variable, atol=1e-5, err_msg=variable.path)
