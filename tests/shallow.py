"""A model as README's, for tests of what is around a model: they need not wait for a deep one."""

from dataclasses import dataclass


@dataclass(frozen=True)
class Shallow:
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
