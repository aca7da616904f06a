"""Turns a library's error into one sentence for users, without the library's internals."""

from __future__ import annotations

import re

from input.raw import DAMAGED, UNKNOWN

# Names of nodes, operators, stacks and devices, and folders' names from `paths.plain`.
INTERNALS = re.compile(
    r"\{\{[^{}]*\}\}|\[\[.*?\]\]|\[Op:[^\]]*\]|<stack traces[^>]*>|name: ?$"
    r"|/job:\w+/(replica|task):\d+\S*|/proc/self/fd/\d+/?"
)
# Lines that announce others: `Node:`, `1 root error(s) found.`, a bare `(0) INVALID_ARGUMENT:`.
HEADINGS = re.compile(
    r"(Graph execution error|Detected at node|Node:|\d+ root error|\(\d+\) \w+:\s*$|[A-Z_]+:\s*$)"
)
# Errors of TensorFlow's decoders, and of the checks in exported graphs.
DECODING = (
    (r"Input is empty|Trying to decode", UNKNOWN),
    (r"Invalid JPEG|jpeg::", DAMAGED["JPEG"]),
    (r"Invalid PNG|PNG size", DAMAGED["PNG"]),
    (r"assertion failed: \[((?:it is|the|a text) [^\]]*)\]", r"\1"),
)
# One of several errors, or a status.
NUMBERED = re.compile(r"^(\(\d+\) )?[A-Z][A-Z_]{4,}: +|^\(\d+\) \w+: +")
MAX_LENGTH = 300  # characters


def sentence(error: BaseException) -> str:
    """Returns what an error says, without a full stop: a file's reason, or TensorFlow's cause."""
    if isinstance(error, OSError) and error.strerror:
        return error.strerror
    message = str(getattr(error, "message", error))
    for pattern, meaning in DECODING:
        if known := re.search(pattern, message):
            return known.expand(meaning)
    text = INTERNALS.sub("", message)
    lines = [line.strip() for line in text.splitlines()]
    found = [line for line in lines if line and not HEADINGS.match(line)]
    first = NUMBERED.sub("", found[0]) if found else type(error).__name__
    return first[:MAX_LENGTH].rstrip(" .:")
