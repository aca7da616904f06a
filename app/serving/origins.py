"""Web pages of other origins that may ask (CORS): their browsers ask us first whether they may."""

from __future__ import annotations

import re
from collections.abc import Sequence

from starlette.middleware.cors import CORSMiddleware
from starlette.types import ASGIApp

from app.errors import UsageError

ANY = "*"
ORIGIN = re.compile(r"https?://(\[[0-9a-f:.]+\]|[a-z0-9_.-]+)(:\d+)?")


def must_be_origins(origins: Sequence[str]) -> None:
    """Checks what was given.

    Raises:
        UsageError: a browser would send none that is equal to it.
    """
    for origin in origins:
        if origin != ANY and not ORIGIN.fullmatch(origin):
            raise UsageError(
                f"--cors_origins={','.join(origins)} must be origins, as https://a.example or "
                f"http://localhost:3000, without a path, or {ANY} for all: {origin!r} is none."
            )


def allowing(origins: Sequence[str], app: ASGIApp) -> ASGIApp:
    """An application whose answers pages of these origins may read, errors too."""
    return CORSMiddleware(
        app, allow_origins=list(origins), allow_methods=["GET", "POST"], allow_headers=[ANY],
        expose_headers=["Retry-After"],
    )  # fmt: skip
