"""Replaces standard input and output by files, which ranks can share, reread and join."""

import contextlib
import os
import shutil
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

STANDARD = "-"
OUTPUT = "standard_output.jsonl"  # the name of the file for standard output


@contextlib.contextmanager
def as_files(source: str, output: str, form: str | None) -> Iterator[tuple[str, str]]:
    """Yields `source` and `output`, with a temporary file for each that is `-`.

    The file for standard output is written to it at the end.
    """
    if STANDARD not in (source, output):
        yield source, output
        return
    with tempfile.TemporaryDirectory() as folder:
        if source == STANDARD:
            source = str(Path(folder) / f"standard_input.{form or 'txt'}")
            with open(source, "wb") as file:
                shutil.copyfileobj(sys.stdin.buffer, file)
        written = Path(folder) / OUTPUT
        yield source, str(written) if output == STANDARD else output
        if written.exists():
            try:
                with written.open("rb") as file:
                    shutil.copyfileobj(file, sys.stdout.buffer)
                sys.stdout.flush()
            except BrokenPipeError:  # the reader has stopped, as `head` does
                os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
