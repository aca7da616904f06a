"""Jobs of several ranks: the same result on any number of processes."""

import json

import numpy as np
import pytest
from conftest import write_sentences
from ranks import SHALLOW, SHORT, SPLIT, TEXTS, app, forked, on_servers, run_sh, start, succeeded

pytestmark = pytest.mark.ranks
BAD = """
from dataclasses import dataclass
import keras

class Noise(keras.layers.Layer):
    def call(self, x):
        return x + keras.random.normal(keras.ops.shape(x))

@dataclass(frozen=True)
class Bad:
    def blocks(self, num_classes):
        return [keras.layers.Flatten(), Noise(name="noise"), keras.layers.Dense(num_classes)]
"""


@pytest.fixture
def user(tmp_path):
    """A folder of a user's, with an experiment in a file of his own."""
    (tmp_path / "mine.py").write_text(SHORT)
    (tmp_path / "light.py").write_text(SHALLOW)
    (tmp_path / "split.py").write_text(SPLIT)
    return tmp_path


def train(user, np, name, *flags):
    flags = ["--experiment=mine.py:tiny", f"--workdir={name}", *flags]
    succeeded(forked(np, user, "train", *flags))
    return json.loads((user / name / "result.json").read_text())


def examples(user, name, processes, micro_batches=8):
    """Ids of every step, from what each rank wrote of the batches it was given."""
    shares = np.array_split(np.arange(micro_batches), processes)
    steps: dict[int, list] = {}
    for rank, share in enumerate(shares):
        lines = (user / name / f"examples-{rank}.jsonl").read_text().splitlines()
        for line in map(json.loads, lines):
            assert line["micro_batch"] in share
            steps.setdefault(line["step"], []).extend(line["examples"])
    return steps


def test_exact_is_bit_identical_for_any_number_of_processes(user):
    results = {n: train(user, n, f"np{n}", "--exact", "--log_examples") for n in (1, 2, 3)}
    shas = {r["weights_sha256"] for r in results.values()}
    assert len(shas) == 1
    ids = {n: examples(user, f"np{n}", n) for n in results}
    assert ids[1] == ids[2] == ids[3] and len(ids[1]) == 6
    scores = [r["metrics"]["test"] for r in results.values()]
    assert len({s["accuracy"] for s in scores}) == 1 and {s["examples"] for s in scores} == {101}
    assert np.ptp([s["loss"] for s in scores]) < 1e-6

    # Stopped on two processes, continued on one: the same weights.
    train(user, 2, "parts", "--exact", "--stop_at_step=3")
    parts = train(user, 1, "parts")  # the workdir remembers --exact
    assert parts["finished"] and {parts["weights_sha256"]} == shas

    # It cannot be continued otherwise than it was begun.
    done = forked(1, user, "train", "--workdir=parts", "--noexact")
    assert done.returncode == 2 and "--exact: False here, True there" in done.stderr

    # The checkpoint alone gives the same metrics, on yet another number of processes.
    done = forked(3, user, "evaluate", "--workdir=parts")
    found = json.loads(done.stdout)
    assert found["test"]["accuracy"] == scores[0]["accuracy"]


def test_the_ring_agrees_to_rounding(user):
    one, two = train(user, 1, "one"), train(user, 2, "two")
    a, b = (
        json.loads((user / name / "metrics.jsonl").read_text().splitlines()[-3])["loss"]
        for name in ("one", "two")
    )
    assert a == pytest.approx(b, rel=1e-3)
    assert one["layout"]["processes"] == 1 and two["layout"]["processes"] == 2


def test_the_published_case_on_two_processes(user):
    """All 128 micro-batches of it, each of two small images."""
    small = "global_batch=256 micro_batch=2 model.depth=18 model.width=2 data.dataset=synthetic"
    flags = [
        f"--set={s}" for s in f"{small} data.size=32 data.synthetic_examples=300 steps=2".split()
    ]
    flags = ["--experiment=resnet50_imagenet", "--workdir=run", *flags]
    done = succeeded(forked(2, user, "train", *flags))
    assert "128 micro-batches of 2 on 2 processes (64 each)" in done.stdout
    assert json.loads((user / "run/result.json").read_text())["finished"]


def test_benchmark_gives_every_figure(user):
    done = succeeded(forked(2, user, "benchmark", "--experiment=light.py:tiny"))
    lines = [line.split() for line in done.stdout.splitlines()]
    figures = {
        " ".join(words[:-2]): float(words[-2]) for words in lines if words[-1:] == ["examples/s"]
    }
    assert figures.keys() == {"bare step", "full loop", "independent processes"}
    assert all(value > 0 for value in figures.values())
    bandwidths = [words for words in lines if words[:1] == ["all-reduce"]]
    assert len(bandwidths) == 6 and all(float(words[5]) > 0 for words in bandwidths)


def test_float16_on_the_wire_is_told(user):
    result = train(user, 2, "fp16", "--set=update.compression=float16", "--set=steps=2")
    assert result["changes_numbers"] == ["gradients rounded to float16 on the wire of 2 processes"]


@pytest.mark.parametrize(
    ("flags", "code", "message"),
    [
        (["--experiment=resnet50_digit"], 2, "did you mean resnet50_digits"),
        (["--experiment=mine.py:tiny", "--set=seeed=1"], 2, "nearest: seed"),
        (["--experiment=mine.py:tiny", "--set=micro_batch=5"], 2, "multiple of micro_batch"),
        (["--experiment=mine.py:tiny", "--set=micro_batch=32"], 2, "at most 1 processes"),
        (["--experiment=mine.py:tiny", "--no_such_flag"], 2, "no_such_flag"),
        (["--experiment=mine.py:tiny", "--set=data.dataset=digits", "--data_dir=no"], 3, "prepare"),
        (["--experiment=mine.py:tiny", "--set=data.synthetic_examples=31"], 3, "31 examples"),
        (["--experiment=light.py:tiny", "--set=optimization.learning_rate=1e30"], 5, "finite"),
    ],
)  # fmt: skip
def test_an_error_is_one_message_with_its_exit_code(user, flags, code, message):
    before = sorted(user.rglob("*"))
    # What ranks find is passed on by a launcher as the last one is.
    done = (forked if code == 3 else run_sh)(2, user, "train", *flags)
    assert done.returncode == code, done.stderr[-2000:]
    lines = [line for line in done.stderr.splitlines() if "error:" in line]
    assert len(lines) == 1 and message in lines[0], done.stderr
    assert "Traceback" not in done.stderr
    if code in (2, 3):
        left = [p for p in sorted(user.rglob("*")) if "__pycache__" not in p.parts]
        assert left == before


def test_an_image_damaged_later_is_one_cause(user):
    """The rank that meets it names it; the job's code is the cause's, not the lost peer's."""
    from PIL import Image

    for split in ("train", "val"):
        for i in range(32):
            folder = user / "photos" / split / ("one" if i % 2 else "two")
            folder.mkdir(parents=True, exist_ok=True)
            Image.new("RGB", (20, 20), (i, 2 * i, 3 * i)).save(folder / f"{i:02}.png")
    flags = ["--experiment=light.py:tiny", "--set=data.dataset=./photos", "--data_dir=data"]
    succeeded(forked(1, user, "prepare", *flags))
    (user / "photos/train/one/07.png").write_bytes(b"gone")
    done = run_sh(2, user, "train", *flags, "--workdir=run")
    assert done.returncode == 3, done.stderr[-2000:]
    assert "train/one/07.png" in done.stderr


def test_a_model_outside_the_protocol_is_refused(user):
    (user / "bad.py").write_text(BAD + SHORT.replace("Short()", "Bad()"))
    done = forked(2, user, "train", "--experiment=bad.py:tiny", "--workdir=run")
    assert done.returncode == 2, done.stderr[-2000:]
    lines = [line for line in done.stderr.splitlines() if "error:" in line]
    assert len(lines) == 1 and "noise draws random numbers from Keras' global" in lines[0], (
        done.stderr
    )
    assert "Traceback" not in done.stderr


def test_a_workdir_of_another_experiment_shows_what_differs(user):
    train(user, 1, "run", "--set=steps=1")
    done = run_sh(2, user, "train", "--experiment=mine.py:tiny", "--workdir=run", "--set=seed=4")
    assert done.returncode == 2
    assert "seed: 4 here, 0 there" in done.stderr and "steps: 6 here, 1 there" in done.stderr


ONE_LENGTH = "--set=data.max_length=8"  # of a batch: a step is compiled for each


@pytest.fixture
def texts(tmp_path):
    """A folder with labelled texts of letters, a vocabulary and an experiment."""
    write_sentences(tmp_path, longest=13)
    (tmp_path / "mine.py").write_text(TEXTS)
    return tmp_path


def test_exact_is_bit_identical_for_any_cut(texts):
    layouts = {
        (1, ""): [],
        (1, "4"): ["--stages=4"],
        (1, "2x2"): ["--stages=2", "--chunks=2"],
        (3, "2"): ["--stages=2", "--schedule=gpipe", "--recompute"],
    }
    results = {
        (np, stages): train(texts, np, f"np{np}-{stages}", "--exact", ONE_LENGTH, *flags)
        for (np, stages), flags in layouts.items()
    }
    assert len({r["weights_sha256"] for r in results.values()}) == 1
    rows = results[1, "4"]["stages"]
    assert [row["device"][-5:] for row in rows] == [f"CPU:{s}" for s in range(4)]
    assert [row["micro_batches_alive"] for row in rows] == [4, 3, 2, 1]
    whole = sum(row["parameters"] for row in rows)
    assert all(0 < row["parameters"] < whole for row in rows)
    assert all(row["activation_bytes"] > 0 for row in rows)


def test_verify_passes_a_model_of_one_s_own(user):
    flags = ["--experiment=split.py:tiny", "--set=model.depth=1", "--stages=2", "--tensor=2"]
    done = succeeded(forked(2, user, "verify", *flags))
    assert "every layout agrees" in done.stdout and "2 processes, 2 stages, gpipe" in done.stdout
    assert "2 processes, 2 stages, 1f1b, 2 shards" in done.stdout


def test_trace_draws_the_schedule(texts):
    flags = ["trace", "--experiment=mine.py:tiny", ONE_LENGTH]
    done = succeeded(forked(1, texts, *flags, "--stages=4", "--workdir=seen"))
    assert "27.3% by" in done.stdout and "[4, 3, 2, 1]" in done.stdout
    assert (texts / "seen/trace.png").stat().st_size > 10_000
    assert (texts / "seen/trace.svg").exists()
    done = forked(1, texts, *flags)
    assert done.returncode == 2 and "--stages" in done.stderr


def test_stage_servers_change_no_bit(user):
    """Four servers, 2 processes x 2 stages, started as people do, where nobody else is."""
    single = train(user, 1, "alone", "--experiment=split.py:tiny", "--exact")
    ports = [43_211, 43_212, 43_213, 43_214]
    names = ",".join(f"127.0.0.1:{port}" for port in ports)
    flags = "--experiment=split.py:tiny --workdir=served --exact --stages=2"
    lines = [
        "ip link set lo up",
        *(f"python -m app stage-server --port={p} --exact > s{p} 2>&1 &" for p in ports),
        f"until [ $(cat s* | grep -c 'on port') = {len(ports)} ]; do sleep 0.5; done",
        f"horovodrun --gloo -np 2 python -m app train {flags} --servers={names}",
        f"code=$?; kill {' '.join(f'%{i + 1}' for i in range(len(ports)))}; exit $code",
    ]
    (user / "job.sh").write_text("\n".join(lines))
    done = start(["unshare", "-r", "-n", "bash", "job.sh"], user, limit=300)
    assert done.returncode == 0, done.stderr[-3000:] + (user / f"s{ports[0]}").read_text()
    result = json.loads((user / "served/result.json").read_text())
    assert result["weights_sha256"] == single["weights_sha256"]
    devices = [row["device"] for row in result["stages"]]
    assert devices == [f"/job:stage/replica:0/task:{t}/device:CPU:0" for t in range(2)]


def served(folder, np, servers, server_flags, layout, *experiment):
    """What training on stage servers comes to, and the loss of one process without."""
    single = train(folder, 1, "alone", *experiment)
    flags = ["--workdir=served", *layout, *experiment]
    succeeded(on_servers(np, servers, folder, server_flags, "train", *flags))
    result = json.loads((folder / "served/result.json").read_text())
    return result, single["metrics"]["test"]["loss"]


def test_a_stage_server_lends_a_device_a_share(user):
    layout = ["--stages=2", "--cut=2,2", "--tensor=2"]  # both have a layer that is split
    result, loss = served(user, 1, 2, ["--tensor=2"], layout, "--experiment=split.py:tiny")
    assert result["metrics"]["test"]["loss"] == pytest.approx(loss)
    assert [row["device"][-19:] for row in result["stages"]] == [
        f"task:{t}/device:CPU:{i}" for t in range(2) for i in range(2)
    ]


def test_stage_servers_are_not_open_and_must_answer(texts):
    done = app(1, texts, "stage-server", "--port=43215")
    assert done.returncode == 2 and "--trusted_network" in done.stderr
    flags = ["--experiment=mine.py:tiny", "--stages=2"]
    done = forked(1, texts, "train", *flags, "--servers=127.0.0.1:1,127.0.0.1:2")
    assert done.returncode == 2 and "127.0.0.1:1" in done.stderr
    done = forked(1, texts, "train", *flags, "--servers=127.0.0.1:1")
    assert done.returncode == 2 and "need 2" in done.stderr


def test_stage_servers_sum_over_processes_without_exact(texts):
    experiment = ["--experiment=mine.py:tiny", ONE_LENGTH]
    result, loss = served(texts, 2, 4, [], ["--stages=2"], *experiment)
    assert result["metrics"]["test"]["loss"] == pytest.approx(loss, rel=1e-3)
