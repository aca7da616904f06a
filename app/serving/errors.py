"""What is told of a request that cannot be served: a status, and one sentence."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

WORDS = {str: "a string", int: "a number", float: "a number", bool: "a boolean",
         type(None): "null", list: "a list", dict: "an object"}  # fmt: skip


class RequestError(Exception):
    """What is wrong with a request, in one sentence, and the status of the answer."""

    def __init__(self, status: int, sentence: str, headers: Mapping[str, str] | None = None):
        super().__init__(sentence)
        self.status, self.sentence, self.headers = status, sentence, headers

    def at(self, place: int) -> RequestError:
        """The same of one instance."""
        return RequestError(self.status, f"instance {place}: {self.sentence}")


class WrongValueError(Exception):
    """A value that does not fit; whoever knows which it is turns it into a RequestError."""


@contextlib.contextmanager
def naming(place: int) -> Iterator[None]:
    """Turns a value's error into a request's, which names the instance."""
    try:
        yield
    except WrongValueError as error:
        raise RequestError(400, f"instance {place}: {error}.") from None


def listed(names: Sequence[str]) -> str:
    """Names of the model's."""
    return ", ".join(f'"{name}"' for name in names)


def cut(name: str) -> str:
    """A client's own words, short enough for a sentence."""
    return name if len(name) <= 40 else f"{name[:40]}..."


def shown(item: Any) -> str:
    """A number as it is; of anything else only what it is."""
    is_number = type(item) in (int, float) and (type(item) is float or abs(item) < 10**30)
    return str(item) if is_number else WORDS.get(type(item), "a value")
