"""Wrong flags are told at once: exit code 2, one message, nothing imported, written or started.

Each line is one of a process that has imported what the command line needs; some are of processes
that import it, too.
"""

import json
import os
import shlex
import subprocess
import sys
from pathlib import Path

import forks
import guarded
import pytest
from ranks import ROOT, TINY

from app import config, experiments
from app.cli import validation, workdir
from app.config import Layout
from app.errors import UsageError

pytestmark = pytest.mark.fast

OWN = (
    TINY
    + """
from dataclasses import replace
from app.config import Optimization
from models.transformer import Transformer

number = 3
def needs(x): return tiny()
def nothing(): pass
def fails(): raise KeyError("x")
def wrong_field(): return replace(tiny(), model=ResNet(depth=51))
def wrong_type(): return replace(tiny(), global_batch="32")
def wrong_choice(): return replace(tiny(), optimization=Optimization(optimizer="adam"))
def not_a_number(): return replace(tiny(), optimization=Optimization(learning_rate=float("nan")))
def no_model(): return replace(tiny(), model=None)
def class_of_model(): return replace(tiny(), model=ResNet)
def no_data(): return replace(tiny(), data="digits")
def text(): return replace(tiny(), model=Transformer(layers=4, width=16, heads=2))
"""
)
TEXT = "--experiment=sentiment_reviews"
STEPS = "--set=optimization.schedule=steps"
KERAS = "--set=optimization.optimizer=keras"
RUN = {"reference": "mine.py:tiny", "set": [], "experiment": {}, "layout": {"exact": False}}
SERVED = "--set=update.kind=parameter_server"

LEAVES_NOTHING = {"PYTHONDONTWRITEBYTECODE": "1"}
PREDICT = "predict --workdir=run --input=x.txt"

# As typed: variables, a command if it is not `train`, flags; and what the message must hold.
BAD: dict[str, list[str]] = {
    # Flags.
    "--exprement=mine.py:tiny": ["--exprement", "nearest: --experiment", "help"],
    "--stage=2": ["--stage ", "nearest: --stages"],
    "--nokeep": ["--nokeep", "nearest: --keep"],
    "--zzz": ["--zzz", "help"],
    "foo": ["flags only", "'foo'"],
    "--experiment": ["--experiment", "help"],
    "--flagfile=nowhere": ["nowhere"],
    "--keep=0": ["--keep=0", "positive integer"],
    "--keep=x": ["--keep=x", "positive integer"],
    "--log_every=0": ["--log_every=0", "positive integer"],
    "--commit_every=0 --elastic": ["--commit_every=0", "positive integer"],
    "--checkpoint_every=-1": ["--checkpoint_every=-1", "non-negative integer"],
    "--max_restarts=-1": ["--max_restarts=-1", "non-negative integer"],
    "--checkpoint_seconds=nan": ["--checkpoint_seconds=nan", "at least 1"],
    "--hang_seconds=0": ["--hang_seconds=0", "at least 1"],
    "--hang_seconds=nan": ["--hang_seconds=nan", "at least 1"],
    "--hang_seconds=soon": ["--hang_seconds=soon", "number of seconds"],
    "--exact=maybe": ["--exact=maybe", "true or false"],
    "--schedule=2f2b": ["--schedule=2f2b", "1f1b or gpipe"],
    "--stages=x": ["--stages=x", "integer"],
    "--experiment=": ["--experiment=", "empty"],
    "--workdir=": ["--workdir=", "empty"],
    "--stages=2 --cut=": ["--cut=", "empty"],
    # Of other commands.
    "--port=5000": ["train has no flag --port", "`./run.sh train --help`"],
    "stage-server --port=70000": ["--port=70000", "65535"],
    "stage-server": ["--port"],
    "evaluate --keep=3": ["evaluate has no flag --keep", "help"],
    "verify --elastic": ["verify has no flag --elastic"],
    "benchmark --hang_seconds=5": ["benchmark has no flag --hang_seconds"],
    "benchmark --exact": ["--exact", "leave"],
    "benchmark peers --cases=bert": ["--cases=bert", "resnet50_float32", "minilm_bfloat16"],
    f"benchmark peers {TEXT}": ["benchmark peers has no flag --experiment"],
    "benchmark peers --pairs=0": ["--pairs=0", "positive integer"],
    f"trace {TEXT}": ["--stages", "1"],
    f"verify {TEXT} --stages=2 --cut=4,4": ["verify has no flag --cut"],
    "evaluate": ["--workdir"],
    "evaluate --workdir=nowhere": ["--workdir", "nowhere"],
    "trian": ["'trian'", "train"],
    # Fields.
    "--set": ["--set"],
    "--set=seed": ["--set", "'seed'", "field=value"],
    "--set=seeed=1": ["seeed", "nearest: seed"],
    "--set=optimisation.momentum=0": ["optimisation.momentum", "nearest: optimization"],
    "--set=optimization=3": ["'optimization'", "nearest: optimization.*"],
    "--set=seed.x=3": ["seed.x", "nearest: seed"],
    "--set=seed=3 --set=seed.x=3": ["seed", "drop one"],
    "--set=seed.x=3 --set=seed=3": ["seed", "drop one"],
    "--set=model.heads=3": ["model.heads", "model.depth"],
    "--set=global_batch=0": ["global_batch", "at least 1", "not 0"],
    "--set=global_batch=1e3": ["global_batch=1e3", "type int"],
    "--set=global_batch=True": ["global_batch=True", "type int"],
    "--set=global_batch={[]:1}": ["global_batch={[]:1}", "type int"],
    "--set=global_batch=100": ["(100)", "(32)", "96 or 128"],
    "--set=micro_batch=0": ["micro_batch", "at least 1", "not 0"],
    "--set=micro_batch=500": ["(128)", "(500)", "global_batch=500"],
    "--set=epochs=-1": ["epochs", "more than 0", "not -1"],
    "--set=epochs=nan": ["epochs=nan", "finite"],
    "--set=epochs=1e999": ["epochs=1e999", "finite"],
    "--set=steps=0": ["steps", "more than 0", "not 0"],
    "--set=steps=none": ["steps or epochs"],
    "--set=seed=4294967296": ["seed", "2147483648", "not 4294967296"],
    "--set=optimization.learning_rate=0": ["optimization.learning_rate", "above 0", "not 0.0"],
    "--set=optimization.learning_rate=nan": ["optimization.learning_rate=nan", "finite"],
    "--set=optimization.learning_rate=-inf": ["optimization.learning_rate=-inf", "finite"],
    f"--set=optimization.learning_rate=1{'0' * 400}": ["optimization.learning_rate", "finite"],
    "--set=optimization.reference_batch=0": ["optimization.reference_batch", "not 0"],
    "--set=optimization.warmup_epochs=-1": ["optimization.warmup_epochs", "at least 0", "not -1.0"],
    f"{STEPS} --set=optimization.decay_epochs=3,-1": ["decay_epochs", "at least 0", "not -1.0"],
    f"{STEPS} --set=optimization.decay_epochs=3,x": ["optimization.decay_epochs=3,x", "number"],
    f"{STEPS} --set=optimization.decay_factor=0": ["decay_factor", "above 0", "not 0.0"],
    "--set=optimization.momentum=1": ["optimization.momentum", "[0, 1)", "not 1.0"],
    "--set=optimization.label_smoothing=-0.1": ["label_smoothing", "[0, 1)", "not -0.1"],
    "--set=optimization.ema_decay=1": ["optimization.ema_decay", "[0, 1)", "not 1.0"],
    "--set=optimization.trust_coefficient=0": ["optimization.trust_coefficient", "above 0"],
    f"{TEXT} --set=optimization.epsilon=0": ["optimization.epsilon", "above 0", "not 0.0"],
    "--set=optimization.clip_norm=-1": ["optimization.clip_norm", "at least 0", "not -1.0"],
    "--set=optimization.nesterov=yes": ["optimization.nesterov=yes", "true or false"],
    "--set=optimization.beta2=0.9": ["optimization.beta2", "optimization.optimizer=adamw", "lars"],
    "--set=optimization.optimizer=adam": ["optimization.optimizer=adam", "adamw"],
    "--set=optimization.name=adam": ["optimization.name", "optimization.optimizer=keras"],
    f"{KERAS} --set=optimization.name=muon": ["optimization.name=muon", "cannot be taken"],
    f"{KERAS} --set=optimization.name=nadm": ["optimization.name=nadm", "one of", "adam"],
    f"{KERAS} --set=optimization.arguments=rho:1": ["optimization.arguments=rho:1", "beta_1"],
    f"{KERAS} --set=optimization.arguments=beta_1": ["optimization.arguments=beta_1", "colon"],
    "--set=optimization.rate_factors=head/*": ["optimization.rate_factors=head/*", "colon"],
    "--set=optimization.rate_factors=head/*:0": ["rate_factors", "above 0", "freeze", "not 0.0"],
    f"{TEXT} --tensor=2 --set=optimization.optimizer=lamb": ["lamb", "--tensor=2", "--stages"],
    "--set=update.skip_budget=-1": ["update.skip_budget", "at least 0", "not -1"],
    # Fields of models and data.
    "--set=model.depth=51": ["model.depth=51", "18, 34, 50, 101, 152"],
    "--set=model.epsilon=0": ["model.epsilon=0", "above 0"],
    "--set=data.size=0": ["data.size=0", "at least 1"],
    "--set=data.mixup=-1": ["data.mixup=-1", "at least 0"],
    "--set=data.std=1,0,1": ["data.std=1,0,1", "above 0"],
    "--set=data.mean=1,2": ["data.mean=1,2", "three"],
    "--set=data.augmentation=flip": ["data.augmentation=flip", "shift_flip"],
    "--set=data.dataset=": ["data.dataset=", "empty"],
    "--set=data.dataset=synthetic --set=data.synthetic_examples=0": ["synthetic_examples", "not 0"],
    "--set=data.dataset=./photos --set=data.train_split=train[:80%]": ["train_split", "'./photos'"],
    f"{TEXT} --set=model.heads=7": ["model.heads=7", "(384)", "(7)"],
    f"{TEXT} --set=model.heads=0": ["model.heads=0", "1 or more"],
    f"{TEXT} --set=model.dropout=1": ["model.dropout=1", "[0, 1)"],
    f"{TEXT} --set=model.epsilon=-1": ["model.epsilon=-1", "above 0"],
    f"{TEXT} --set=model.positions=64": ["model.positions is 64", "128"],
    f"{TEXT} --set=model.norm=pre": ["model.norm=pre", "init_from", "none"],
    f"{TEXT} --set=model.init_from=": ["model.init_from=", "minilm", "none"],
    f"{TEXT} --set=data.max_length=2": ["data.max_length=2", "at least 3"],
    f"{TEXT} --set=data.vocabulary=": ["data.vocabulary=", "empty"],
    f"{TEXT} --set=data.label_field=text": ["data.label_field=text", "differ"],
    f"{TEXT} --set=data.classes=bad,good": ["data.classes=bad,good", "apply to files"],
    f"{TEXT} --set=data.dataset=a.tsv --set=data.classes=bad,bad": ["classes", "different"],
    f"{TEXT} --set=data.dataset=a.tsv --set=data.evaluation_split=test": ["data.evaluation_file"],
    # Layouts.
    "--stages=0": ["--stages (0)", "at least 1"],
    "--stages=19": ["19 stages", "18", "--stages=18"],
    "--stages=2 --cut=a,b": ["--cut=a,b", "numbers"],
    "--stages=2 --cut=18": ["--cut=18", "2 numbers"],
    "--stages=2 --cut=8,8": ["--cut=8,8", "18 blocks", "16"],
    "--chunks=2": ["--chunks=2", "2 stages"],
    "--stages=2 --chunks=2 --schedule=gpipe": ["--chunks=2", "1f1b"],
    "--stages=3 --chunks=2": ["--chunks=2", "multiple of 3", "2"],
    "--tensor=2": ["--tensor=2", "ResNet", "--stages"],
    f"{TEXT} --tensor=13": ["--tensor=13", "12"],
    f"{TEXT} --tensor=2 --exact": ["--tensor=2", "--exact", "drop one"],
    f"{TEXT} --tensor=2 --set=optimization.optimizer=lars": ["--tensor=2", "lars", "adamw"],
    "--exact --set=update.compression=float16": ["--exact", "float16", "drop one"],
    # Update rules.
    "--set=update.staleness=-1": ["update.staleness", "at least 0", "-1"],
    "--set=update.kind=local_sgd --set=update.local_steps=0": ["update.local_steps", "not 0"],
    "--set=update.local_steps=8": ["update.local_steps=8", "update.kind=local_sgd", "all_reduce"],
    "--set=update.staleness=4": ["update.staleness=4", "update.kind=parameter_server"],
    "--set=update.kind=adasum --set=update.compression=topk": ["compression=topk", "all_reduce"],
    "--set=update.kind=async": ["update.kind=async", "parameter_server"],
    "--set=update.outer_momentum=1": ["update.outer_momentum", "[0, 1)"],
    "--set=update.outer_rate=0": ["update.outer_rate", "above 0"],
    "--set=update.topk=0": ["update.topk", "(0, 1]"],
    "--set=update.topk=0.1": ["update.topk=0.1", "compression=topk", "none"],
    "--set=update.error_feedback=false": ["update.error_feedback", "none"],
    "--set=precision=float16 --set=update.compression=float16": ["loss scale", "error_feedback"],
    "--parameter_servers=2": ["--parameter_servers", "update.kind=parameter_server", "all_reduce"],
    "--elastic --set=update.kind=adasum": ["--elastic", "adasum", "power of two"],
    "NP=3 --set=update.kind=adasum": ["adasum", "power of two", "not 3", "start 2 or 4"],
    f"{SERVED} --elastic": ["--elastic", "parameter_server", "drop one"],
    f"{SERVED} --stages=2": ["--stages", "parameter_server", "drop one"],
    f"{SERVED} --exact": ["--exact", "parameter_server", "drop one"],
    f"{SERVED} --set=precision=float16": ["float16", "parameter_server", "bfloat16"],
    f"NP=5 {SERVED}": ["5 workers", "4", "update.staleness"],
    f"{SERVED} --parameter_servers=0": ["--parameter_servers=0"],
    f"HOSTS=a:2 {SERVED}": ["HOSTS=a:2", "TF_CONFIG"],
    f"TF_CONFIG={{}} {SERVED}": ["TF_CONFIG", "cluster"],
    f"benchmark {SERVED}": ["benchmark", "update.kind=parameter_server", "compare"],
    "verify --set=update.kind=local_sgd": ["verify", "local_sgd", "leave"],
    "--set=update.kind=local_sgd --exact": ["--exact", "local_sgd", "drop one"],
    "--set=update.kind=local_sgd --set=update.on_nonfinite=skip": ["on_nonfinite", "local_sgd"],
    "--servers=a:1": ["--servers=a:1", "--stages"],
    "--stages=2 --servers=a:1": ["--servers", "need 4"],
    "NP=1 --stages=2 --servers=a:1,b": ["--servers", "host:port", "'b'"],
    "NP=1 --stages=2 --servers=a:1,b:0": ["--servers", "'b:0'"],
    "NP=1 --stages=2 --servers=a:1,a:1": ["--servers", "a:1 twice"],
    "--elastic --stages=2": ["--elastic", "2 stages"],
    "--elastic --servers=a:1,b:1": ["--servers=a:1,b:1", "leave it out"],
    "--elastic --stages=2 --servers=a:1,b:1,c:1,d:1": ["--elastic", "2 stages"],
    "--host_discovery_script=./hosts.sh": ["--host_discovery_script=./hosts.sh", "--elastic"],
    "--elastic --host_discovery_script=./nowhere.sh": ["./nowhere.sh", "executable"],
    "--elastic --host_discovery_script=./mine.py": ["./mine.py", "chmod +x"],
    "--elastic --host_discovery_script=./other": ["./other", "executable"],
    "--commit_every=5": ["--commit_every=5", "--elastic"],
    "NP=1 --repair": ["--repair", "1 processes", "NP=3"],
    "NP=2 --repair": ["--repair", "2 processes", "NP=3"],
    # Processes and machines.
    "NP=0": ["NP", "'0'"],
    "NP=x": ["NP", "'x'"],
    "NP=": ["NP", "''"],
    "NP=5": ["5 processes", "128", "32", "at most 4"],
    "HOSTS=a:0": ["HOSTS=a:0", "'a:0'", "a:4,b:4"],
    "HOSTS=a:b": ["HOSTS=a:b", "'a:b'", "a:4,b:4"],
    "HOSTS=a": ["HOSTS=a", "'a'", "a:4,b:4"],
    "HOSTS=:2": ["HOSTS=:2", "':2'", "a:4,b:4"],
    "HOSTS=a:2, --trusted_network": ["HOSTS=a:2,", "''", "a:4,b:4"],
    "HOSTS=localhost:2:2": ["HOSTS=localhost:2:2", "a:4,b:4"],
    "HOSTS=a:1,b:1": ["HOSTS=a:1,b:1", "--trusted_network"],
    "NP=3 HOSTS=a:1,b:1 --trusted_network": ["NP=3", "HOSTS=a:1,b:1", "has 2"],
    "NP=2 HOSTS=localhost:1": ["NP=2", "HOSTS=localhost:1", "has 1"],
    "NP=3 --elastic --trusted_network": ["--elastic", "3 ranks", "NP=2"],
    # Experiments.
    "--experiment=resnet50_digit": ["did you mean resnet50_digits"],
    "--experiment=zzz": ["'zzz'", "resnet50_digits", "file.py:function"],
    "--experiment=mine.py": ["'mine.py'", "file.py:function"],
    "--experiment=:": ["--experiment"],
    "--experiment=nowhere.py:tiny": ["nowhere.py", "no file"],
    "--experiment=nowhere:tiny": ["'nowhere'", "PYTHONPATH"],
    "--experiment=.mine:tiny": ["'.mine'"],
    "--experiment=mine.py:tin": ["'tin'", "nearest: tiny"],
    "--experiment=mine.py:number": ["'number'", "no function"],
    "--experiment=mine.py:nothing": ["nothing()", "NoneType"],
    "--experiment=mine.py:needs": ["needs()", "'x'", "fix it"],
    "--experiment=mine.py:fails": ["mine.py, line 24", "KeyError: 'x'", "fix it"],
    "--experiment=mine.py:wrong_field": ["mine.py, line 25", "depth", "not 51"],
    "--experiment=mine.py:wrong_type": ["global_batch", "type int", "'32'"],
    "--experiment=mine.py:wrong_choice": ["optimization.optimizer", "AdamW()", "'adam'"],
    "--experiment=mine.py:not_a_number": ["optimization.learning_rate", "not nan"],
    "--experiment=mine.py:no_model": ["model", "app.config.Model", "None"],
    "--experiment=mine.py:class_of_model": ["model", "app.config.Model", "ResNet"],
    "--experiment=mine.py:no_data": ["data", "app.config.Data", "'digits'"],
    "--experiment=mine.py:text --tensor=3": ["--tensor=3", "--tensor=2"],
    "--experiment=syntax.py:tiny": ["syntax.py, line 1", "SyntaxError"],
    "--experiment=imports.py:tiny": ["imports.py, line 2", "'nowhere'"],
    "--experiment=leaves.py:tiny": ["leaves.py, line 1", "SystemExit"],
    # Workdirs.
    "--workdir=mine.py": ["--workdir", "mine.py is no folder"],
    "--workdir=mine.py/run": ["--workdir", "mine.py is no folder"],
    "--workdir=not_json": ["--workdir", "not_json/config.json is not JSON"],
    "--workdir=bytes": ["--workdir", "bytes/config.json is not JSON"],
    "--workdir=list": ["--workdir", "list/config.json is not of a run"],
    "--workdir=other": ["--workdir", "other/config.json is not of a run"],
    "--workdir=half": ["--workdir", "half/config.json is not of a run"],
    "--workdir=folder": ["--workdir", "folder/config.json", "directory"],
    f"--workdir={'long' * 100}": ["--workdir", "too long"],
    "--workdir=run --set=seed=4": ["seed: 4 here, 0 there", "--workdir"],
    "--workdir=run --exact": ["--exact: True here, False there", "--workdir"],
    f"--workdir=run {TEXT}": ["model.type", "--workdir"],
}

# What comes near to the above, and is good: it gets as far as to the first process.
GOOD = [
    "",
    "NP=1",
    "NP=3 --repair",
    "--hang_seconds=inf --checkpoint_seconds=1.5 --grace_seconds=1",
    f"{STEPS} --set=optimization.decay_epochs=1,2.5 --set=epochs=1e1 --set=seed=0x10",
    "--stages=18",
    "--stages=2 --chunks=1 --cut=9,9",
    "NP=1 --stages=2 --servers=a:1,b:65535",
    f"{TEXT} --tensor=12 --stages=8",
    f"{TEXT} --set=model.init_from=none --set=model.norm=pre",
    f"{TEXT} --set=data.dataset=a.tsv --set=data.evaluation_file=b.tsv --set=data.classes=x,y",
    "HOSTS=localhost:4",
    "HOSTS='a:1, b-2.c:1' --trusted_network",
    "--elastic --commit_every=2",
    "--elastic --host_discovery_script=./hosts.sh",
    "--experiment=mine.py:tiny",
    "--experiment=mine:tiny",
    "--workdir=run",
    "--workdir=made/on/the/way",
    "evaluate --workdir=run",
    SERVED,
    f"NP=3 {SERVED} --set=update.staleness=none --parameter_servers=2",
    "NP=3 --set=update.kind=local_sgd --set=update.local_steps=8",
    "NP=4 --set=update.kind=adasum",
]

BAD |= {
    "predict": ["predict needs --workdir"],
    "predict --workdir=nowhere --input=x.txt": ["predict needs --workdir", "nowhere is none"],
    "predict --workdir=run": ["predict needs --input", "split:<name>"],
    f"{PREDICT} --output=x.json": ["--output=x.json", ".jsonl or .csv"],
    f"{PREDICT} --output=mine.py/x.jsonl": ["cannot write to mine.py"],
    f"{PREDICT} --format=xml": ["--format=xml", "jsonl"],
    "predict --workdir=run --input=split:test --format=csv": ["--format=csv is of a file"],
    f"{PREDICT} --weights=average": ["moving average", "ema_decay"],
    f"{PREDICT} --chunks=2": ["predict has no flag --chunks"],
    f"{PREDICT} --exact": ["predict has no flag --exact"],
    f"{PREDICT} --stages=30": ["--stages", "18"],
    f"{PREDICT} --top=0": ["--top=0", "positive integer"],
    f"{PREDICT} --batch_size=-1": ["--batch_size=-1"],
    f"{PREDICT} --variants=int8": ["predict has no flag --variants"],
    f"{PREDICT} --set=seed=3": ["seed", "another experiment"],
    "export": ["export needs --workdir"],
    "export --workdir=run --variants=int4": ["--variants=int4", "int8"],
    "export --workdir=run --variants=int8,int8": ["each once"],
    "export --workdir=run --variants=": ["--variants= is empty"],
    "export --workdir=run --output=mine.py/x": ["cannot write to mine.py"],
    "export --workdir=run --input=x": ["export has no flag --input"],
    "serve": ["serve needs --model"],
    "serve --model=nowhere": ["nowhere"],
    "serve --model=run": ["run"],
    "serve --model=run --port=70000": ["--port=70000", "65535"],
    "serve --model=run --max_batch=0": ["--max_batch=0"],
    "serve --model=run --queue=0": ["--queue=0"],
    "serve --model=run --max_body_mb=nan": ["--max_body_mb=nan"],
    "serve --model=run --batch_wait_ms=-1": ["--batch_wait_ms=-1"],
    "serve --model=run --experiment=mine.py:tiny": ["serve has no flag --experiment"],
    "serve --model=run --stages=2": ["serve has no flag --stages"],
    "benchmark inference --batch_sizes=0": ["--batch_sizes=0", "at least 1"],
    "benchmark inference --batch_sizes=a": ["--batch_sizes=a", "1,8,32"],
    "benchmark inference --workdir=nowhere": ["--workdir=nowhere is no run"],
    "benchmark inference --cut=4,6": ["benchmark inference has no flag --cut"],
    "HOSTS=localhost:2 predict --workdir=run --input=-": ["HOSTS=localhost:2", "shared folder"],
    f"benchmark inference {TEXT} --output=mine.py": ["mine.py is no folder", "another --output"],
    "benchmark serving": ["--model=", "--input"],
    "benchmark serving --model=x": ["--input"],
    "benchmark serving --model=nowhere --input=x.txt": ["nowhere does not exist"],
    "benchmark serving --model=x --input=x.txt --clients=0": ["--clients=0", "at least 1"],
    "benchmark serving --model=x --input=x.txt --max_batch=1": ["--max_batch=1", "2 or more"],
    "benchmark serving --port=1": ["benchmark serving has no flag --port"],
    "benchmark other": ["flags only", "'other'"],
}  # fmt: skip
GOOD += [
    PREDICT,
    f"{PREDICT} --stages=4 --threads=2 --top=1 --output=x.csv",
    "predict --workdir=run --input=split:test --batch_size=7",
]


@pytest.fixture(scope="session", autouse=True)
def joined():
    """Nothing here needs TensorFlow."""


@pytest.fixture(scope="module")
def user(tmp_path_factory):
    """A folder of a user's: experiments, sound and broken, and workdirs."""
    folder: Path = tmp_path_factory.mktemp("user")
    (folder / "mine.py").write_text(OWN)
    (folder / "syntax.py").write_text("def tiny(:\n")
    (folder / "imports.py").write_text("import os\nimport nowhere\n")
    (folder / "leaves.py").write_text("raise SystemExit(0)\n")
    (folder / "hosts.sh").write_text("#!/bin/sh\necho localhost:2\n")
    (folder / "hosts.sh").chmod(0o755)
    kept = {
        "not_json": b"{",
        "bytes": b"\xff",
        "list": b"[]",
        "other": b'{"name": "other"}',
        "half": json.dumps(RUN | {"layout": 3}).encode(),
    }
    for name, content in kept.items():
        (folder / name).mkdir()
        (folder / name / "config.json").write_bytes(content)
    (folder / "folder/config.json").mkdir(parents=True)
    experiment = experiments.load("resnet50_digits")
    layout = config.as_dict(Layout())
    workdir.claim(folder / "run", "resnet50_digits", [], experiment, layout, {})
    return folder


def launch(line: str, folder: Path, is_forked: bool = True):
    """`python -m app launch ...` under guard, as `line` says it."""
    words = shlex.split(line)
    variables = [w.partition("=") for w in words if w.startswith(("NP=", "HOSTS=", "TF_CONFIG="))]
    words = words[len(variables) :]
    if not words or words[0].startswith("-") or words[0] == "foo":
        words = ["train", *words]
    hidden = ("NP", "HOSTS", "HOROVOD_", "SCALEPROOF_", "TFDS_")
    env = {n: v for n, v in os.environ.items() if not n.startswith(hidden)}
    env |= {"PYTHONPATH": str(ROOT), **LEAVES_NOTHING}
    env |= {name: value for name, _, value in variables}
    arguments = ["launch", *words]
    if is_forked:
        server = forks.server(("guarded",), tuple(LEAVES_NOTHING.items()))
        found = server.run(1, folder, "guarded:main", [arguments], env, 60)
        return subprocess.CompletedProcess(words, found.codes[0], found.out[0], found.err[0])
    return subprocess.run(
        [sys.executable, guarded.__file__, *arguments], cwd=folder, env=env, timeout=60,
        stdin=subprocess.DEVNULL, capture_output=True, text=True,
    )  # fmt: skip


@pytest.mark.parametrize("line", BAD, ids=lambda line: line[:70])
def test_wrong_flags_are_told_at_once(user, line):
    must_be_told_at_once(line, user)


@pytest.mark.parametrize("line", ["--exprement=mine.py:tiny", "--workdir=run --exact", "serve"])
def test_nothing_is_imported_for_it(user, line):
    must_be_told_at_once(line, user, is_forked=False)


def must_be_told_at_once(line, user, is_forked=True):
    before = sorted(user.rglob("*"))
    done = launch(line, user, is_forked)
    assert done.returncode == 2, done.stderr[-2000:]
    assert done.stderr.startswith("error: ") and done.stderr.endswith(".\n")
    assert done.stderr.count("\n") == 1, done.stderr
    for word in BAD[line]:
        assert word in done.stderr, done.stderr
    is_imported, seconds = done.stdout.split()
    assert is_imported == "False" and float(seconds) < 2
    assert sorted(user.rglob("*")) == before


@pytest.mark.parametrize("line", GOOD)
def test_good_flags_start_processes(user, line):
    done = launch(line, user, is_forked=line != GOOD[0])
    assert done.returncode == 99, done.stderr[-2000:]
    assert done.stderr.startswith(("subprocess.Popen", "open", "os.mkdir")), done.stderr


@pytest.mark.parametrize("name", experiments.named())
def test_every_named_experiment_is_valid(name):
    validation.validate(experiments.load(name), Layout())


def test_a_workdir_that_may_not_be_written(tmp_path, monkeypatch):
    workdir.writable(tmp_path / "a/run")
    monkeypatch.setattr(os, "access", lambda path, mode: False)
    with pytest.raises(UsageError, match=r"a/run: .* may not be written; give another --workdir"):
        workdir.writable(tmp_path / "a/run")
    assert not any(tmp_path.iterdir())
