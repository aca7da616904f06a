"""Trains while faults strike, and compares with an undisturbed run."""

from pathlib import Path

from absl.flags import DEFINE_integer, DEFINE_list, FlagValues

from app.cli import groups, selection, workdir
from app.cli.flags import SECONDS, define, to_arguments
from app.errors import UsageError
from app.launch import launcher
from app.tools import chaos, faults

SECTION = "Check"
FLAGS = FlagValues()
groups.ranked(FLAGS)
groups.training(FLAGS)
group = groups.group(FLAGS, "Faults")
DEFINE_integer("faults", 20, "How many faults are injected in all.", 1, **group)
define(SECONDS, "between_seconds", 30, "The mean time from one fault to the next.", **group)
DEFINE_list(
    "kinds", ["kill"],
    f"The kinds of faults, of {', '.join(faults.KINDS)}, and hosts with --elastic.", **group,
)  # fmt: skip
DEFINE_integer("chaos_seed", 0, "The seed of the moments, kinds and victims.", **group)
OWN = ("faults", "between_seconds", "kinds", "chaos_seed", "workdir")


def run(flags: FlagValues) -> int:
    """Trains undisturbed, then disturbed until all faults have struck."""
    known = {*faults.KINDS, *(["hosts"] if flags.elastic else [])}
    if not flags.kinds or set(flags.kinds) - known:
        raise UsageError(
            f"--kinds={','.join(flags.kinds)} must be of {', '.join(sorted(known))} (hosts with "
            "--elastic)."
        )
    np = launcher.processes()
    selection.synchronous(flags, np, "chaos")
    command = chaos.trainer(to_arguments(flags, OWN))
    plan = faults.Plan(
        flags.faults, flags.between_seconds, tuple(flags.kinds), flags.chaos_seed, np
    )
    folder = Path(flags.workdir or workdir.default(f"chaos_{selection.reference(flags)}"))
    folder.mkdir(parents=True, exist_ok=True)
    return chaos.main(command, folder, plan)
