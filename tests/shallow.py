"""Small models, for tests of what surrounds a model: they are built faster than deep ones."""

from dataclasses import dataclass

from models.resnet import ResNet


@dataclass(frozen=True)
class Short(ResNet):
    """A ResNet-18's stem, a unit of its first group, the first of its second, and its head.

    These have all that the ten blocks have: convolutions with and without stride, normalisation,
    pooling, and shortcuts with and without a projection.
    """

    depth: int = 18
    width: int = 4

    def __len__(self):
        return 4

    def blocks(self, num_classes):
        stem, first, _, second, *_, head = super().blocks(num_classes)
        return [stem, first, second, head]


@dataclass(frozen=True)
class Shallow:
    """The model in README."""

    width: int = 4

    def blocks(self, num_classes):
        import keras  # a launcher that reads this file needs no TensorFlow

        from models.normalization import BatchNormalization

        return [
            keras.layers.Conv2D(self.width, 3, strides=2, activation="relu"),
            BatchNormalization(),
            keras.layers.GlobalAveragePooling2D(),
            keras.layers.Dense(num_classes),
        ]


@dataclass(frozen=True)
class Linear:
    """One layer over all pixels."""

    def blocks(self, num_classes):
        import keras

        return [keras.layers.Flatten(name="flat"), keras.layers.Dense(num_classes, name="head")]


@dataclass(frozen=True)
class Dense:
    """Four blocks without convolutions, that are compiled soonest; all but one have weights."""

    width: int = 4

    def blocks(self, num_classes):
        import keras

        from models.normalization import BatchNormalization

        return [
            BatchNormalization(name="norm"),
            keras.layers.Flatten(name="flat"),
            keras.layers.Dense(self.width, activation="relu", name="inner"),
            keras.layers.Dense(num_classes, name="head"),
        ]


@dataclass(frozen=True)
class Split(Linear):
    """Layers over all pixels, some of them sums of shards: what `--tensor` can split.

    The layers of a transformer take seconds to compile.
    """

    width: int = 6
    depth: int = 2  # of layers that are split

    def blocks(self, num_classes, shards=1):
        import keras

        from models.shards import Sharded

        def shard(own, name):
            inner = keras.layers.Dense(len(own), activation="relu", name="inner")
            outer = keras.layers.Dense(self.width, use_bias=False, name="outer")
            return keras.Sequential([inner, outer], name=name)

        first, last = super().blocks(num_classes)
        middle = [
            Sharded(shard, items=8, count=shards, bias=self.width, name=f"mlp{i}")
            for i in range(self.depth)
        ]
        return [first, *middle, last]
