"""Finds a command's file, parses its flags, and turns errors into messages and exit codes."""

from __future__ import annotations

import ast
import importlib
import io
import os
import re
import signal
import sys
from collections.abc import Sequence
from pathlib import Path
from types import ModuleType

# TensorFlow reads these when it is imported. Its start-up chatter stays off by default.
os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
os.environ.setdefault("KERAS_BACKEND", "tensorflow")

from app import errors
from app.cli import flags
from app.launch import job
from app.recovery import heartbeat
from input import InputError
from models import ModelError

COMMANDS = Path(__file__).parent / "commands"
# In the order in which people need them; a command names its own, or is internal.
SECTIONS = ("Set up", "Train", "Use a trained model", "Check", "Measure")
USAGE = """\
usage: ./run.sh COMMAND [flags]                on NP processes (2 if not given) where it has ranks
       horovodrun ... python -m app COMMAND    the same without run.sh
       ./run.sh COMMAND --help                 the flags of a command
"""


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
    """Parses the flags and runs the command, on NP processes after the word `launch`."""
    is_launch, words = arguments[:1] == ["launch"], list(arguments)
    words = words[1:] if is_launch else words
    if not words or words[0] in ("--help", "-h", "help"):
        return show(f"{USAGE}{list_commands()}")
    name, rest = split(words)
    command = load(name)
    if {"--help", "-h"} & set(rest):
        return show(f"{name}: {command.__doc__}{flags.describe(command.FLAGS)}")
    flags.parse(command.FLAGS, name, rest)
    rank = [sys.executable, "-m", "app", *name.split(), *rest]
    if is_launch and hasattr(command, "launch"):
        code: int | None = command.launch(command.FLAGS, rank)
    elif is_launch and hasattr(command, "select"):
        from app.launch import launcher

        command.select(command.FLAGS, launcher.processes())
        code = launcher.run(command.FLAGS, rank)
    else:
        code = command.run(command.FLAGS)
    return code or errors.DONE


def show(text: str) -> int:
    """Prints a help text; returns the exit code."""
    signal.signal(signal.SIGPIPE, signal.SIG_DFL)  # whoever reads may have seen enough
    print(text)
    return errors.DONE


def split(words: Sequence[str]) -> tuple[str, list[str]]:
    """Splits a command line into the name of a command, of one word or two, and the rest."""
    two = " ".join(words[:2])
    name = two if two in names() else words[0]
    if name not in names():
        raise errors.UsageError(f"no command {name!r}: use one of {', '.join(names())}.")
    return name, list(words[len(name.split()) :])


def names() -> dict[str, Path]:
    """Returns the commands' names and files: `benchmark_peers.py` is `benchmark peers`."""
    files = sorted(p for p in COMMANDS.glob("*.py") if not p.name.startswith("_"))
    found = {p.stem.replace("_", " "): p for p in files}
    dashed = {name: name.replace(" ", "-") for name in found if name.split()[0] not in found}
    return {dashed.get(name, name): path for name, path in found.items()}


def load(name: str) -> ModuleType:
    """Imports a command's file, and no other's."""
    return importlib.import_module(f"app.commands.{names()[name].stem}")


def list_commands() -> str:
    """Returns a line for each command, by what a person wants to do; reads files, runs none."""
    lines: dict[str, list[str]] = {section: [] for section in SECTIONS}
    for name, path in names().items():
        text = path.read_text()
        section = re.search(r'^SECTION = "(.+)"$', text, re.MULTILINE)
        if section:
            about = (ast.get_docstring(ast.parse(text)) or "").partition("\n")[0]
            lines.setdefault(section[1], []).append(f"  {name:20} {about}")
    return "".join("\n".join(["", title, *found, ""]) for title, found in lines.items() if found)


if __name__ == "__main__":
    if isinstance(sys.stdout, io.TextIOWrapper):  # as it is of standard error: a path may be of any
        sys.stdout.reconfigure(errors="backslashreplace")  # bytes, and a terminal of any encoding
    sys.exit(main(sys.argv[1:]))
