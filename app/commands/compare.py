"""Trains under several update rules, side by side in one report."""

import dataclasses
import os
from pathlib import Path

from absl.flags import DEFINE_integer, DEFINE_list, FlagValues

from app.cli import groups, loading, overrides, selection, validation, workdir
from app.cli.flags import Number, define, to_arguments
from app.config import Experiment, Update
from app.errors import UsageError
from app.launch import launcher
from app.parallel import cluster
from app.tools import compare, rules

SECTION = "Measure"
FLAGS = FlagValues()
groups.ranked(FLAGS)
group = groups.group(FLAGS, "What is compared")
DEFINE_list(
    "updates", ["sync", "async", "bounded:4", "local:8"],
    f"The update rules to compare, of {', '.join(rules.RULES)}.", **group,
)  # fmt: skip
define(Number(1), "slowdown", 1, "How many times slower the last worker is made.", **group)
about = "The rate in Mbit/s of the link that all processes share. 0: unlimited."
define(Number(0), "link_mbit", 0, about, **group)
DEFINE_integer("evaluations", 10, "The number of evaluations of each run.", 1, **group)
define(Number(0), "price", 0, "The price of a device for an hour.", **group)
about = "The accuracy whose time is reported. 0: a point below the synchronous rule's."
define(Number(0, 1), "target", 0, about, **group)
OWN = ("updates", "slowdown", "link_mbit", "evaluations", "price", "target", "workdir")


def run(flags: FlagValues) -> int:
    """Trains under each rule in a job of its own, and writes the report."""
    np = launcher.processes()
    experiment, found = check(flags, np)
    loading.tensorflow()
    data = experiment.data.open(selection.data_dir(flags))
    conditions = rules.Conditions(
        np, flags.slowdown, flags.link_mbit, flags.price, flags.target, flags.evaluations
    )
    name = f"compare_{selection.reference(flags)}"
    folder = Path(flags.workdir or workdir.default(name))
    steps = experiment.total_steps(data.num_train)
    return compare.main(to_arguments(flags, OWN), found, conditions, steps, folder)


def check(flags: FlagValues, processes: int) -> tuple[Experiment, list[rules.Rule]]:
    """Returns the experiment, and the rules to compare.

    Raises:
        UsageError: what cannot be under one of them.
    """
    experiment, found = selection.experiment(flags), rules.parse(flags.updates)
    if experiment.update != Update():
        raise UsageError("compare sets update.* itself: leave it out, and give --updates.")
    if flags.slowdown > 1 and processes == 1:
        raise UsageError("--slowdown slows one of several workers: set NP=2 or more.")
    if flags.link_mbit and (processes == 1 or flags.trusted_network):
        raise UsageError(
            "--link_mbit shapes the private network of a job: set NP=2 or more, and leave "
            "--trusted_network out."
        )
    if os.environ.get("HOSTS") or cluster.from_environment():
        raise UsageError("compare runs on this machine: unset HOSTS and TF_CONFIG.")
    for rule in found:
        varied = overrides.override(experiment, rule.settings)
        layout = selection.layout(flags, processes)
        if varied.update.kind == "parameter_server":
            layout = dataclasses.replace(layout, processes=1, workers=processes)
        validation.validate(varied, layout)
    return experiment, found
