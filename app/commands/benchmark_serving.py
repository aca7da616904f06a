"""Measures answers a second of an exported model's server, by clients."""

from pathlib import Path

from absl.flags import FlagValues

from app.cli import groups, workdir
from app.cli.flags import SECONDS, Integers, define, to_arguments
from app.errors import UsageError
from app.serving import versions

SECTION = "Measure"
FLAGS = FlagValues()
groups.server(FLAGS)
groups.cores(FLAGS)
groups.items(FLAGS, "What clients ask about: a folder of images, or a .txt, .csv, .tsv or .jsonl.")
groups.output(FLAGS, "The folder of the report. If not given, runs/serving_<model>/<time>.")
group = groups.group(FLAGS, "What is measured")
define(Integers("8,64"), "clients", "8,64", "Numbers of clients at once.", **group)
define(SECONDS, "seconds", 5, "How long a round takes.", **group)


def run(flags: FlagValues) -> int:
    """Starts servers, asks them in turn, and writes the report."""
    if not flags.model or not flags.input:
        raise UsageError(
            "benchmark serving needs --model=<folder that export wrote>, and --input: a folder of "
            "images, or a .txt, .csv, .tsv or .jsonl, that clients ask about."
        )
    if flags.max_batch < 2:
        raise UsageError(
            f"--max_batch={flags.max_batch} makes no batches, which are compared with requests one "
            "by one: give 2 or more."
        )
    found = versions.find(Path(flags.model))
    if not found.about.kind:
        raise UsageError(
            f"{found.folder} does not say whether it is of images or texts: give a model that "
            "`./run.sh export` wrote."
        )
    from app.tools.serving import benchmark
    from input import items

    given = items.open_items(flags.input, str(found.about.kind), flags.format, flags.field)
    requests = benchmark.make_requests(found, given)
    settings = benchmark.make_settings(flags.max_batch, flags.clients)
    folder = Path(flags.output or workdir.default(f"serving_{found.name}"))
    workdir.writable(folder, "--output")
    serve = to_arguments(flags, benchmark.OWN)
    return benchmark.main(settings, requests, flags.seconds, serve, folder)
