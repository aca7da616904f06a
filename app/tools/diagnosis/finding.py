"""Represents a finding of the doctor: what was found, how bad it is, and how to fix it."""

import signal
import subprocess
import textwrap
from dataclasses import dataclass
from typing import Literal

Level = Literal["ok", "warning", "problem"]
WIDTH = 100  # columns
INDENT = 24


@dataclass(frozen=True)
class Finding:
    """One finding; made by `ok`, `warning` and `problem`, so that each that is not ok has a fix.

    Attributes:
        level: training works despite a warning; a problem prevents it, or makes it wrong.
        subject: one or two words.
        found: what is so.
        fix: what to do about it.
    """

    level: Level
    subject: str
    found: str
    fix: str = ""

    def __str__(self) -> str:
        lines = _wrapped(f"{self.level:8}{self.subject:16}", self.found)
        return "\n".join(lines + (_wrapped(" " * INDENT + "fix: ", self.fix) if self.fix else []))


def ok(subject: str, found: str) -> Finding:
    """Returns a finding that needs no action."""
    return Finding("ok", subject, found)


def warning(subject: str, found: str, fix: str) -> Finding:
    """Returns a finding with which training works, but slower, less safely or not for long."""
    return Finding("warning", subject, found, fix)


def problem(subject: str, found: str, fix: str) -> Finding:
    """Returns a finding with which training does not work."""
    return Finding("problem", subject, found, fix)


def failure(done: subprocess.CompletedProcess[str]) -> str:
    """Returns why a process failed: its signal, its last line of stderr, or its exit code."""
    if done.returncode < 0:
        return f"the process was killed by {signal.Signals(-done.returncode).name}"
    lines = [line.strip() for line in done.stderr.splitlines() if line.strip()]
    return lines[-1] if lines else f"exit code {done.returncode}, without a message"


def _wrapped(start: str, text: str) -> list[str]:
    # A path or a command is not cut, however long.
    return textwrap.wrap(
        text, WIDTH, initial_indent=start, subsequent_indent=" " * INDENT,
        break_long_words=False, break_on_hyphens=False,
    )  # fmt: skip
