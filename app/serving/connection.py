"""Reads headers and bodies from a client within bounds of size and time, and refuses the rest.

A client may send headers slowly, without end or not at all, never take its answer, and send a small
body that decompresses to a large one.
"""

import asyncio
import contextlib
import socket
import zlib
from collections.abc import AsyncIterator
from typing import Any

from starlette.requests import Request
from starlette.responses import Response
from starlette.types import Receive, Scope, Send
from uvicorn.protocols.http.httptools_impl import STATUS_LINE, HttpToolsProtocol

from app.serving import errors
from app.serving.errors import RequestError

MAX_HEADERS = 65536  # bytes
MAX_BODIES = 16  # of the largest size, that may be in memory before clients have to wait
LINGER = 2  # seconds of reading the rest of a refused body, so that the client sees the answer
PIECE = 2**20  # bytes decompressed at once: milliseconds, between which other clients are served
GZIP = 16 + zlib.MAX_WBITS  # zlib's number for it
HEADERS = {"X-Content-Type-Options": "nosniff", "Cache-Control": "no-store"}  # of every answer
# Other media types are let through, whatever they say: curl calls each -d a form.
MEDIA_TYPES = {"multipart/": "a form with files", "image/": "an image", "audio/": "a sound",
               "video/": "a film"}  # fmt: skip


class Connection(HttpToolsProtocol):
    """Uvicorn's protocol, which answers with an error and closes beyond the bounds.

    Args:
        seconds: for the headers of a request to arrive, and for an answer to be taken.
    """

    def __init__(self, seconds: float, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self._seconds = seconds
        self._timer: asyncio.TimerHandle | None = None  # runs while headers are awaited
        self._overhead = 0  # bytes of headers and trailers since a request or its body advanced

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        """See base class."""
        super().connection_made(transport)
        client = transport.get_extra_info("socket")
        with contextlib.suppress(OSError):  # the kernel drops a client that takes no answer
            option = int(self._seconds * 1000)
            client.setsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT, option)
        self._start_timer()

    def connection_lost(self, exc: Exception | None) -> None:
        """See base class."""
        self._stop_timer()
        super().connection_lost(exc)

    def on_message_begin(self) -> None:
        """See base class."""
        self._start_timer()
        self._overhead = 0
        super().on_message_begin()

    def on_headers_complete(self) -> None:
        """See base class."""
        self._stop_timer()
        self._overhead = 0
        super().on_headers_complete()

    def on_body(self, body: bytes) -> None:
        """See base class."""
        self._overhead = 0
        super().on_body(body)

    def data_received(self, data: bytes) -> None:
        """See base class."""
        self._overhead += len(data)
        super().data_received(data)
        if self._overhead > MAX_HEADERS + len(data):
            self._refuse(errors.HEADERS_TOO_LARGE(most=MAX_HEADERS))

    def send_400_response(self, msg: str) -> None:
        """See base class, which answers in plain text."""
        self._refuse(errors.NOT_HTTP())

    def shutdown(self) -> None:
        """See base class; a connection without a request has a moment to make one."""
        if self.cycle is None or self._timer:
            self.loop.call_later(0.3, super().shutdown)
        else:
            super().shutdown()

    def _start_timer(self) -> None:
        self._stop_timer()
        self._timer = self.loop.call_later(self._seconds, self._time_out)

    def _stop_timer(self) -> None:
        if self._timer:
            self._timer.cancel()
            self._timer = None

    def _time_out(self) -> None:
        self._timer = None
        self._refuse(errors.HEADERS_TOO_SLOW(seconds=self._seconds))

    def _refuse(self, error: RequestError) -> None:
        """Answers what is not a request yet, and closes."""
        if self.transport.is_closing():
            return
        if self.cycle is None or self.cycle.response_complete:
            body = error.body
            head = b"content-type: application/json\r\nconnection: close\r\ncontent-length: %d"
            self.transport.write(STATUS_LINE[error.status] + head % len(body) + b"\r\n\r\n" + body)
        self.transport.close()


class BodyReader:
    """Reads the bodies of requests.

    Args:
        most: bytes of one, decompressed.
        seconds: for one to arrive.
    """

    def __init__(self, most: int, seconds: float) -> None:
        self._most, self._seconds = most, seconds
        self._held = 0  # bytes in memory

    @contextlib.asynccontextmanager
    async def read(self, request: Request) -> AsyncIterator[bytearray]:
        """Reads a body, which counts as held in memory while the block runs.

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
        if int(request.headers.get("content-length", 0)) > self._most:
            raise errors.BODY_TOO_LARGE(most=self._most)
        try:
            async with asyncio.timeout(self._seconds):
                async for piece in decompressed(request):
                    self._add(piece, body)
                    if len(piece) == PIECE:
                        await asyncio.sleep(0)
        except TimeoutError:
            raise errors.BODY_TOO_SLOW(seconds=self._seconds) from None

    def _add(self, piece: bytes, body: bytearray) -> None:
        self._held += len(piece)
        body += piece
        if len(body) > self._most:
            raise errors.BODY_TOO_LARGE(most=self._most)
        if self._held > MAX_BODIES * self._most:
            raise errors.BODIES_TOO_LARGE()


def decompressed(request: Request) -> AsyncIterator[bytes]:
    """Returns the pieces of a body as it was before its `Content-Encoding`.

    Raises:
        RequestError: the encoding is unknown.
    """
    encoding = request.headers.get("content-encoding", "")
    name = encoding.strip().lower()
    if name in ("", "identity"):
        return request.stream()
    if name in ("gzip", "x-gzip"):
        return gunzip(request.stream())
    raise errors.UNKNOWN_ENCODING(encoding=errors.cut(encoding))


async def gunzip(chunks: AsyncIterator[bytes]) -> AsyncIterator[bytes]:
    """Decompresses gzip, which may be several files in a row, by at most a PIECE at once.

    Raises:
        RequestError: it is not gzip, damaged, or ends too early.
    """
    inflate, is_whole = zlib.decompressobj(GZIP), True
    async for chunk in chunks:
        is_full = False
        while chunk or is_full:
            if inflate.eof:
                inflate = zlib.decompressobj(GZIP)
            try:
                piece = inflate.decompress(chunk, PIECE)
            except zlib.error:
                raise errors.NOT_GZIP() from None
            chunk = inflate.unused_data or inflate.unconsumed_tail
            is_full, is_whole = len(piece) == PIECE and not inflate.eof, inflate.eof
            yield piece
    if not is_whole:
        raise errors.GZIP_CUT_OFF()


def check_media_type(request: Request, kind: str | None) -> None:
    """Refuses a body by the type that its sender gave it.

    Raises:
        RequestError: it is not JSON.
    """
    given = request.headers.get("content-type", "").partition(";")[0].strip().lower()
    for prefix, what in MEDIA_TYPES.items():
        if given.startswith(prefix):
            right = errors.BODIES[kind]
            raise errors.WRONG_MEDIA_TYPE(what=what, type=errors.cut(given), right=right)


class ErrorResponse(Response):
    """A RequestError as an answer.

    What is still on its way of a refused body is read for a moment: if the connection were closed
    at once, a client that sends all before it reads would see a broken pipe, and no sentence.
    """

    media_type = "application/json"

    def __init__(self, error: RequestError, is_read: bool = True) -> None:
        close = {} if is_read else {"Connection": "close"}
        super().__init__(error.body, error.status, {**HEADERS, **error.headers, **close})
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
