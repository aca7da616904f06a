"""`:predict`, `:classify` and `:regress`: from the body of a request to that of its answer."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

from starlette.requests import ClientDisconnect, Request
from starlette.types import Message

from app.serving import codec, examples
from app.serving.answers import written
from app.serving.asked import Asked, Checks
from app.serving.batching import Batcher
from app.serving.model import Model
from app.serving.pieces import Outputs
from app.serving.signatures import choose

VERBS = ("predict", "classify", "regress")
LARGE = 65536  # bytes of JSON, above which the event loop is not held up by it


class Verbs:
    """Computes what a request asks for.

    Args:
        model: to compute.
        batcher: of its requests.
        checks: of what is asked.
    """

    def __init__(self, model: Model, batcher: Batcher, checks: Checks) -> None:
        self._model, self._batcher, self._checks = model, batcher, checks
        self._thread = ThreadPoolExecutor(1, "json")

    async def answer(self, request: Request, verb: str, body: bytearray) -> tuple[bytes, int]:
        """The body of the answer, and how many instances it is of.

        Raises:
            RequestError: the request cannot be served.
            ClientDisconnect: nobody waits for it any more.
        """
        signature, asked = await self._aside(len(body), self._read, body, verb)
        outputs = await self._outputs(request, signature, asked)
        size = 8 * sum(y.size for y in outputs.values())
        answer = await self._aside(size, written, verb, outputs, asked.is_row)
        return answer, asked.rows or 1

    async def _aside(self, size: int, function: Callable[..., Any], *args: Any) -> Any:
        """Calls a function, in another thread if its JSON is large."""
        if size <= LARGE:
            return function(*args)
        return await asyncio.get_running_loop().run_in_executor(self._thread, function, *args)

    def _read(self, body: bytearray, verb: str) -> tuple[str, Asked]:
        """What is asked, and of which signature."""
        given = codec.parse(body)
        signature = choose(self._model.signatures, verb, codec.signature_name(given))
        read = codec.to_predict if verb == "predict" else examples.to_classify
        return signature.name, read(given, signature, self._checks)

    async def _outputs(self, request: Request, signature: str, asked: Asked) -> Outputs:
        """Waits for the outputs, or for the client to hang up."""
        answer = self._batcher.submit(signature, asked)
        gone: asyncio.Future[Message] = asyncio.ensure_future(request.receive())
        gone.add_done_callback(lambda _: answer.cancel())
        try:
            return await answer
        except asyncio.CancelledError:
            answer.cancel()
            if gone.done() and not gone.cancelled():
                raise ClientDisconnect from None
            raise
        finally:
            gone.cancel()
