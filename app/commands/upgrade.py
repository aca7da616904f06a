"""Tries another TensorFlow in an environment of its own, and says what breaks."""

from pathlib import Path

from absl.flags import DEFINE_string, FlagValues

from app.cli import groups, workdir
from app.errors import UsageError
from app.tools import upgrade

SECTION = "Set up"
FLAGS = FlagValues()
group = groups.group(FLAGS, "What is tried")
DEFINE_string("tensorflow", None, "The version of TensorFlow to try.", **group)
DEFINE_string(
    "workdir",
    None,
    "The folder to try it in. If not given, runs/upgrade_<version>.",
    **group,
)


def run(flags: FlagValues) -> int:
    """Resolves, sets up and tests in a copy of the project."""
    if not flags.tensorflow:
        raise UsageError("upgrade needs --tensorflow=VERSION.")
    folder = Path(flags.workdir or workdir.default(f"upgrade_{flags.tensorflow}"))
    return upgrade.main(flags.tensorflow, folder.absolute())
