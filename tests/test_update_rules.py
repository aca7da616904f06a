"""Update rules: what each computes, and that none loses an update or counts one twice."""

import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import threading
import time

import numpy as np
import psutil
import pytest
import tensorflow as tf
from ranks import ROOT, TINY, app, start

from app import compare as comparing
from app import rules, validation
from app.config import Layout, Update
from app.errors import UsageError
from app.parallel import cluster, parameter_server, replicas, tfrun
from app.parallel.ledger import Ledger
from app.parallel.parameter_server import Greedy
from app.recovery import private
from app.settings import override
from app.training import exchange, opening

DENSE = """
from dataclasses import dataclass
import keras
from app.config import Experiment, Optimization
from input.images import Images

@dataclass(frozen=True)
class Small:
    def blocks(self, num_classes):
        return [keras.layers.Flatten(name="flat"), keras.layers.Dense(num_classes, name="head")]

def dense():
    return Experiment(
        model=Small(), data=Images("synthetic", size=8, synthetic_examples=64, synthetic_classes=3),
        global_batch=8, micro_batch=4, steps=1500,
        optimization=Optimization(warmup_epochs=0, schedule="constant", learning_rate=0.01))
"""


@pytest.fixture
def user(tmp_path):
    """A folder of a user's, with experiments in files of his own."""
    (tmp_path / "mine.py").write_text(TINY)
    (tmp_path / "dense.py").write_text(DENSE)
    return tmp_path


# The ledger: integers only.


def test_a_ledger_counts_staleness_and_knows_what_is_missing():
    ledger = Ledger(range(4), None)
    assert [ledger.begin() for _ in range(3)] == [0, 1, 2]
    assert ledger.apply(1) == 0 and ledger.apply(2) == 1  # 0 is still computed
    assert ledger.missing() == [0]
    assert ledger.begin() == 3 and ledger.begin() is None
    assert ledger.missing() == [0]  # 3 is not applied, but nothing after it is
    assert ledger.apply(0) == 2 and ledger.apply(3) == 1
    assert ledger.missing() == [] and ledger.staleness == {0: 1, 1: 2, 2: 1}
    with pytest.raises(KeyError):
        ledger.apply(3)  # never twice


def test_a_run_that_goes_on_remembers_what_is_missing():
    # Saved after 100 steps, of which 97 and 98 were not: 99 to 101 were applied ahead of them.
    ledger = Ledger([97, 98, *range(102, 106)], None, furthest=101)
    assert ledger.missing() == [97, 98]  # begun or not
    assert ledger.begin() == 97 and ledger.missing() == [97, 98]
    ledger.apply(97)
    assert ledger.missing() == [98]
    assert [ledger.begin(), ledger.begin()] == [98, 102]
    ledger.apply(102)
    assert ledger.missing() == [98]
    ledger.apply(98)
    assert ledger.missing() == []


def test_a_bound_holds_back_who_is_ahead():
    ledger = Ledger([2, 5, 6, 7, 8], 4)  # of a run that went on
    assert [ledger.begin() for _ in range(3)] == [2, 5, 6]
    begun = []
    waiting = threading.Thread(target=lambda: begun.append(ledger.begin()))
    waiting.start()
    ledger.apply(5), ledger.apply(6)
    waiting.join(0.2)
    assert waiting.is_alive() and not begun  # 7 would be 5 ahead of 2
    ledger.apply(2)
    waiting.join(5)
    assert begun == [7]
    ledger.close()
    assert ledger.begin() is None


# What travels.


@pytest.fixture
def two(monkeypatch):
    """As if another process always had twice what this one has."""
    monkeypatch.setattr(replicas, "all_reduce", lambda x, name: 3 * x)
    monkeypatch.setattr(
        replicas,
        "all_gather",
        lambda x, name: tf.concat([x, x if x.dtype == tf.int32 else 2 * x], 0),
    )


class Part:
    """One weight of 1,000 elements and one statistic."""

    def __init__(self):
        self.trainable = [tf.Variable(tf.zeros([40, 25]))]
        self.statistics, self.device = [(tf.Variable(tf.zeros([2])), 0.9)], ""


@pytest.mark.parametrize(
    "kind, rule",
    [
        (exchange.TopK, Update(compression="topk", topk=0.1)),
        (exchange.Rounded, Update(compression="float16")),
    ],
)
def test_what_is_not_sent_is_sent_later(two, kind, rule):
    wire = kind(Part(), ["w", "s", "m"], 2, rule)
    random, sent, given = np.random.default_rng(0), 0, 0
    for _ in range(5):
        gradient = tf.constant(random.normal(size=[40, 25]), tf.float32)
        out, statistic, metrics = wire([gradient, tf.ones([2]), tf.ones([2])])
        assert statistic.numpy().tolist() == [3, 3] == metrics.numpy().tolist()
        sent, given = sent + out.numpy() / 3, given + gradient.numpy()
        if kind is exchange.TopK:
            assert np.count_nonzero(out) == 100
    left = wire.remainders[0].numpy()
    assert np.abs(left).max() > 0
    np.testing.assert_allclose(sent + left, given, atol=2e-2 if kind is exchange.Rounded else 1e-5)
    # Three small all-reduces; of the weight half as many bytes, or 100 places and values.
    weight = 2000 if kind is exchange.Rounded else 800
    assert wire.bytes_sent == weight + 8 + 8


def test_a_gradient_that_is_not_finite_leaves_nothing_behind(two):
    wire = exchange.Rounded(Part(), ["w", "s", "m"], 2, Update(compression="float16"))
    wire([tf.fill([40, 25], np.inf), tf.ones([2]), tf.ones([2])])
    assert np.isfinite(wire.remainders[0].numpy()).all()


def test_without_feedback_nothing_is_kept(two):
    rule = Update(compression="topk", topk=0.1, error_feedback=False)
    assert not exchange.TopK(Part(), ["w", "s", "m"], 2, rule).remainders


def test_adasum_averages_what_agrees_and_adds_what_does_not():
    a, b = tf.constant([3.0, 0.0]), tf.constant([0.0, 4.0])
    assert exchange.adasum(a, b).numpy().tolist() == [3, 4]
    assert exchange.adasum(a, a).numpy().tolist() == [3, 0]
    assert exchange.adasum(a, 0 * a).numpy().tolist() == [3, 0]
    assert exchange.adasum(a, 3 * a).numpy().tolist() == pytest.approx(
        [3 * 0.5 - 4.5 + 6 + 4.5 - 1.5, 0]
    )


def test_variables_go_where_there_is_room(monkeypatch):
    monkeypatch.setattr(parameter_server, "server", lambda index: f"CPU:{index}")
    greedy = Greedy(2)
    with tf.variable_creator_scope(greedy.create):
        for size in (100, 40, 30, 20):
            tf.Variable(tf.zeros([size]), dtype=tf.float32)
    assert greedy.held == [400, 360] and greedy.count == 4


def test_more_servers_than_variables_are_refused(tiny, monkeypatch):
    monkeypatch.setattr(parameter_server, "server", lambda index: f"CPU:{index % 4}")
    data = tiny.data.open("")
    state, mirror = opening.served(tiny, Layout(workers=1, parameter_servers=4), data, None)
    assert len({v.device for v in state.weights.values()}) == 4
    assert len({v.device for v in mirror.weights.values()}) == 1
    with pytest.raises(UsageError, match=r"1000 parameter servers need .* has \d+: start at most"):
        opening.served(tiny, Layout(workers=1, parameter_servers=1000), data, None)


# A cluster's description.

GOOD = {"chief": ["a:1"], "ps": ["b:1"], "worker": ["c:1", "d:1"]}
BAD = {
    "{": ["TF_CONFIG", "JSONDecodeError", '"chief"'],
    "[]": ["TF_CONFIG", "TypeError"],
    json.dumps({"cluster": GOOD}): ["TF_CONFIG", "task"],
    json.dumps({"cluster": {**GOOD, "ps": []}, "task": {"type": "chief", "index": 0}}): ["0 ps"],
    json.dumps({"cluster": {**GOOD, "evaluator": ["e:1"]}, "task": {"type": "chief", "index": 0}}):
        ["1 evaluator"],
    json.dumps({"cluster": {**GOOD, "ps": ["b"]}, "task": {"type": "chief", "index": 0}}):
        ["'b'", "host:port"],
    json.dumps({"cluster": {**GOOD, "ps": ["b:70000"]}, "task": {"type": "chief", "index": 0}}):
        ["'b:70000'", "65535"],
    json.dumps({"cluster": {**GOOD, "ps": ["a:1"]}, "task": {"type": "chief", "index": 0}}):
        ["a:1 twice"],
    json.dumps({"cluster": GOOD, "task": {"type": "worker", "index": 2}}): ["worker 2"],
}  # fmt: skip


@pytest.mark.parametrize("text", BAD)
def test_a_cluster_that_is_none_is_refused(text):
    with pytest.raises(UsageError) as refused:
        cluster.given({"TF_CONFIG": text})
    assert all(part in str(refused.value) for part in BAD[text])


def test_a_cluster_is_described_to_each_of_its_tasks():
    found = cluster.given(
        cluster.Cluster({k: tuple(v) for k, v in GOOD.items()}).environment("worker", 1)
    )
    assert found and found.address == "d:1" and found.is_server
    assert cluster.given({}) is None


def compare(user, *flags, np="2"):
    return start([sys.executable, "-m", "app", "compare", *flags], user, NP=np)


# Names of rules, and what a comparison can be asked.


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
    "--keep=3 --elastic": ["compare does not read", "leave it out"],
}


@pytest.mark.parametrize("line", NO_COMPARISON)
def test_a_comparison_that_cannot_be_is_told_at_once(user, line):
    *flags, last = line.split()
    np = last.removeprefix("NP=") if last.startswith("NP=") else "2"
    flags = flags if last.startswith("NP=") else [*flags, last]
    done = compare(user, "--experiment=mine.py:tiny", *flags, np=np)
    assert done.returncode == 2 and done.stderr.count("\n") == 1, done.stderr
    assert all(word in done.stderr for word in NO_COMPARISON[line]), done.stderr


def test_a_straggler_stops_and_goes_on():
    victim = subprocess.Popen([sys.executable, "-c", "while True: pass"])
    slower = subprocess.Popen(
        [sys.executable, "-m", "app.straggler", str(victim.pid), "4"], cwd=ROOT
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
        comparing.must_shape(100)
    monkeypatch.setenv("PATH", "")
    with pytest.raises(UsageError, match=r"--link_mbit=100 needs .* is not allowed"):
        comparing.must_shape(100)


# Real jobs.


def train(user, np, name, *flags, experiment="mine.py:tiny", launch=True):
    command = ["train", f"--experiment={experiment}", f"--workdir={name}", *flags]
    done = app(np, user, *(["launch"] if launch and np == 1 else []), *command)
    assert done.returncode == 0, done.stderr[-3000:]
    return json.loads((user / name / "result.json").read_text())


def weights(user, name):
    newest = sorted((user / name / "checkpoints").glob("step-*"))[-1] / "state"
    reader = tf.train.load_checkpoint(str(newest))
    return {n: reader.get_tensor(n) for n in reader.get_variable_to_shape_map()}


def assert_same(user, a, b, **tolerance):
    a, b = weights(user, a), weights(user, b)
    for name in a.keys() & b.keys():
        np.testing.assert_allclose(a[name], b[name], err_msg=name, **tolerance)


SERVED = "--set=update.kind=parameter_server"
LOCAL = "--set=update.kind=local_sgd"
SGD = "--set=optimization.weight_decay=0"


@pytest.mark.ranks
def test_synchronous_parameter_server_training_is_serial_training(user):
    train(user, 1, "serial", launch=False)
    one = train(user, 1, "one", SERVED, "--set=update.staleness=none")  # nobody to be stale for
    two = train(user, 2, "two", SERVED, "--parameter_servers=3", "--set=update.staleness=0")
    for name in ("one", "two"):
        assert_same(user, "serial", name, rtol=2e-4, atol=2e-6)
    assert one["staleness"] == two["staleness"] == {"0": 6}
    assert one["updates_applied"] == two["updates_applied"] == 6
    assert (one["shares_given"], two["shares_given"]) == (6, 12)
    assert (one["shares_computed"], two["shares_computed"]) == (6, 12)
    assert not two["changes_numbers"] and two["layout"]["workers"] == 2
    done = app(1, user, "evaluate", "--workdir=two")  # anywhere, by one process
    assert json.loads(done.stdout)["test"]["accuracy"] == two["metrics"]["test"]["accuracy"]


@pytest.mark.ranks
def test_rounds_of_one_step_are_synchronous_training(user):
    two = train(user, 2, "two")
    assert train(user, 2, "k1", LOCAL)["weights_sha256"] == two["weights_sha256"]  # exactly
    # The averaging itself: SGD with momentum is linear in the gradients.
    train(user, 2, "averaged", LOCAL, "--set=update.outer_momentum=1e-12")
    assert_same(user, "two", "averaged", rtol=1e-3, atol=1e-5)


@pytest.mark.ranks
def test_local_rounds_are_where_a_run_is_looked_at_and_continued(user):
    rounds = [LOCAL, "--set=update.local_steps=4", "--set=update.outer_momentum=0.9",
              "--set=update.outer_rate=0.7", "--set=steps=10"]  # fmt: skip
    whole = train(user, 2, "whole", *rounds, "--checkpoint_every=3", "--keep=9")
    saved = sorted(int(p.name[5:]) for p in (user / "whole/checkpoints").glob("step-*"))
    assert saved == [4, 8, 10]  # where all hold the same
    assert "2 processes train alone for 4 steps" in whole["changes_numbers"][0]
    train(user, 2, "parts", *rounds, "--stop_at_step=3")
    parts = train(user, 2, "parts", *rounds)
    assert parts["finished"]
    assert_same(user, "whole", "parts", rtol=1e-3, atol=1e-5)  # the outer momentum is kept
    assert any(np.abs(v).max() > 0 for n, v in weights(user, "whole").items() if "outer" in n)


@pytest.mark.ranks
def test_adasum_and_top_k_train_and_say_so(user):
    adasum = train(user, 2, "adasum", "--set=update.kind=adasum")
    top = train(user, 2, "top", "--set=update.compression=topk", "--set=update.topk=0.01")
    whole = train(user, 2, "whole")
    assert "Adasum" in adasum["changes_numbers"][0] and "1.00%" in top["changes_numbers"][0]
    shas = {r["weights_sha256"] for r in (adasum, top, whole)}
    assert len(shas) == 3
    assert top["bytes_sent_per_step"] < whole["bytes_sent_per_step"] / 5


def tasks(job, below):
    """Pids and addresses of a parameter-server job's tasks of one kind, below a process."""
    found = {}
    for process in psutil.Process(below).children(recursive=True):
        try:
            task = cluster.given(process.environ())
        except psutil.Error:
            continue
        if task and task.job == job:
            found[task.index] = process.pid, task.address
    return found


def wait_for(path, text, limit=120):
    end = time.monotonic() + limit
    while not (path.exists() and text in path.read_text()):
        assert time.monotonic() < end, f"no {text!r} in {path}"
        time.sleep(0.1)


@pytest.mark.ranks
def test_no_update_is_lost_or_counted_twice_whoever_dies(user):
    command = [sys.executable, "-m", "app", "launch", "train", SERVED,
               "--experiment=dense.py:dense", "--set=update.staleness=none", "--workdir=run",
               "--checkpoint_every=25", "--keep=99",
               "--log_examples", "--log_every=10"]  # fmt: skip
    env = os.environ | {"NP": "2", "PYTHONPATH": str(ROOT)}
    with (user / "log").open("w") as log:
        job = subprocess.Popen(
            command, cwd=user, env=env, stdout=log, stderr=log, start_new_session=True
        )
        try:
            metrics = user / "run/metrics.jsonl"
            wait_for(metrics, '"step": 300')
            for address in [a for j in cluster.JOBS for _, a in tasks(j, job.pid).values()]:
                with pytest.raises(ConnectionRefusedError):  # its network is its own
                    socket.create_connection(address.split(":"), timeout=2)
            os.kill(tasks("worker", job.pid)[1][0], signal.SIGKILL)
            wait_for(metrics, '"step": 800')
            os.kill(tasks("ps", job.pid)[0][0], signal.SIGKILL)
            assert job.wait(240) == 0, (user / "log").read_text()[-3000:]
        finally:
            if job.poll() is None:
                os.killpg(job.pid, signal.SIGKILL)
    told = (user / "log").read_text()
    assert "worker 1 (pid" in told and "parameter server 0 (pid" in told and "Traceback" not in told
    result = json.loads((user / "run/result.json").read_text())
    assert result["steps"] == result["updates_applied"] == 1500
    assert sum(result["staleness"].values()) == result["shares_given"] <= result["shares_computed"]
    # The worker's death was no restart; after the server's, what was missing, then the rest.
    events = list(map(json.loads, (user / "run/recovery.jsonl").read_text().splitlines()))
    assert [event["event"] for event in events] == ["session", "loss", "restart", "session"]
    first = events[-1]["first"]
    manifest = json.loads((user / f"run/checkpoints/step-{first:08d}/manifest.json").read_text())
    missing = manifest.get("missing", [])
    lines = list(map(json.loads, (user / "run/examples-0.jsonl").read_text().splitlines()))
    given = [line["step"] - 1 for line in lines if line["session"] == lines[-1]["session"]]
    assert given[::2] == given[1::2] == [*missing, *range(first + len(missing), 1500)]
    assert sum(result["staleness"].values()) == 1500 - first


@pytest.mark.ranks
def test_a_parameter_server_that_is_not_there_is_named(user):
    chiefs, free, workers = tfrun.free_ports(3)
    tasks = {"chief": chiefs, "ps": free, "worker": workers}
    tasks = {job: (f"127.0.0.1:{port}",) for job, port in tasks.items()}
    chief = cluster.Cluster(tasks).environment("chief", 0)
    flags = ["train", "--experiment=mine.py:tiny", SERVED, "--workdir=run"]
    begin = time.monotonic()
    done = app(1, user, *flags, "--trusted_network", **chief)
    assert done.returncode == 2 and f"ps 0 does not answer at 127.0.0.1:{free}" in done.stderr
    assert "after 10 s" in done.stderr  # and some to import TensorFlow: under 20 in all
    assert "Traceback" not in done.stderr and time.monotonic() - begin < 60
    if private.reachable_interfaces():
        done = app(1, user, *flags, **chief)
        assert done.returncode == 2 and "a chief of a parameter-server job obeys" in done.stderr
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", free))
        ps = cluster.Cluster(tasks).environment("ps", 0)
        done = app(1, user, *flags, "--trusted_network", **ps)
        assert done.returncode == 2 and f"port {free} cannot be used" in done.stderr
    done = app(1, user, *flags, "--parameter_servers=100", **chief | {"TF_CONFIG": ""})
    assert done.returncode == 2 and "TF_CONFIG" in done.stderr


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
    # The same folder again: what is done is kept, a rule more is run, on equal terms alone.
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
