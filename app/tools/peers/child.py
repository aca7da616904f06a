"""Takes a process's turns (`turns.py`). PyTorch's environment imports it too: no packages."""

from __future__ import annotations

import json
import os
import socket
import time
from collections.abc import Callable, Mapping
from typing import Any


def serve(path: str, facts: Mapping[str, Any], run: Callable[[int], None]) -> None:
    """Takes steps whenever the parent says how many, until it closes the socket.

    Args:
        path: of the parent's socket.
        facts: about this process for the parent, its `rank` among them.
        run: takes a number of steps.
    """
    with socket.socket(socket.AF_UNIX) as connection:
        connection.connect(path)
        with connection.makefile("rw") as lines:
            lines.write(json.dumps({**facts, "pid": os.getpid()}) + "\n")
            lines.flush()
            while line := lines.readline():
                begin = time.perf_counter()
                run(int(line))
                lines.write(f"{time.perf_counter() - begin}\n")
                lines.flush()
