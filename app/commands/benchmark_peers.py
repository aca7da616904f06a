"""Measures training steps beside PyTorch's, by turns."""

import os
from pathlib import Path

from absl.flags import DEFINE_integer, DEFINE_list, FlagValues

from app.cli import groups, workdir
from app.cli.flags import SECONDS, define
from app.tools.peers import benchmark, cases

SECTION = "Measure"
FLAGS = FlagValues()
group = groups.group(FLAGS, "What is measured")
DEFINE_list("cases", list(cases.NAMES), "The models and precisions to compare.", **group)
DEFINE_integer("pairs", 5, "The number of turns of each side.", 1, **group)
define(SECONDS, "seconds", 5, "How long a turn takes.", **group)
groups.output(FLAGS, "The folder of the report. If not given, runs/peers/<time>.")


def run(flags: FlagValues) -> int:
    """Runs both sides by turns, and writes the report."""
    found = cases.cases(flags.cases, len(os.sched_getaffinity(0)))
    folder = Path(flags.output or workdir.default("peers"))
    workdir.writable(folder, "--output")
    return benchmark.main(found, flags.pairs, flags.seconds, folder)
