"""Data whose inputs are a dictionary and whose targets are of tokens, and a model for them."""

from dataclasses import dataclass

import numpy as np

from input.batches import DataSet

WORDS, TAGS, EXAMPLES = 11, 3, 40


class TaggedSet(DataSet):
    """Rows of words, of a length for each micro-batch; a tag for most, and one number a row."""

    num_classes, num_train, num_evaluation, evaluation_split = TAGS, EXAMPLES, 5, "test"
    classes = ("a", "b", "c")

    def __init__(self):
        import tensorflow as tf

        words = tf.TensorSpec([None, None], tf.int32)
        self.input_spec = {"size": tf.TensorSpec([None, 1]), "words": words}
        self.target_spec = words

    def batch(self, number, ids):
        import tensorflow as tf

        length = 3 + 2 * (number % 3)
        rows = [np.random.default_rng(int(i)) for i in ids]
        words = np.array([row.integers(0, WORDS, 8)[:length] for row in rows], np.int32)
        tags = np.array([row.integers(-1, TAGS, 8)[:length] for row in rows], np.int32)
        sizes = np.array([[row.normal()] for row in rows], np.float32)
        return {"size": tf.constant(sizes), "words": tf.constant(words)}, tf.constant(tags)

    def train(self, seed, micro_batch, numbers, count):
        import tensorflow as tf

        for number in map(int, map(numbers, range(count))):
            ids = np.arange(number * micro_batch, (number + 1) * micro_batch) % EXAMPLES
            yield *self.batch(number, ids), tf.constant(ids)

    def evaluation(self, micro_batch, examples):
        import tensorflow as tf

        for start in range(examples.start, examples.stop, micro_batch):
            ids = np.minimum(np.arange(start, start + micro_batch), examples.stop - 1)
            counts = np.arange(start, start + micro_batch) < examples.stop
            yield *self.batch(0, ids), tf.constant(counts, tf.float32)


@dataclass(frozen=True)
class Tagged:
    """Configures `TaggedSet`."""

    def prepare(self, data_dir):
        return "tagged"

    def open(self, data_dir):
        return TaggedSet()


@dataclass(frozen=True)
class Tagger:
    """Five blocks; a regularised one in the middle."""

    width: int = 6

    def blocks(self, num_outputs):
        import keras

        class Embed(keras.layers.Layer):
            def __init__(self, width, **kwargs):
                super().__init__(**kwargs)
                self.table = keras.layers.Embedding(WORDS, width, name="table")
                self.scale = keras.layers.Dense(width, name="scale")

            def call(self, inputs):
                return self.table(inputs["words"]) + self.scale(inputs["size"])[:, None]

        wide = {"activation": "tanh", "kernel_regularizer": keras.regularizers.L2(0.05)}
        return [
            Embed(self.width, name="embed"),
            keras.layers.Dense(self.width, name="wide", **wide),
            keras.layers.LayerNormalization(name="normalization"),
            keras.layers.Dense(self.width, "relu", name="inner"),
            keras.layers.Dense(num_outputs, name="head"),
        ]


def tagged():
    from app.config import Experiment, Optimization
    from app.objectives import TokenClassification
    from app.optimizers import SGD
    from app.schedules import Constant

    return Experiment(
        model=Tagger(), data=Tagged(), global_batch=24, micro_batch=4, steps=4,
        objective=TokenClassification(),
        optimization=Optimization(
            SGD(momentum=0.0, weight_decay=0.0), Constant(), learning_rate=0.5,
            reference_batch=24, warmup_epochs=0, clip_norm=0.8,
        ),
    )  # fmt: skip
