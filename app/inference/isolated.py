"""Runs an exported model in a process that can import neither this project nor Horovod.

    python -I isolated.py FOLDER

Batches come on standard input: a JSON line that says of each field, by name, the lengths of its
strings, or type and shape of its numbers; then their bytes. The outputs of each batch go to
standard output: a JSON line with their shapes, then float32 values.
"""

import importlib.abc
import json
import sys

FORBIDDEN = ("app", "horovod", "input", "models")


class Forbid(importlib.abc.MetaPathFinder):
    """Refuses the import of forbidden packages; Python asks it before its own finders."""

    def find_spec(self, name, path, target=None):  # type: ignore[no-untyped-def]  # noqa: D102
        if name.partition(".")[0] in FORBIDDEN:
            raise ImportError(f"{name} was imported by a process that loads an exported model")


def main(folder: str) -> None:
    """Computes batches until standard input ends."""
    sys.meta_path.insert(0, Forbid())
    import numpy as np
    import tensorflow as tf
    import tensorflow_text  # noqa: F401  registers its operators, as the serving image does

    def field(about):  # type: ignore[no-untyped-def]
        if "lengths" in about:
            return tf.constant([sys.stdin.buffer.read(length) for length in about["lengths"]])
        dtype = np.dtype(about["dtype"])
        size = dtype.itemsize * int(np.prod(about["shape"]))
        content = np.frombuffer(sys.stdin.buffer.read(size), dtype)
        return tf.constant(content.reshape(about["shape"]))

    signature = tf.saved_model.load(folder).signatures["outputs"]
    for line in sys.stdin.buffer:
        found = signature(**{name: field(about) for name, about in json.loads(line).items()})
        outputs = [y.numpy() for name, y in sorted(found.items()) if name.startswith("outputs")]
        sys.stdout.buffer.write(f"{json.dumps([y.shape for y in outputs])}\n".encode())
        for y in outputs:
            sys.stdout.buffer.write(y.tobytes())
        sys.stdout.buffer.flush()


if __name__ == "__main__":
    main(sys.argv[1])
