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
