"""Lends this machine's devices to stages of a pipeline on other machines."""

from absl.flags import DEFINE_bool, DEFINE_integer, FlagValues

from app.cli import groups, rank
from app.errors import UsageError

SECTION = "Train"
FLAGS = FlagValues()
group = groups.group(FLAGS, "The server")
DEFINE_integer("port", None, "The port to listen on.", 1, 65535, **group)
DEFINE_integer("tensor", 1, "The number of devices to lend, as --tensor of the job.", 1, **group)
DEFINE_bool("exact", False, "Compute as a job with --exact does.", **group)
groups.network(FLAGS)


def run(flags: FlagValues) -> None:
    """Serves until it is stopped."""
    if not flags.port:
        raise UsageError("stage-server needs --port.")
    rank.tensorflow()
    from app.parallel import runtime_server

    runtime_server.lend_devices(flags.port, flags.exact, flags.trusted_network, flags.tensor)
