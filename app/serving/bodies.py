"""Bodies of requests: read within bounds, or refused so that the client gets to know why."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator

from starlette.requests import Request
from starlette.responses import Response
from starlette.types import Receive, Scope, Send

from app.serving.answers import problem
from app.serving.encodings import PIECE, decoder
from app.serving.errors import RequestError

TOGETHER = 16  # of the largest size, that may be in memory before clients are told to wait
LINGER = 2  # seconds that the rest of a refused body is read, so that the client sees the answer
PLAIN = {"X-Content-Type-Options": "nosniff", "Cache-Control": "no-store"}


class Bodies:
    """Reads bodies.

    Args:
        most: bytes of one.
        seconds: for one to arrive.
    """

    def __init__(self, most: int, seconds: float) -> None:
        self._most, self._seconds = most, seconds
        self._held = 0  # bytes in memory

    @contextlib.asynccontextmanager
    async def read(self, request: Request) -> AsyncIterator[bytearray]:
        """A request's body, which counts as held in memory while the block runs.

        Raises:
            RequestError: it is too large, by itself or with the others, too slow, or not in the
                encoding that it says.
        """
        body = bytearray()
        try:
            await self._fill(body, request)
            request.state.is_read = True
            yield body
        finally:
            self._held -= len(body)

    async def _fill(self, body: bytearray, request: Request) -> None:
        decoded = decoder(request.headers.get("content-encoding", ""))
        if int(request.headers.get("content-length", 0)) > self._most:
            raise self._larger()
        try:
            async with asyncio.timeout(self._seconds):
                async for chunk in request.stream():  # the last is empty
                    for piece in decoded(chunk):
                        self._take(body, piece)
                        if len(piece) == PIECE:
                            await asyncio.sleep(0)
        except TimeoutError:
            raise RequestError(
                408, f"the body did not arrive within {self._seconds:g} s."
            ) from None

    def _take(self, body: bytearray, piece: bytes) -> None:
        self._held += len(piece)
        body += piece
        if len(body) > self._most:
            raise self._larger()
        if self._held > TOGETHER * self._most:
            raise RequestError(
                429, "the requests of all clients together are too large: try again in a second.",
                {"Retry-After": "1"},
            )  # fmt: skip

    def _larger(self) -> RequestError:
        return RequestError(413, f"the body must not be larger than {self._most} bytes.")


class Refusal(Response):
    """A RequestError as an answer.

    What is still on its way of a refused body is read for a moment: if the connection were closed
    at once, a client that sends all before it reads would see a broken pipe, and no sentence.
    """

    media_type = "application/json"

    def __init__(self, error: RequestError, is_read: bool = True) -> None:
        headers = {**PLAIN, **(error.headers or {})}
        if not is_read:
            headers["Connection"] = "close"
        super().__init__(problem(error.sentence), error.status, headers)
        self._is_read = is_read

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Sends itself; see `Response`."""
        if self._is_read:
            return await super().__call__(scope, receive, send)
        headers = {"status": self.status_code, "headers": self.raw_headers}
        await send({"type": "http.response.start", **headers})
        await send({"type": "http.response.body", "body": self.body, "more_body": True})
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(LINGER):
                while (await receive()).get("more_body"):
                    pass
        await send({"type": "http.response.body", "body": b""})
