"""Ranks that are forked are as good as ranks that are started, and are gone when they should be."""

import os
import signal
import threading
import time

import forks
import psutil
import pytest
from ranks import SHALLOW, app, call, environment, forked

pytestmark = pytest.mark.ranks


def total(number):
    """On every rank: its own number, and the sum over all."""
    import tensorflow as tf

    from app.config import Layout
    from app.parallel import replicas
    from app.training import opening

    where, _ = opening.join(Layout())
    everything = replicas.all_reduce(tf.constant(number + where.rank), "total")
    return (
        where.rank,
        int(everything),
        os.getcwd(),
        tf.config.threading.get_intra_op_parallelism_threads(),
    )


def test_a_function_runs_on_every_rank(tmp_path):
    cores = len(os.sched_getaffinity(0))
    found = call(3, tmp_path, total, 10)
    assert found == [(rank, 33, str(tmp_path), max(1, cores // 3)) for rank in range(3)]
    assert call(1, tmp_path, total, 10)[0][:2] == (0, 10)  # others than before


def test_forked_ranks_train_what_started_ones_train(tmp_path):
    (tmp_path / "mine.py").write_text(SHALLOW)
    flags = ["train", "--experiment=mine.py:tiny"]
    outs = []
    for name, run in (("forked", forked), ("started", app)):
        done = run(2, tmp_path, *flags, f"--workdir={name}")
        assert done.returncode == 0, done.stderr
        outs.append(done.stdout.splitlines()[-1].replace(name, "run"))
    assert outs[0] == outs[1] and outs[0].startswith("weights ")


def misbehave(how):
    if os.environ["HOROVOD_RANK"] == "1":
        if how == "raise":
            raise ArithmeticError("what a rank says")
        if how == "die":
            os.kill(os.getpid(), signal.SIGKILL)
    time.sleep(100)


@pytest.mark.parametrize(
    ("how", "codes", "told"),
    [
        ("raise", [-9, 1], "what a rank says"),
        ("die", [-9, -9], ""),
        ("hang", [-9, -9], "misbehave"),
    ],
)
def test_a_rank_that_fails_ends_the_job(tmp_path, how, codes, told):
    env = environment({})
    server = forks.of_ranks(env)
    limit = 5 if how == "hang" else 300
    found = server.run(2, tmp_path, "test_forks:misbehave", [how], env, limit)
    assert found.codes == codes and told in found.err[1]
    assert not psutil.Process(server._server.pid).children()
    assert call(2, tmp_path, total, 1)[1][1] == 3  # and the next one begins


def test_ranks_die_with_the_server(tmp_path):
    env = environment({})
    server = forks.Forks(forks.RANK, {})
    job = (2, tmp_path, "test_forks:misbehave", ["hang"], env, 300)
    errors = []

    def run():
        try:
            server.run(*job)
        except AssertionError as error:
            errors.append(error)

    thread = threading.Thread(target=run)
    thread.start()
    ranks = []
    while len(ranks) < 2:  # an import may start a process, too
        time.sleep(0.1)
        ranks = psutil.Process(server._server.pid).children() if server._server else []
    server._server.kill()
    thread.join(30)
    assert errors and not psutil.wait_procs(ranks, timeout=20)[1]
