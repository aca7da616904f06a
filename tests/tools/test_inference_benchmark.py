"""The speed of prediction by layout is measured and reported."""

import json

import numpy as np
import pytest
from ranks import run_sh

from app.config import Layout
from app.errors import UsageError
from app.inference.forward import Forward
from app.tools.inference import benchmark, cell
from app.tools.inference.benchmark import Cell
from app.training.setup import open_run


def test_layouts_fit_on_the_cores():
    assert benchmark.cells(1, 2) == [Cell(1, 1, 1)]
    assert benchmark.cells(2, 2) == [Cell(1, 1, 1), Cell(1, 2, 1), Cell(1, 2, 2), Cell(2, 1, 1)]
    for cores in (3, 8, 64):
        found = benchmark.cells(cores, 4)
        assert len(set(found)) == len(found)
        assert all(c.processes * c.threads <= cores and c.stages <= c.threads for c in found)
        assert any(c.processes == 1 and c.threads == cores and c.stages == 4 for c in found) or (
            cores < 4
        )


def test_the_report_names_the_best():
    rows = [
        {"processes": p, "threads": 1, "stages": 1, "batch_size": b, "examples_per_second": e,
         "p50_ms": 1.0, "p90_ms": 1.0, "p99_ms": ms}
        for p, b, e, ms in ((1, 1, 10.0, 5.0), (2, 32, 50.0, 90.0))
    ]  # fmt: skip
    fastest, quickest = benchmark.advice(rows)
    assert "NP=2 --threads=1 --stages=1 --batch_size=32: 50.0 examples/s" in fastest
    assert "NP=1" in quickest and "p99 5.0 ms" in quickest


def test_a_layout_is_measured(shallow, joined, tmp_path, monkeypatch):
    monkeypatch.setattr(cell, "SECONDS", 0.01)
    opened = open_run(shallow, Layout(), joined, str(tmp_path))
    cell.main(opened, joined, 2, [1, 3], tmp_path / "out.json")
    one, three = json.loads((tmp_path / "out.json").read_text())
    for row, size in ((one, 1), (three, 3)):
        assert row["batch_size"] == size and row["examples_per_second"] > 0
        assert 0 < row["p50_ms"] <= row["p90_ms"] <= row["p99_ms"]
        assert row["batches"] >= cell.ROUNDS * cell.MIN_BATCHES * 2


def test_data_that_say_nothing_of_clients_are_refused(shallow, joined, tmp_path):
    opened = open_run(shallow, Layout(), joined, str(tmp_path))
    opened.data.kind = ""
    with pytest.raises(UsageError, match=r"images and texts, not .*, whose clients send tensors"):
        cell.main(opened, joined, 1, [1], tmp_path / "out.json")


def test_a_person_can_start_it(tmp_path):
    done = run_sh(2, tmp_path, "benchmark", "inference", "--batch_sizes=0")
    assert done.returncode == 2 and "--batch_sizes=0" in done.stderr


def test_a_layout_that_fails_ends_it(tmp_path, capfd):
    code = benchmark.main([f"--workdir={tmp_path / 'none'}"], 1, 1, tmp_path / "report")
    assert code == 2 and "is no run" in capfd.readouterr().err


def test_a_failure_in_one_batch_ends_them_all(shallow, joined, tmp_path):
    opened = open_run(shallow, Layout(), joined, str(tmp_path))
    forward = Forward(opened.state, opened.data.input_spec, 2, shallow.objective)
    done: list[int] = []

    def read(m):
        if m == 20:
            raise RuntimeError("the twentieth")
        return np.zeros([2, 16, 16, 3], np.float32)

    try:
        forward(500, read, lambda m, y: done.append(m))
    except RuntimeError as error:
        assert str(error) == "the twentieth" and len(done) < 100
    else:
        raise AssertionError("the failure was ignored")
