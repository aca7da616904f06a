"""Runs an exported model in a process that can import neither this project nor Horovod.

    python -I isolated.py FOLDER

Batches come on standard input: a JSON line with the lengths of the examples, then their bytes. The
logits of each batch go to standard output: a JSON line with their shape, then float32 values.
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
