import keras
import numpy as np
import pytest
import tensorflow as tf

from models import blocks
from models.resnet import DEPTHS, ResNet

# Trainable parameters at width 64 and 1,000 classes.
PARAMETERS = {
    18: 11_689_512, 34: 21_797_672, 50: 25_557_032, 101: 44_549_160, 152: 60_192_808,
}  # fmt: skip


def build(model: ResNet, classes: int = 1000, seed: int = 0):
    keras.utils.clear_session()
    layers = model.blocks(classes)
    blocks.build(layers, tf.zeros([2, 64, 64, 3]), seed)
    return layers


def count(layers) -> int:
    return sum(int(np.prod(v.shape)) for b in layers for v in b.trainable_variables)


def test_every_depth_is_counted():
    assert PARAMETERS.keys() == DEPTHS.keys()


@pytest.mark.parametrize("depth", [18, 34, 50, 101, 152])
def test_parameters(depth):
    assert count(build(ResNet(depth))) == PARAMETERS[depth]


def test_stems_and_widths():
    key = tf.zeros([2], tf.int32)
    cifar = build(ResNet(18, width=8, stem="cifar"), 10)
    assert blocks.call(cifar[0], tf.zeros([2, 32, 32, 3]), False, key, 0).shape == (2, 32, 32, 8)
    imagenet = build(ResNet(18, width=8), 10)
    assert blocks.call(imagenet[0], tf.zeros([2, 32, 32, 3]), False, key, 0).shape == (2, 8, 8, 8)
    assert blocks.forward(cifar, tf.zeros([2, 32, 32, 3]), False, key, 0).shape == (2, 10)


def test_units_start_as_the_identity():
    for layer in build(ResNet(50, width=8))[1:-1]:
        assert not layer.normalizations[-1].gamma.numpy().any()
        assert layer.normalizations[0].gamma.numpy().all()


def test_weights_are_a_function_of_seed_and_name():
    def values(seed, depth):
        layers = build(ResNet(depth, width=4), seed=seed)
        return {v.path: v.numpy() for b in layers for v in b.variables}

    first, second, other = values(0, 18), values(0, 18), values(1, 18)
    assert all((first[n] == second[n]).all() for n in first)
    name = "group1_block1/convolution1/kernel"
    assert not np.array_equal(first[name], other[name])
    # A deeper model shares the names of its first blocks, and so their weights.
    assert np.array_equal(first[name], values(0, 34)[name])
    kernels = [v for n, v in first.items() if n.startswith("group1") and n.endswith("kernel")]
    assert len({k.tobytes() for k in kernels}) == len(kernels)


def test_agrees_with_keras_resnet50():
    """Keras' is v1 (stride in the first 1x1), has biases, and another epsilon."""
    theirs = keras.applications.ResNet50(weights=None, classes=10)
    random = np.random.default_rng(0)
    for v in theirs.variables:
        noise = random.normal(size=v.shape).astype(np.float32)
        small = "gamma" in v.path or "variance" in v.path
        v.assign(1 + 0.1 * np.abs(noise) if small else v.numpy() + 0.01 * noise)
    ours = build(ResNet(50, version="v1", epsilon=1.001e-5), 10)

    def copy(conv, norm, prefix):
        source, target = theirs.get_layer(f"{prefix}_conv"), theirs.get_layer(f"{prefix}_bn")
        conv.kernel.assign(source.kernel)
        for name in ("gamma", "beta", "moving_variance"):
            getattr(norm, name).assign(getattr(target, name))
        norm.moving_mean.assign(target.moving_mean - source.bias)  # a bias moves the mean

    stem, *units, head = ours
    copy(stem.convolution, stem.normalization, "conv1")
    places = [(g, b) for g, n in enumerate((3, 4, 6, 3), 2) for b in range(1, n + 1)]
    for unit, (g, b) in zip(units, places, strict=True):
        for i in range(3):
            copy(unit.convolutions[i], unit.normalizations[i], f"conv{g}_block{b}_{i + 1}")
        if unit.project:
            copy(unit.projection, unit.projection_normalization, f"conv{g}_block{b}_0")
    dense = theirs.layers[-1]
    head.dense.kernel.assign(dense.kernel)
    head.dense.bias.assign(dense.bias)
    images = tf.random.stateless_normal([2, 224, 224, 3], [0, 1])
    mine = tf.nn.softmax(blocks.forward(ours, images, False, tf.zeros([2], tf.int32)))
    np.testing.assert_allclose(mine, theirs(images, training=False), rtol=2e-4, atol=1e-6)


def test_v1_5_has_its_stride_in_the_3x3():
    second = next(b for b in ResNet(50).blocks(10) if b.name == "group2_block1")
    assert [c.stride for c in second.convolutions] == [1, 2, 1]


def test_normalization_against_numpy():
    from models.normalization import BatchNormalization

    layer = BatchNormalization()
    x = np.random.default_rng(0).normal(3, 2, [4, 5, 5, 3]).astype(np.float32)
    layer(x)
    with blocks.recording() as recorded:
        y = layer(x, training=True).numpy()
    mean, variance = x.mean((0, 1, 2)), x.var((0, 1, 2))
    np.testing.assert_allclose(y, (x - mean) / np.sqrt(variance + 1e-5), atol=1e-5)
    np.testing.assert_allclose(recorded.statistics[0].value, mean, rtol=1e-5)
    np.testing.assert_allclose(recorded.statistics[1].value, variance * 100 / 99, rtol=1e-4)
    assert not layer.moving_mean.numpy().any(), "only the step moves the averages"
