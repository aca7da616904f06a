"""Small SavedModels to serve, each written in a folder with a version."""

import json

import tensorflow as tf

from app.serving.versions import EXTRA


def write(folder, version, module, about=None, **functions):
    place = folder / str(version)
    tf.saved_model.save(module, str(place), functions)
    updater = tf.compat.v1.saved_model.signature_def_utils.MethodNameUpdater(str(place))
    for key in {"classify", "regress"} & set(functions):
        updater.replace_method_name(key, f"tensorflow/serving/{key}")
    updater.save()
    if about:
        (place / EXTRA).parent.mkdir()
        about = {"format": 1, "variant": "float32", "step": 7, **about}
        (place / EXTRA).write_text(json.dumps(about))
    return folder


def function(shape, dtype, name):
    return lambda f: tf.function(f, input_signature=[tf.TensorSpec(shape, dtype, name)])


def example(examples, name, dtype):
    return tf.io.parse_example(examples, {name: tf.io.FixedLenFeature([], dtype)})[name]


@function([], tf.float32, "x")
def slow(x):
    """Steps of work, as many as the input says, so that something is in flight."""
    steps = tf.cast(x, tf.int32)
    one = tf.random.stateless_uniform([300, 300], [1, 2])
    last = tf.while_loop(
        lambda i, _: i < steps, lambda i, y: (i + 1, tf.linalg.l2_normalize(y @ one)), [0, one]
    )[1]
    return {"y": x + 0 * tf.reduce_sum(last)}


def half_plus_two(folder):
    """The model of TensorFlow Serving's documentation, and a picky signature."""
    module = tf.Module()
    module.a, module.b = tf.Variable(0.5), tf.Variable(2.0)

    @function([None], tf.float32, "x")
    def plus_two(x):
        return {"y": module.a * x + module.b}

    @function([None], tf.string, "inputs")
    def regress(examples):
        x = example(examples, "x", tf.float32)
        return {"outputs": (module.a * x + module.b)[:, tf.newaxis]}

    @function([None, None], tf.float32, "x")
    def picky(x):
        with tf.control_dependencies([tf.debugging.assert_non_negative(x, "it is negative")]):
            return {"y": 2 * x}

    return write(
        folder / "half_plus_two", 123, module, serving_default=plus_two, regress=regress,
        picky=picky,
    )  # fmt: skip


def lengths(folder):
    """Whether a text's length is even or odd."""
    names = tf.constant(["even", "odd"])

    def classes(texts):
        odd = tf.cast(tf.strings.length(texts, "UTF8_CHAR") % 2, tf.float32) * 0.5 + 0.25
        scores, places = tf.math.top_k(tf.stack([1 - odd, odd], 1), 2)
        labels = tf.gather(names, places)
        return {"class": labels[:, 0], "probability": scores[:, 0], "classes": labels,
                "scores": scores}  # fmt: skip

    @function([None], tf.string, "text")
    def default(text):
        return classes(text)

    @function([], tf.string, "text")
    def single(text):
        return {name: y[0] for name, y in classes(text[tf.newaxis]).items()}

    @function([None], tf.string, "inputs")
    def classify(examples):
        found = classes(example(examples, "text", tf.string))
        return {name: found[name] for name in ("classes", "scores")}

    about = {"name": "lengths", "kind": "text", "classes": ["even", "odd"]}
    return write(
        folder / "texts", 3, tf.Module(), about, serving_default=default, single=single,
        classify=classify, slow=slow,
    )  # fmt: skip


def light(folder):
    """Whether an image is bright or dark."""

    @function([None], tf.string, "image_bytes")
    def bright(image_bytes):
        def mean(raw):
            image = tf.io.decode_image(raw, 3, expand_animations=False)
            return tf.reduce_mean(tf.cast(image, tf.float32))

        means = tf.map_fn(mean, image_bytes, fn_output_signature=tf.float32)
        return {"class": tf.where(means > 127, "bright", "dark"), "mean": means}

    about = {"name": "light", "kind": "image", "classes": ["dark", "bright"]}
    return write(folder / "images", 1, tf.Module(), about, serving_default=bright, slow=slow)
