"""What is done with TensorFlow before the first client: variables, threads, signatures run."""

from __future__ import annotations

import contextlib
import io
import os

import numpy as np

from app.cli import loading
from app.errors import DataError
from app.reporting import chatter
from app.serving.refusals import RequestError
from app.serving.saved import Model
from app.serving.signatures import DEFAULT
from input.raw import FIELDS


def choose_variables(kind: str | None) -> None:
    """Sets what TensorFlow reads as it is imported, where nobody chose.

    Memory that is kept: what a batch gave back is not asked of the system again. Of the kernels
    oneDNN's for texts, which TensorFlow takes by itself only on CPUs with AVX512-VNNI or AMX. On 2
    cores with AVX2 both together gave 64 clients of MiniLM 1.05 times the answers, and a lone one
    as many. Clients of ResNet-50 saw no difference from kept memory, and with oneDNN got 0.7 to 0.8
    of the answers.
    """
    os.environ.setdefault("TF_CPU_ALLOCATOR_USE_BFC", "true")
    if kind == "text":
        os.environ.setdefault("TF_ENABLE_ONEDNN_OPTS", "1")


def hold_threads(cores: int) -> None:
    """Shares the cores out, before TensorFlow's first operation.

    As many batches are computed at once as there are cores, each on one: the operators of a small
    model are too short to be split well, and between them only one core works (tokenisation,
    shapes, copies). With all cores inside an operator too, MiniLM was seen to answer 102 requests a
    second instead of 121, on 2 cores without AVX-512. So a lone request has one core.
    """
    loading.tensorflow()
    import tensorflow as tf

    with contextlib.suppress(RuntimeError):  # there was an operation: it stays as it is
        tf.config.threading.set_intra_op_parallelism_threads(1)
        tf.config.threading.set_inter_op_parallelism_threads(cores)
        for gpu in tf.config.list_physical_devices("GPU"):
            tf.config.experimental.set_memory_growth(gpu, True)


def warm_up(model: Model, max_batch: int) -> None:
    """Runs each signature that takes what the model is made for, so that no client waits.

    Raises:
        DataError: one of them does not run.
    """
    kind = model.found.about.kind
    for signature in model.signatures.values():
        if not kind or list(signature.inputs) != [FIELDS[kind]]:
            continue
        one = np.array(b"a" if kind == "text" else tiny_image(), object)
        is_default = signature.name == DEFAULT
        sizes = sorted({1, 2, max_batch // 2 or 1, max_batch}) if is_default else [1]
        for size in sizes if signature.is_batched else [None]:
            value = one if size is None else np.repeat(one[None], size)
            try:
                # The graph optimizer warns of a loop that it does not change.
                with chatter.capture_native_stderr():
                    model.run(signature.name, {FIELDS[kind]: value})
            except RequestError as error:
                is_full = error.status == 503
                way = "give a smaller --max_batch" if is_full else "export the model again"
                raise DataError(
                    f"signature {signature.name!r} of {model.found.folder} does not run "
                    f"({error.sentence.rstrip('.')}): {way}."
                ) from None


def tiny_image() -> bytes:
    """A PNG file of a few grey pixels."""
    from PIL import Image

    file = io.BytesIO()
    Image.new("RGB", (8, 8), "gray").save(file, "PNG")
    return file.getvalue()
