"""Answers HTTP requests with an exported --model."""

from absl.flags import DEFINE_integer, DEFINE_list, DEFINE_string, FlagValues

from app.cli import groups, rank, selection
from app.cli.flags import SECONDS, Number, define
from app.errors import UsageError

SECTION = "Use a trained model"
FLAGS = FlagValues()
groups.server(FLAGS)
groups.cores(FLAGS)
groups.limits(FLAGS)
group = groups.group(FLAGS, "The server")
DEFINE_string("name", None, "The name in the URL. If not given, the model's own.", **group)
DEFINE_string("host", "127.0.0.1", "The address to listen on. 0.0.0.0: all addresses.", **group)
DEFINE_integer("port", 8501, "The port to listen on.", 1, 65535, **group)
DEFINE_list(
    "cors_origins", [],
    "Origins whose web pages may call the server, as https://a.example. *: all.", **group,
)  # fmt: skip
group = groups.group(FLAGS, "Limits")
define(Number(0.001), "max_body_mb", 16, "The most megabytes of a request.", **group)
define(SECONDS, "request_seconds", 30, "How long a request may take to arrive.", **group)
define(SECONDS, "grace_seconds", 30, "How long to answer what waits after SIGTERM.", **group)


def run(flags: FlagValues) -> None:
    """Serves until it is stopped."""
    if not flags.model:
        raise UsageError("serve needs --model=<folder that export wrote>.")
    rank.hold_cores(flags.threads)
    from app.serving import server

    server.main(server.Settings(**selection.fields(server.Settings, flags)))
