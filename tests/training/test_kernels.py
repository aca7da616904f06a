"""Which kernels a job computes with: chosen by a rule, the same on every rank, and said."""

import contextlib
import json
import os
from types import SimpleNamespace

import pytest
import ranks

from app.config import Layout
from app.errors import UserError
from app.parallel.topology import Topology
from app.training import kernels, setup, trainer
from app.training.agreement import require_same_kernels

AVX2 = frozenset({"sse4_1", "avx", "avx2", "fma"})
VNNI = AVX2 | {"avx512f", "avx512bw", "avx512vl", "avx512dq", "avx512_vnni"}
AMX = VNNI | {"avx512_bf16", "amx_tile", "amx_bf16", "amx_int8"}


@pytest.fixture
def unset(monkeypatch):
    for name in (kernels.VARIABLE, *kernels.LIMITS):
        monkeypatch.delenv(name, raising=False)
    return monkeypatch


@pytest.mark.parametrize(
    ("flags", "variable", "limit", "found"),
    [
        (AVX2, None, None, "TensorFlow"),  # by itself it takes oneDNN's on newer ones only
        (VNNI, None, None, "oneDNN for AVX512_CORE_VNNI"),
        (AMX, None, None, "oneDNN for AVX512_CORE_AMX"),
        (AMX, "0", None, "TensorFlow"),
        (AVX2, "1", None, "oneDNN for AVX2"),
        (AMX, "1", "avx2", "oneDNN for AVX2"),
        (AVX2, "1", "AVX512_CORE", "oneDNN for AVX2"),  # a limit widens nothing
        (frozenset(), "1", None, "oneDNN for other"),
        (frozenset(), None, None, "TensorFlow"),
    ],
)
def test_kernels_are_described(unset, flags, variable, limit, found):
    for name, value in ((kernels.VARIABLE, variable), (kernels.LIMITS[0], limit)):
        if value:
            unset.setenv(name, value)
    assert kernels.text(kernels.names(flags)) == found


@pytest.mark.parametrize(
    ("flags", "given", "chosen"),
    [(AVX2, None, "1"), (AMX, None, "1"), (frozenset({"avx"}), None, None), (AVX2, "0", "0")],
)
def test_training_takes_onednn_where_nobody_chose(unset, flags, given, chosen):
    unset.setattr(kernels, "_flags", lambda: flags)
    if given:
        unset.setenv(kernels.VARIABLE, given)
    kernels.choose()
    assert os.environ.get(kernels.VARIABLE) == chosen


def agreed(variables, exact):
    """On a rank with variables of its own: what it says of other kernels than rank 0's."""
    topology, _ = setup.join(Layout())
    kernels._flags = lambda: AMX  # whatever this processor is
    os.environ.update(variables[topology.rank])
    try:
        require_same_kernels(exact)
    except UserError as error:
        return str(error)
    return ""


@pytest.mark.ranks
@pytest.mark.parametrize(
    ("other", "exact", "part"),
    [
        ({kernels.VARIABLE: "0"}, False, "library: TensorFlow here, oneDNN there"),
        ({kernels.LIMITS[0]: "SSE41"}, False, ""),  # each sums micro-batches of its own
        ({kernels.LIMITS[0]: "AVX2"}, True, "instructions: AVX2 here, AVX512_CORE_AMX there"),
    ],
)
def test_ranks_with_other_kernels_are_refused(tmp_path, other, exact, part):
    one = {kernels.VARIABLE: "1"}
    _, error = ranks.call(2, tmp_path, agreed, [one, one | other], exact)
    assert part in error and bool(error) == bool(part)


def test_a_run_says_what_it_was_computed_with(shallow, train, tmp_path):
    result = train(shallow, layout=Layout(exact=True), stop_at_step=2)
    assert result["kernels"] == kernels.names()
    path = tmp_path / "run/config.json"
    config = json.loads(path.read_text())
    assert config["kernels"] == kernels.names()
    path.write_text(json.dumps(config | {"kernels": {"library": "oneDNN", "instructions": "SSE9"}}))
    run = trainer.Run(tmp_path / "run", "")
    opened = SimpleNamespace(experiment=shallow, data=shallow.data.open(""))
    with contextlib.ExitStack() as stack:
        (line,) = setup.claim_workdir(opened, Layout(exact=True), Topology(0, 1), run, stack)
    assert "begun with kernels of oneDNN for SSE9" in line
    with contextlib.ExitStack() as stack:
        assert setup.claim_workdir(opened, Layout(exact=True), Topology(0, 1), run, stack) == []
