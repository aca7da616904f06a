"""What a library says of a failure, for a person: one sentence, without its own insides."""

from __future__ import annotations

import re

from input import raw

# Names of nodes, operators, stacks and devices, and a folder's name in `paths.plain`.
INSIDES = re.compile(
    r"\{\{[^{}]*\}\}|\[\[.*?\]\]|\[Op:[^\]]*\]|<stack traces[^>]*>|name: ?$"
    r"|/job:\w+/(replica|task):\d+\S*|/proc/self/fd/\d+/?"
)
# Lines that announce others: `Node:`, `1 root error(s) found.`, a bare `(0) INVALID_ARGUMENT:`.
HEADINGS = re.compile(
    r"(Graph execution error|Detected at node|Node:|\d+ root error|\(\d+\) \w+:\s*$|[A-Z_]+:\s*$)"
)
NUMBERED = re.compile(r"^(\(\d+\) )?[A-Z][A-Z_]{4,}: +|^\(\d+\) \w+: +")  # of several, or a status
LONGEST = 300  # characters


def sentence(error: BaseException) -> str:
    """What an error says, without a full stop: of a file its reason, of TensorFlow the cause."""
    if isinstance(error, OSError) and error.strerror:
        return error.strerror
    message = str(getattr(error, "message", error))
    if meant := raw.known(message):
        return meant
    text = INSIDES.sub("", message)
    lines = [line.strip() for line in text.splitlines()]
    found = [line for line in lines if line and not HEADINGS.match(line)]
    first = NUMBERED.sub("", found[0]) if found else type(error).__name__
    return first[:LONGEST].rstrip(" .:")
