"""`python -m app COMMAND [flags]`: the work is elsewhere.

list       the experiments
doctor     what is wrong for training on this machine, and how to mend it
prepare    write an experiment's data set where training finds it
train      train an experiment, or continue the run in --workdir
evaluate   evaluate the newest checkpoint of --workdir
predict    predict --input with the newest checkpoint of --workdir
export     write it as a SavedModel that needs nothing of this project
serve      answer HTTP requests with an exported --model
benchmark  measure steps, input, scaling, all-reduce and stages on this machine
benchmark inference   predictions a second and their latency, by layout and batch
benchmark serving     answers a second of an exported model's server, by clients
benchmark peers       training steps a second beside PyTorch's, by turns
verify     train a few steps on many layouts, and compare each with the serial run
overhead   what watching, comparing and saving cost, when nothing breaks
trace      a picture of when each stage ran which micro-batch
stage-server   lend this machine's devices to stages of a pipeline elsewhere
compare    train under several update rules, side by side in one report
chaos      train while faults strike, and compare with a run left alone
upgrade    try another TensorFlow in an environment of its own, and say what breaks
launch COMMAND [flags]   the same, on NP processes that are watched over if it has ranks
"""

from __future__ import annotations

import io
import os
import sys
from collections.abc import Sequence

# TensorFlow reads these when it is imported. Its start-up chatter stays off by default.
os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
os.environ.setdefault("KERAS_BACKEND", "tensorflow")

from app import errors
from app.cli import flags
from app.cli.flags import FLAGS
from app.commands import CHECKS, COMMANDS
from app.launch import job, launcher
from app.recovery import heartbeat
from input import InputError
from models import ModelError


def main(arguments: Sequence[str]) -> int:
    """Runs a command; returns the exit code.

    An error that every rank raises is no crash. The launcher names a file for its code, so
    that the ranks can leave in peace and horovodrun adds no traceback to the message.
    """
    heartbeat.start()
    try:
        code = run(arguments)
        leave(code)
        return code
    except (errors.UserError, InputError, ModelError) as error:
        is_data = isinstance(error, InputError)
        code = errors.DATA if is_data else getattr(error, "exit_code", errors.USAGE)
        if getattr(error, "speaker", True):
            kind = "" if code == errors.PREEMPTED else "error: "
            print(f"{kind}{error}", file=sys.stderr, flush=True)
        everywhere = getattr(error, "everywhere", False)
    except Exception as error:
        code, everywhere = errors.LOST_PEER, False
        if not errors.is_lost_peer(error):
            leave(errors.BUG)
            raise
        rank = os.environ.get("HOROVOD_RANK", "0")
        print(f"error: rank {rank} lost a peer and stops; the peer says why.", file=sys.stderr)
    return errors.DONE if leave(code) and everywhere else code


def leave(code: int) -> bool:
    """Writes an exit code where whoever launched this process will look for it."""
    path = os.environ.get(job.EXIT_FILE)
    if not path:
        return False
    with open(path, "a") as file:
        file.write(f"{os.getpid()} {code}\n")
    return True


def run(arguments: Sequence[str]) -> int:
    """Parses the flags and calls the command."""
    name, *rest = arguments or ["--help"]
    is_launch = name == "launch"
    if is_launch:
        name, *rest = rest or ["--help"]
    if name in ("--help", "-h", "help"):
        print(f"{__doc__}\n{FLAGS.module_help('app.cli.flags')}")
        return errors.DONE
    if rest and f"{name} {rest[0]}" in COMMANDS:
        name, rest = f"{name} {rest[0]}", rest[1:]
    if name not in COMMANDS:
        raise errors.UsageError(f"no command {name!r}: use one of {', '.join(COMMANDS)}.")
    flags.parse(name, rest)
    if is_launch and name in CHECKS:
        CHECKS[name]()
        return launcher.main(name, rest)
    return COMMANDS[name]() or errors.DONE


if __name__ == "__main__":
    if isinstance(sys.stdout, io.TextIOWrapper):  # as it is of standard error: a path may be of any
        sys.stdout.reconfigure(errors="backslashreplace")  # bytes, and a terminal of any encoding
    sys.exit(main(sys.argv[1:]))
