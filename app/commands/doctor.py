"""Finds what keeps this machine from training, and says how to fix it."""

from pathlib import Path

from absl.flags import DEFINE_string, FlagValues

from app.cli import groups, home
from app.launch import launcher
from app.tools import doctor

SECTION = "Set up"
FLAGS = FlagValues()
groups.network(FLAGS)
group = groups.group(FLAGS, "Folders")
DEFINE_string("workdir", "runs", "The folder that runs will be written to.", **group)
DEFINE_string("data_dir", home.data_dir(), "The folder of prepared data sets.", **group)


def run(flags: FlagValues) -> None:
    """Examines this machine, and the others that HOSTS names."""
    doctor.main(launcher.start(flags), Path(flags.workdir), Path(flags.data_dir).expanduser())
