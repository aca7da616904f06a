"""Chooses the CPU kernels that a job computes with: TensorFlow's own, or oneDNN's.

TensorFlow takes oneDNN's by itself only on processors with AVX512-VNNI, AVX512-BF16 or AMX. Held to
AVX2 they are faster too wherever there is a backward pass, and slower for small images where there
is none (CPU time of a step, one thread, two for training at 224 pixels, on a processor with
AVX512-BF16, once held to AVX2; TensorFlow's own kernels / oneDNN's):

                                training  AVX2   forward alone  AVX2
    ResNet-50, 32 pixels            3.4    2.7             1.0   0.7
    ResNet-50, 224 pixels           1.7    1.4             1.2   1.0
    MiniLM                          1.6    1.6             1.1   1.0

So commands that train, or measure training, use them on any x86-64 processor with AVX2. It is a
rule and no measurement, as all ranks of a job need the same kernels.
"""

from __future__ import annotations

import os
import platform
from collections.abc import Mapping
from pathlib import Path

VARIABLE = "TF_ENABLE_ONEDNN_OPTS"
LIMITS = ("ONEDNN_MAX_CPU_ISA", "DNNL_MAX_CPU_ISA")  # oneDNN's variables, old name last
# Instruction sets, widest first: oneDNN's name, and the processor flags that Linux shows.
SETS = {
    "AVX512_CORE_AMX": ("amx_tile", "amx_bf16", "amx_int8"),
    "AVX512_CORE_BF16": ("avx512_bf16", "avx512_vnni"),
    "AVX512_CORE_VNNI": ("avx512_vnni",),
    "AVX512_CORE": ("avx512f", "avx512bw", "avx512vl", "avx512dq"),
    "AVX2_VNNI": ("avx_vnni", "avx2"),
    "AVX2": ("avx2",),
}
BY_ITSELF = ("AVX512_CORE_AMX", "AVX512_CORE_BF16", "AVX512_CORE_VNNI")  # TensorFlow's own choice


def choose() -> None:
    """Chooses oneDNN's kernels for training, unless the user chose; before TensorFlow's import."""
    if instructions(_flags()) != "other":
        os.environ.setdefault(VARIABLE, "1")


def names(flags: frozenset[str] | None = None) -> dict[str, str]:
    """Describes the kernels of this process: whose they are, and for which instructions.

    The bits of a result may depend on both: TensorFlow's own kernels are compiled once for all
    processors, oneDNN's are generated for the one that they run on.
    """
    found = instructions(_flags() if flags is None else flags)
    given = os.environ.get(VARIABLE)
    is_onednn = given == "1" if given in ("0", "1") else found in BY_ITSELF
    limit = next((os.environ[n].upper() for n in LIMITS if n in os.environ), "")
    known = list(SETS)
    if limit in known and found in known and known.index(found) < known.index(limit):
        found = limit
    return {"library": "oneDNN", "instructions": found} if is_onednn else {"library": "TensorFlow"}


def text(found: Mapping[str, str]) -> str:
    """Formats a description of `names` for a message."""
    return " for ".join(found.values())


def instructions(flags: frozenset[str]) -> str:
    """Returns the widest instruction set of a processor with these flags; "other" for none."""
    has = (name for name, needed in SETS.items() if flags.issuperset(needed))
    return next(has, "other")


def _flags() -> frozenset[str]:
    """Returns the flags that Linux shows of the first processor; none except on x86-64."""
    if platform.machine() not in ("x86_64", "AMD64"):
        return frozenset()
    lines = Path("/proc/cpuinfo").read_text().splitlines()
    return frozenset(next((line.split() for line in lines if line.startswith("flags")), ()))
