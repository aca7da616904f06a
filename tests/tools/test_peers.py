"""Two sides take turns: never both at once, on the same work; a failure ends the comparison."""

import dataclasses
import itertools
import json
import subprocess
import sys
from pathlib import Path

import pytest
import tensorflow as tf
from ranks import ROOT
from wheels import only_from, wheel

from app.errors import UsageError
from app.launch import processes
from app.parallel.topology import Topology
from app.tools.peers import benchmark, cases, environment, ours
from app.tools.peers.turns import SideError

CASE = cases.case("minilm_float32", 1, 2)
# A side: writes down when it worked, and in what state the processes of the other side were.
SIDE = """
import json, os, sys, time
from pathlib import Path
from app.tools.peers import child

folder, name, rank, facts, path = sys.argv[1:]
(Path(folder) / f"{name}{rank}.pid").write_text(str(os.getpid()))

def others():
    pids = [p for p in Path(folder).glob("*.pid") if not p.name.startswith(name)]
    return [Path(f"/proc/{p.read_text()}/stat").read_text().rpartition(")")[2][1] for p in pids]

def run(steps):
    begin = time.monotonic()
    time.sleep(0.01 * steps)
    worked = [name, begin, time.monotonic(), others()]
    with open(f"{folder}/worked", "a") as file:
        file.write(json.dumps(worked) + "\\n")

print("ready")
child.serve(path, {"rank": int(rank), **json.loads(facts)}, run)
"""
FACTS = {"sizes": [3, 5], "threads": 2, "version": "X 1", "settings": "none"}


def side(folder, name, size=1, code=SIDE, **facts):
    """How a side of these facts is started."""
    encoded = json.dumps(FACTS | facts)
    commands = [
        [sys.executable, "-c", code, str(folder), name, str(rank), encoded] for rank in range(size)
    ]
    return commands, {"PYTHONPATH": str(ROOT)}, folder / f"{name}.log"


def test_sides_take_turns_and_the_idle_one_is_stopped(tmp_path):
    case = CASE._replace(processes=2)
    both = {name: side(tmp_path, name, 2) for name in ("ours", "theirs")}
    row = benchmark.measure(case, both, pairs=4, seconds=0.02)
    worked = [json.loads(text) for text in (tmp_path / "worked").read_text().splitlines()]
    assert {state for *_, states in worked for state in states} == {"T"}
    for (one, _, end, _), (other, begin, _, _) in itertools.pairwise(worked):
        assert one == other or end <= begin
    order = [name for name, *_ in worked[-16:]][::2]
    assert order == ["ours", "theirs", "theirs", "ours"] * 2
    assert len(row["ratios"]) == 4
    for ratio, a, b in zip(
        row["ratios"], row["speeds"]["ours"], row["speeds"]["theirs"], strict=True
    ):
        assert ratio == a / b
    for pid in tmp_path.glob("*.pid"):
        assert not Path(f"/proc/{pid.read_text()}").exists()


def test_other_weights_or_threads_are_refused(tmp_path):
    for facts, word in (({"sizes": [3, 6]}, "2 weights of 9"), ({"threads": 1}, "threads")):
        both = {"ours": side(tmp_path, "ours"), "theirs": side(tmp_path, "theirs", **facts)}
        with pytest.raises(SideError, match=f"must train the same.*{word}"):
            benchmark.measure(CASE, both, pairs=1, seconds=0.01)
        assert not (tmp_path / "worked").exists()


@pytest.mark.parametrize("line", ['print("ready")', "time.sleep(0.01 * steps)"])
def test_a_side_that_dies_ends_it(tmp_path, line):
    code = SIDE.replace(line, "sys.exit('no memory')")
    both = {"ours": side(tmp_path, "ours"), "theirs": side(tmp_path, "theirs", code=code)}
    with pytest.raises(SideError, match=r"no memory; see .*theirs\.log"):
        benchmark.measure(CASE, both, pairs=1, seconds=0.01)
    for pid in tmp_path.glob("*.pid"):
        assert not Path(f"/proc/{pid.read_text()}").exists()


def test_a_failure_is_an_exit_code_and_the_place_of_the_log(tmp_path, monkeypatch, capsys):
    both = {name: side(tmp_path, name, code="") for name in ("ours", "theirs")}
    monkeypatch.setattr(environment, "python", lambda log: sys.executable)
    monkeypatch.setattr(benchmark, "commands", lambda *_: both)
    assert benchmark.main([CASE], 1, 0.01, tmp_path) == 1
    assert f"minilm_float32_1x2: it printed nothing; see {tmp_path}" in capsys.readouterr().err


def test_a_case_is_reported(tmp_path, monkeypatch, capsys):
    both = {name: side(tmp_path, name) for name in ("ours", "theirs")}
    monkeypatch.setattr(environment, "python", lambda log: sys.executable)
    monkeypatch.setattr(benchmark, "commands", lambda *_: both)
    assert benchmark.main([CASE], 3, 0.01, tmp_path) == 0
    (row,) = json.loads((tmp_path / "peers.json").read_text())
    assert row["batch"] == 32 and row["inputs"] == [32, 40] and len(row["ratios"]) == 3
    printed = capsys.readouterr().out
    assert (
        benchmark.line(row) in printed
        and benchmark.line(row) in (tmp_path / "peers.txt").read_text()
    )
    assert "medians of 3 pairs" in printed and "X 1 (none) / X 1 (none)" in printed


def test_a_line_has_medians_and_extremes():
    row = {"case": "c", "processes": 2, "threads": 1, "batch": 16,
           "speeds": {"ours": [12.0, 15.0, 9.0], "theirs": [10.0, 10.0, 10.0]},
           "ratios": [1.2, 1.5, 0.9]}  # fmt: skip
    words = benchmark.line(row).split()
    assert words == ["c", "2", "x", "1", "16", "12.00", "10.00", "1.200", "[0.900", "to", "1.500]"]


def test_the_processor_is_named(tmp_path):
    (tmp_path / "x86").write_text("model name\t: Some CPU\nflags\t\t: fpu avx2 amx_bf16\n")
    assert benchmark.processor(tmp_path / "x86") == "Some CPU (avx2, amx_bf16)"
    (tmp_path / "arm").write_text("Features\t: fp asimd bf16\n")
    assert benchmark.processor(tmp_path / "arm") == "processor (asimd, bf16)"
    assert benchmark.processor(tmp_path / "none") == "processor (features unknown)"


def test_cases_are_of_all_cores_and_of_half():
    found = cases.cases(["resnet50_bfloat16"], 5)
    assert [(c.processes, c.threads, c.experiment.global_batch) for c in found] == [
        (1, 5, 16), (2, 2, 32)
    ]  # fmt: skip
    assert {c.experiment.precision for c in found} == {"bfloat16"}
    assert [c.threads for c in cases.cases(["minilm_float32"], 1)] == [1, 1]
    with pytest.raises(UsageError, match="--cases=bert must be of resnet50_float32"):
        cases.cases(["bert"], 2)


def test_a_task_is_plain_and_needs_no_packages():
    task = json.loads(json.dumps(CASE.task()))
    assert task["experiment"]["model"]["type"] == "models.transformer.Transformer"
    assert task["experiment"]["optimization"]["clip_norm"] == 1
    code = (
        "import sys; import app.tools.peers.child, models.resnet; assert 'numpy' not in sys.modules"
    )
    subprocess.run([sys.executable, "-S", "-c", code], cwd=ROOT, check=True, timeout=60)


def test_our_side_takes_real_steps(tiny):
    experiment = dataclasses.replace(tiny, global_batch=4)
    given = CASE._replace(experiment=experiment, inputs=(4, 16, 16, 3), classes=7)
    state, run = ours.make(given, Topology())
    assert sum(ours.sizes(state)) == sum(int(tf.size(v)) for v in state.trainable)
    before = state.sha256()
    run(2)
    assert state.sha256() != before and state.updates.numpy() == 2


def test_the_environment_is_made_once_from_what_pip_finds(tmp_path, monkeypatch):
    links, folder, log = tmp_path / "links", tmp_path / "venv", tmp_path / "log"
    links.mkdir()
    only_from(links, monkeypatch)
    with pytest.raises(UsageError, match=r"Cannot install torch .*PIP_FIND_LINKS"):
        environment.python(log, folder)
    wheel(links, "torch", "2.14.0")
    with pytest.raises(UsageError, match="torch"):  # not the version that was tried
        environment.python(log, folder)
    wheel(links, "torch", "2.13.0")
    interpreter = environment.python(log, folder)
    subprocess.run([interpreter, "-c", "import torch"], check=True, timeout=60)
    monkeypatch.setattr(subprocess, "Popen", None)
    assert environment.python(log, folder) == interpreter


def test_the_last_line_of_a_log(tmp_path):
    (tmp_path / "log").write_text("one\ntwo  \n\n")
    assert processes.last_line(tmp_path / "log") == f"two; see {tmp_path / 'log'}"
