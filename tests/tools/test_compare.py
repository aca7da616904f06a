"""Update rules side by side: which comparisons are refused, and what is reported."""

import json
import shutil
import subprocess
import sys
import time

import psutil
import pytest
from ranks import DENSE, ROOT, TINY, start

from app.cli import validation
from app.cli.overrides import override
from app.config import Layout
from app.errors import UsageError
from app.tools import compare as comparing
from app.tools import comparison, rules


@pytest.fixture
def user(tmp_path):
    """A folder of a user's, with experiments in files of his own."""
    (tmp_path / "mine.py").write_text(TINY)
    (tmp_path / "dense.py").write_text(DENSE)
    return tmp_path


def compare(user, *flags, np="2"):
    return start([sys.executable, "-m", "app", "compare", *flags], user, NP=np)


def test_rules_by_name_are_settings(tiny):
    found = rules.parse([*rules.RULES, "bounded:2", "topk:0.5"])
    assert [rule.name for rule in found][:2] == ["sync", "ps"]
    kinds = {rule.name: override(tiny, rule.settings).update for rule in found}
    assert kinds["async"].staleness is None and kinds["bounded:2"].staleness == 2
    assert kinds["diloco"].outer_momentum == 0.9 and kinds["topk:0.5"].topk == 0.5
    for rule in found:
        validation.validate(override(tiny, rule.settings), Layout())


NO_COMPARISON = {
    "--updates=sync": ["sync", "2 rules"],
    "--updates=sync,sink": ["'sink'", "async"],
    "--updates=sync,sync": ["sync twice"],
    "--updates=sync,bounded:0": ["'bounded:0'", "above 0"],
    "--updates=sync,async:3": ["async takes no number", "'async:3'"],
    "--updates=sync,local --set=update.topk=0.5": ["update.*", "--updates"],
    "--updates=sync,adasum NP=3": ["adasum", "not 3"],
    "--slowdown=0.5": ["--slowdown=0.5"],
    "--slowdown=3 NP=1": ["--slowdown", "NP=2"],
    "--price=nan": ["--price", "finite"],
    "--target=nan": ["--target", "finite"],
    "--link_mbit=100 NP=1": ["--link_mbit", "NP=2"],
    "--link_mbit=100 --trusted_network": ["--link_mbit", "--trusted_network"],
    "--keep=3": ["compare has no flag --keep"],
}


@pytest.mark.parametrize("line", NO_COMPARISON)
def test_an_impossible_comparison_is_refused_at_once(user, line):
    *flags, last = line.split()
    np = last.removeprefix("NP=") if last.startswith("NP=") else "2"
    flags = flags if last.startswith("NP=") else [*flags, last]
    done = compare(user, "--experiment=mine.py:tiny", *flags, np=np)
    assert done.returncode == 2 and done.stderr.count("\n") == 1, done.stderr
    assert all(word in done.stderr for word in NO_COMPARISON[line]), done.stderr


def test_a_straggler_stops_and_goes_on():
    victim = subprocess.Popen([sys.executable, "-c", "while True: pass"])
    slower = subprocess.Popen(
        [sys.executable, "-m", "app.parallel.straggler", str(victim.pid), "4"], cwd=ROOT
    )
    try:
        time.sleep(1)
        seen = {psutil.Process(victim.pid).status() for _ in range(200) if not time.sleep(0.01)}
        assert psutil.STATUS_STOPPED in seen and len(seen) > 1
    finally:
        victim.kill(), slower.kill(), victim.wait(), slower.wait()


def test_a_link_that_cannot_be_shaped_is_refused(tmp_path, monkeypatch):
    for tool in ("unshare", "true"):
        (tmp_path / tool).symlink_to(shutil.which(tool) or "nowhere")
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(UsageError, match=r"--link_mbit=100 needs .* tc .* lacks: .*'tc'"):
        comparing.check_link(100)
    monkeypatch.setenv("PATH", "")
    with pytest.raises(UsageError, match=r"--link_mbit=100 needs .* is not allowed"):
        comparing.check_link(100)


def trained(name, folder, seconds, accuracy, sent):
    """A finished run of 20 steps, a step in so many seconds, with the accuracy at its end."""
    (rule, _) = rules.parse([name, "ps"])
    lines = [
        {"event": "train", "step": s, "seconds": seconds * s, "loss": 1.0} for s in range(1, 21)
    ]
    lines.append({"event": "test", "step": 20, "accuracy": accuracy})
    experiment = {"global_batch": 8, "model": {"type": "a.M"}, "data": {"type": "a.D"}}
    result = {"metrics": {"test": {}}, "experiment": experiment, "steps": 20}
    result |= {"network_bytes": sent, "bytes_sent_per_step": 0, "changes_numbers": []}
    run = folder / name
    run.mkdir()
    (run / "result.json").write_text(json.dumps(result))
    (run / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    (run / "config.json").write_text(json.dumps({"versions": {"tensorflow": "2.21"}}))
    return comparison.read(rule, folder)


def test_the_page_says_what_its_table_shows(tmp_path):
    runs = [trained("sync", tmp_path, 1.0, 0.9, 40e6), trained("async", tmp_path, 0.5, 0.8, 80e6)]
    comparison.write(runs, rules.Conditions(2), tmp_path)
    said = " ".join((tmp_path / "compare.html").read_text().split())
    assert "async has the highest throughput, 16.0 examples a second, 2.00 times that of" in said
    assert "sync reaches the target accuracy first, after 20 s of training." in said
    assert "<li>sync moves the fewest bytes, 2.00 MB a step.</li>" in said
    assert "<b>async</b> ends 10.0 points below sync" in said
    comparison.write(runs, rules.Conditions(2, target=0.95), tmp_path)
    said = " ".join((tmp_path / "compare.html").read_text().split())
    assert "No rule reaches the target accuracy." in said


@pytest.mark.ranks
def test_compare_writes_a_report_and_goes_on_with_it(user):
    flags = ["--experiment=dense.py:dense", "--set=steps=20", "--workdir=side", "--price=3"]
    done = compare(user, *flags, "--updates=sync,bounded:2", "--slowdown=2")
    assert done.returncode == 0, done.stderr[-3000:]
    rows = json.loads((user / "side/compare.json").read_text())
    assert [row["rule"] for row in rows] == ["sync", "bounded:2"]
    assert rows[0]["speed"] == 1 and rows[0]["behind"] == 0 and rows[0]["mean_staleness"] is None
    assert rows[1]["most_staleness"] is not None and rows[1]["changes_numbers"]
    assert all(row["bytes_per_step"] > 0 and row["examples_per_second"] > 0 for row in rows)
    page = (user / "side/compare.html").read_text()
    assert page.count("<svg") == 2 and "One of the 2 workers is slowed" in page
    assert "at 3 a device-hour" in page and (user / "side/compare.png").stat().st_size > 10_000
    # The same folder again: finished runs are kept, another rule is run, if conditions agree.
    written = (user / "side/sync/result.json").stat().st_mtime
    done = compare(user, *flags, "--updates=sync,local:5", "--slowdown=2")
    assert done.returncode == 0, done.stderr[-3000:]
    assert (user / "side/sync/result.json").stat().st_mtime == written
    rows = json.loads((user / "side/compare.json").read_text())
    assert [row["rule"] for row in rows] == ["sync", "local:5"]
    done = compare(user, *flags, "--updates=sync,local:5")
    assert done.returncode == 2 and "slowdown: 1.0 here, 2.0 there" in done.stderr


@pytest.mark.ranks
def test_a_rule_that_fails_is_named(user):
    (user / "wild.py").write_text(DENSE.replace("learning_rate=0.01", "learning_rate=1e38"))
    flags = ["--experiment=wild.py:dense", "--set=steps=20", "--updates=local:5,sync"]
    flags += ["--link_mbit=200"] if shutil.which("tc") else []
    done = compare(user, *flags, "--workdir=side")
    assert done.returncode == 5 and "local:5: failed with exit code 5" in done.stdout
    assert "must be finite" in (user / "side/local-5.log").read_text()
