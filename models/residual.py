"""The layers of a ResNet: stem, residual units, head.

B  examples of a micro-batch     H, W  pixels     C  channels     K  classes
"""

from __future__ import annotations

from typing import Any

import keras
import tensorflow as tf

from models.normalization import BatchNormalization


class Convolution(keras.layers.Layer):
    """Convolution without bias, padded by (size - 1) / 2 on every side.

    Padding is the same on both sides at stride 2 too, as in the published models (TensorFlow's
    SAME pads the far side more). Weights are initialised as in arXiv:1502.01852, fan-out.
    """

    def __init__(self, filters: int, size: int, stride: int = 1, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.filters, self.size, self.stride = filters, size, stride
        self.kernel_initializer = keras.initializers.VarianceScaling(
            2.0, "fan_out", "untruncated_normal"
        )

    def build(self, shape: tuple[int | None, ...]) -> None:
        """Creates the kernel, [size, size, C in, C out]."""
        self.kernel = self.add_weight(
            name="kernel",
            shape=(self.size, self.size, shape[-1], self.filters),
            initializer=self.kernel_initializer,
        )

    def call(self, x: tf.Tensor) -> tf.Tensor:  # [B, H, W, C] -> [B, H / stride, W / stride, C']
        """Convolves."""
        kernel = tf.convert_to_tensor(self.kernel)
        if self.size == 1:
            return pointwise(x, kernel, self.stride)
        if self.stride == 1:
            return tf.nn.conv2d(x, kernel, 1, "SAME")
        pad = [(self.size - 1) // 2] * 2
        # Not the operator's own explicit padding: with it ResNet-50 at 224 pixels trained at 5.6
        # images/s instead of 8.4 (bfloat16: 0.34 instead of 13.5).
        return tf.nn.conv2d(tf.pad(x, [[0, 0], pad, pad, [0, 0]]), kernel, self.stride, "VALID")


def pointwise(x: tf.Tensor, kernel: tf.Tensor, stride: int) -> tf.Tensor:
    """Computes a 1x1 convolution as a matrix product.

    Maps [B, H, W, C] x [1, 1, C, C'] to [B, H', W', C']; H and W must be known statically.

    On a CPU with AMX forward and backward took three quarters of the convolution operator's time
    in bfloat16 at 224 pixels, less than half with a stride, and the same time in float32; a float32
    step on 32 pixels ran at 1.4 times the speed.
    """
    if stride > 1:
        x = tf.nn.avg_pool2d(x, 1, stride, "VALID")  # takes every stride-th pixel
    channels, filters = kernel.shape[-2:]
    y = tf.matmul(tf.reshape(x, [-1, channels]), tf.reshape(kernel, [channels, filters]))
    return tf.reshape(y, [-1, *x.shape[1:-1], filters])


def add_relu(x: tf.Tensor, y: tf.Tensor) -> tf.Tensor:
    """Computes relu(x + y); in bfloat16 on CPUs, XLA compiles it and its gradient to one pass each.

    TensorFlow's own two CPU kernels took four times the time in bfloat16, 7 % of a ResNet-50 step
    at 224 pixels; in float32 they are faster, by 5 % of a step.
    """
    on_cpu = not tf.config.get_visible_devices("GPU")
    return (_add_relu_compiled if on_cpu and x.dtype == tf.bfloat16 else _add_relu)(x, y)


def _add_relu(x: tf.Tensor, y: tf.Tensor) -> tf.Tensor:
    return tf.nn.relu(x + y)


_add_relu_compiled = tf.function(_add_relu, autograph=False, jit_compile=True)


class Stem(keras.layers.Layer):
    """Maps images to the first activations: `imagenet` quarters H and W, `cifar` keeps them."""

    def __init__(self, width: int, kind: str, epsilon: float, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.pooled = kind == "imagenet"
        self.convolution = (
            Convolution(width, 7, 2, name="convolution")
            if self.pooled
            else Convolution(width, 3, name="convolution")
        )
        self.normalization = BatchNormalization(epsilon, name="normalization")

    def call(self, x: tf.Tensor, training: bool = False) -> tf.Tensor:
        """Maps [B, H, W, 3] to [B, H / 4, W / 4, width] (cifar: [B, H, W, width])."""
        x = tf.nn.relu(self.normalization(self.convolution(x), training=training))
        if self.pooled:
            # Zeros do for minus infinity: after a ReLU nothing is below them.
            x = tf.nn.max_pool2d(tf.pad(x, [[0, 0], [1, 1], [1, 1], [0, 0]]), 3, 2, "VALID")
        return x


class Residual(keras.layers.Layer):
    """y = relu(shortcut(x) + branch(x)).

    The branch is two 3x3 convolutions (depths 18 and 34), or, as a bottleneck, 1x1, 3x3 and 1x1,
    the last four times as wide; its stride is in the 3x3 (v1.5) or in the first 1x1 (v1).
    """

    def __init__(
        self, width: int, stride: int, project: bool, is_bottleneck: bool, version: str,
        epsilon: float, **kwargs: Any,
    ) -> None:  # fmt: skip
        super().__init__(**kwargs)
        self.project = project  # the shortcut changes channels or stride
        self.filters = 4 * width if is_bottleneck else width  # of the output
        branch = [(width, 3, stride), (width, 3, 1)]
        if is_bottleneck:
            first, second = (1, stride) if version == "v1.5" else (stride, 1)
            branch = [(width, 1, first), (width, 3, second), (self.filters, 1, 1)]
        self.convolutions = [
            Convolution(*sizes, name=f"convolution{place}") for place, sizes in enumerate(branch, 1)
        ]
        last = len(self.convolutions)
        self.normalizations = [
            # The last gamma starts at zero: each unit starts as the identity (arXiv:1706.02677).
            BatchNormalization(epsilon, zero_gamma=place == last, name=f"normalization{place}")
            for place in range(1, last + 1)
        ]
        if project:
            self.projection = Convolution(self.filters, 1, stride, name="projection")
            self.projection_normalization = BatchNormalization(
                epsilon, name="projection_normalization"
            )

    def call(self, x: tf.Tensor, training: bool = False) -> tf.Tensor:
        """Maps [B, H, W, C] to [B, H / stride, W / stride, filters]."""
        y, last = x, len(self.convolutions) - 1
        layers = zip(self.convolutions, self.normalizations, strict=True)
        for place, (convolution, normalization) in enumerate(layers):
            y = normalization(convolution(y), training=training)
            y = tf.nn.relu(y) if place < last else y
        if self.project:
            x = self.projection_normalization(self.projection(x), training=training)
        return add_relu(x, y)


class Head(keras.layers.Layer):
    """Mean over the pixels, then one logit a class."""

    def __init__(self, num_classes: int, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        initializer = keras.initializers.RandomNormal(stddev=0.01)  # arXiv:1706.02677, 5.1
        self.dense = keras.layers.Dense(num_classes, kernel_initializer=initializer, name="dense")

    def call(self, x: tf.Tensor) -> tf.Tensor:  # [B, H, W, C] -> [B, K]
        """Returns the logits."""
        return self.dense(tf.reduce_mean(x, [1, 2]))
