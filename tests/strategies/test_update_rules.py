"""Update rules: that none loses an update or counts one twice."""

import functools
import json
import os
import signal
import socket
import subprocess
import sys
import time

import numpy as np
import psutil
import pytest
import tensorflow as tf
from ranks import DENSE, ROOT, SHALLOW, app, forked, served, succeeded

from app import errors
from app.errors import UsageError
from app.launch import tfrun
from app.parallel import cluster, network
from app.reporting import chatter


@pytest.fixture
def user(tmp_path):
    """A folder of a user's, with experiments in files of his own."""
    (tmp_path / "mine.py").write_text(SHALLOW)
    (tmp_path / "dense.py").write_text(DENSE)
    return tmp_path


GOOD = {"chief": ["a:1"], "ps": ["b:1"], "worker": ["c:1", "d:1"]}


def described(job="chief", index=0, **others):
    """The description of a cluster with these jobs too, for one of its tasks."""
    return json.dumps({"cluster": GOOD | others, "task": {"type": job, "index": index}})


BAD = {
    "{": ["TF_CONFIG", "JSONDecodeError", '"chief"'],
    "[]": ["TF_CONFIG", "TypeError"],
    json.dumps({"cluster": GOOD}): ["TF_CONFIG", "task"],
    described(ps=[]): ["0 ps"],
    described(evaluator=["e:1"]): ["1 evaluator"],
    described(ps=["b"]): ["'b'", "host:port"],
    described(ps=["b:70000"]): ["'b:70000'", "65535"],
    described(ps=["a:1"]): ["a:1 twice"],
    described("worker", 2): ["worker 2"],
}


@pytest.mark.parametrize("text", BAD)
def test_a_cluster_that_is_none_is_refused(text):
    with pytest.raises(UsageError) as refused:
        cluster.from_environment({"TF_CONFIG": text})
    assert all(part in str(refused.value) for part in BAD[text])


def test_a_cluster_is_described_to_each_of_its_tasks():
    found = cluster.from_environment(
        cluster.Cluster({k: tuple(v) for k, v in GOOD.items()}).environment("worker", 1)
    )
    assert found and found.address == "d:1" and found.is_server
    assert cluster.from_environment({}) is None


def test_a_job_has_as_many_servers_as_it_is_given(tmp_path, monkeypatch):
    """Its chief ends when it has seen all tasks begin, and so ends the job."""
    monkeypatch.chdir(tmp_path)
    begin = "import os, time; from app.parallel import cluster; task = cluster.from_environment(); "
    begin += "open(f'{task.job}{task.index}', 'w').close()\n"
    begin += "while task.job != 'chief' or len(os.listdir()) < 6: time.sleep(0.01)"
    monkeypatch.setenv("PYTHONPATH", str(ROOT))
    assert tfrun.Tasks(2, 3, [sys.executable, "-c", begin]).run() == 0
    assert sorted(os.listdir()) == ["chief0", "ps0", "ps1", "ps2", "worker0", "worker1"]


def train(user, np, name, *flags, servers=0):
    """Trains on forked ranks, or workers if there are servers; returns the result."""
    run = functools.partial(served, np, servers) if servers else functools.partial(forked, np)
    succeeded(run(user, "train", "--experiment=mine.py:tiny", f"--workdir={name}", *flags))
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
    train(user, 1, "serial")
    unbounded = "--set=update.staleness=none"  # nobody to be stale for
    one = train(user, 1, "one", SERVED, unbounded, servers=1)
    together = ["--set=update.staleness=0", "--parameter_servers=3"]
    two = train(user, 2, "two", SERVED, *together, servers=3)
    for name in ("one", "two"):
        assert_same(user, "serial", name, rtol=2e-4, atol=2e-6)
    assert one["staleness"] == two["staleness"] == {"0": 6}
    assert one["updates_applied"] == two["updates_applied"] == 6
    assert (one["shares_given"], two["shares_given"]) == (6, 12)
    assert (one["shares_computed"], two["shares_computed"]) == (6, 12)
    assert not two["changes_numbers"] and two["layout"]["workers"] == 2
    done = forked(1, user, "evaluate", "--workdir=two")  # anywhere, by one process
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
    assert "2 processes train independently for 4 steps" in whole["changes_numbers"][0]
    train(user, 2, "parts", *rounds, "--stop_at_step=3")
    parts = train(user, 2, "parts", *rounds)
    assert parts["finished"]
    assert_same(user, "whole", "parts", rtol=1e-3, atol=1e-5)  # the outer momentum is kept
    assert any(np.abs(v).max() > 0 for n, v in weights(user, "whole").items() if "outer" in n)


@pytest.mark.ranks
def test_adasum_and_top_k_train_and_say_so(user):
    wide = SHALLOW.replace("Shallow()", "Shallow(256)")  # whose gradients are worth compressing
    (user / "mine.py").write_text(wide)
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
            task = cluster.from_environment(process.environ())
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
               "--checkpoint_every=25", "--keep=99", "--set=steps=450",
               "--log_examples", "--log_every=10"]  # fmt: skip
    env = os.environ | {"NP": "2", "PYTHONPATH": str(ROOT)}
    with (user / "log").open("w") as log:
        job = subprocess.Popen(
            command, cwd=user, env=env, stdout=log, stderr=log, start_new_session=True
        )
        try:
            metrics = user / "run/metrics.jsonl"
            wait_for(metrics, '"step": 50')
            for address in [a for j in cluster.JOBS for _, a in tasks(j, job.pid).values()]:
                with pytest.raises(ConnectionRefusedError):  # its network is its own
                    socket.create_connection(address.split(":"), timeout=2)
            os.kill(tasks("worker", job.pid)[1][0], signal.SIGKILL)
            wait_for(metrics, '"step": 200')
            os.kill(tasks("ps", job.pid)[0][0], signal.SIGKILL)
            assert job.wait(240) == 0, (user / "log").read_text()[-3000:]
        finally:
            if job.poll() is None:
                os.killpg(job.pid, signal.SIGKILL)
    log = (user / "log").read_text()
    assert "worker 1 (pid" in log and "parameter server 0 (pid" in log and "Traceback" not in log
    result = json.loads((user / "run/result.json").read_text())
    assert result["steps"] == result["updates_applied"] == 450
    assert sum(result["staleness"].values()) == result["shares_given"] <= result["shares_computed"]
    # The worker's death was no restart; after the server's, what was missing, then the rest.
    events = list(map(json.loads, (user / "run/recovery.jsonl").read_text().splitlines()))
    assert [event["event"] for event in events] == ["session", "loss", "restart", "session"]
    first = events[-1]["first"]
    manifest = json.loads((user / f"run/checkpoints/step-{first:08d}/manifest.json").read_text())
    missing = manifest["content"].get("missing", [])
    lines = list(map(json.loads, (user / "run/examples-0.jsonl").read_text().splitlines()))
    given = [line["step"] - 1 for line in lines if line["session"] == lines[-1]["session"]]
    assert given[::2] == given[1::2] == [*missing, *range(first + len(missing), 450)]
    assert sum(result["staleness"].values()) == 450 - first


def test_what_is_let_go_after_a_task_was_lost_does_not_say_so(monkeypatch, capfd):
    class Executor:
        def __init__(self, error):
            self.error = error

        def __del__(self):
            raise self.error

    monkeypatch.setattr(sys, "unraisablehook", sys.__unraisablehook__)  # pytest's own collects
    chatter.silence_lost_peers()
    Executor(tf.errors.UnavailableError(None, None, "Connection reset by peer"))
    Executor(ValueError("a defect"))
    error = capfd.readouterr().err
    assert "Connection reset" not in error and "ValueError: a defect" in error


def test_the_server_is_named_whose_chief_failed_with_it(monkeypatch, capfd):
    """A chief fails within milliseconds of its server, and may be seen first."""

    class Process:
        pid, returncode = 7, None

        def __init__(self, statuses):
            self.statuses = iter(statuses)

        def poll(self):
            self.returncode = next(self.statuses, self.returncode)
            return self.returncode

        def wait(self):
            pass

        kill = wait

    statuses = {"chief": [None, errors.LOST_PEER], "ps": [None, -9], "worker": [None]}
    monkeypatch.setattr(tfrun.Tasks, "start", lambda self, task: Process(statuses[task[0]]))
    assert tfrun.Tasks(1, 1, []).run() == 1
    ended = capfd.readouterr().err
    assert f"{tfrun.ENDED}parameter server 0 (pid 7) was killed by SIGKILL" in ended
    statuses["ps"] = [None]
    assert tfrun.Tasks(1, 1, []).run() == 1
    assert capfd.readouterr().err == "Process 0 exit with status code 7.\n"
    statuses |= {"chief": [0], "ps": [-9]}  # nobody needs it any more
    assert tfrun.Tasks(1, 1, []).run() == 0


@pytest.mark.ranks
def test_a_parameter_server_that_is_not_there_is_named(user):
    chiefs, free, workers = tfrun.free_ports(3)
    tasks = {"chief": chiefs, "ps": free, "worker": workers}
    tasks = {job: (f"127.0.0.1:{port}",) for job, port in tasks.items()}
    chief = cluster.Cluster(tasks).environment("chief", 0)
    flags = ["train", "--experiment=mine.py:tiny", SERVED, "--workdir=run"]
    begin = time.monotonic()
    done = forked(1, user, *flags, "--trusted_network", **chief)
    assert done.returncode == 2 and f"ps 0 does not answer at 127.0.0.1:{free}" in done.stderr
    assert "after 10 s" in done.stderr
    assert "Traceback" not in done.stderr and time.monotonic() - begin < 60
    if network.reachable_interfaces():
        done = app(1, user, *flags, **chief)
        assert done.returncode == 2 and "a chief of a parameter-server job runs code" in done.stderr
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", free))
        ps = cluster.Cluster(tasks).environment("ps", 0)
        done = app(1, user, *flags, "--trusted_network", **ps)
        assert done.returncode == 2 and f"port {free} cannot be used" in done.stderr
    done = forked(1, user, *flags, "--parameter_servers=100", **chief | {"TF_CONFIG": ""})
    assert done.returncode == 2 and "TF_CONFIG" in done.stderr
