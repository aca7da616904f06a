"""Runs an exported model where neither this project nor Horovod can be imported.

A process of its own, `python -I bare.py FOLDER`: batches come on standard input, each a JSON line
with the lengths of its examples and then their bytes. The logits of each leave as a line with their
shape, and then as float32.
"""

import importlib.abc
import json
import sys

FORBIDDEN = ("app", "horovod", "input", "models")


class Forbid(importlib.abc.MetaPathFinder):
    """Finds nothing, and says so."""

    def find_spec(self, name, path, target=None):  # type: ignore[no-untyped-def]  # noqa: D102
        if name.partition(".")[0] in FORBIDDEN:
            raise ImportError(f"{name} was imported by a process that loads an exported model")


def main(folder: str) -> None:
    """Answers until its input ends."""
    sys.meta_path.insert(0, Forbid())
    import tensorflow as tf
    import tensorflow_text  # noqa: F401  registers its operators, as the serving image does

    signature = tf.saved_model.load(folder).signatures["logits"]
    (name,) = signature.structured_input_signature[1]
    for line in sys.stdin.buffer:
        examples = [sys.stdin.buffer.read(length) for length in json.loads(line)]
        logits = signature(**{name: tf.constant(examples)})["logits"].numpy()
        sys.stdout.buffer.write(f"{json.dumps(logits.shape)}\n".encode() + logits.tobytes())
        sys.stdout.buffer.flush()


if __name__ == "__main__":
    main(sys.argv[1])
