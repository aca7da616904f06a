"""Which of TensorFlow's CPU kernels a job computes with: its own, or oneDNN's.

TensorFlow takes oneDNN's by itself only on processors with AVX512-VNNI, AVX512-BF16 or AMX. Held to
AVX2 they are faster too wherever there is a backward pass, and slower for small images where there
is none (CPU time of a step, one thread, two for training at 224 pixels, on a processor with
AVX512-BF16, once held to AVX2; TensorFlow's own kernels / oneDNN's):

                                training  AVX2   forward alone  AVX2
    ResNet-50, 32 pixels            3.4    2.7             1.0   0.7
    ResNet-50, 224 pixels           1.7    1.4             1.2   1.0
    MiniLM                          1.6    1.6             1.1   1.0

So what trains, or measures training, takes them on any x86-64 processor with AVX2. A rule, as ranks
must not measure for themselves: all of a job need the same kernels.
"""

from __future__ import annotations

import os
import platform
from collections.abc import Mapping
from pathlib import Path

VARIABLE = "TF_ENABLE_ONEDNN_OPTS"
LIMITS = ("ONEDNN_MAX_CPU_ISA", "DNNL_MAX_CPU_ISA")  # of oneDNN, old name last
# From the widest, the flags that Linux shows and a name that oneDNN's limit has for it.
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
    """Takes oneDNN's kernels for training where nobody chose; before TensorFlow is imported."""
    if instructions(_flags()) != "other":
        os.environ.setdefault(VARIABLE, "1")


def names(flags: frozenset[str] | None = None) -> dict[str, str]:
    """Describes the kernels of this process: whose they are, and for which instructions.

    What a bit of a result may depend on: TensorFlow's own kernels are compiled once for all
    processors, oneDNN's are made for the one that they find.
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
    """In a line for a person."""
    return " for ".join(found.values())


def instructions(flags: frozenset[str]) -> str:
    """The widest set of instructions that a processor with these flags has; "other" for none."""
    has = (name for name, needed in SETS.items() if flags.issuperset(needed))
    return next(has, "other")


def _flags() -> frozenset[str]:
    """Of this machine's first processor, as Linux shows them; none but on x86-64."""
    if platform.machine() not in ("x86_64", "AMD64"):
        return frozenset()
    lines = Path("/proc/cpuinfo").read_text().splitlines()
    return frozenset(next((line.split() for line in lines if line.startswith("flags")), ()))
