"""Which requests are computed together, and what each client gets."""

import asyncio
import threading
import time

import numpy as np
import pytest

from app.serving.batching import Batcher, length_class
from app.serving.codec import Inputs
from app.serving.errors import RequestError

pytestmark = pytest.mark.fast


class Doubler:
    """Doubles rows, remembers batches, and refuses negative numbers; a gate holds it up."""

    def __init__(self):
        self.batches, self.gate = [], threading.Event()
        self.gate.set()

    def __call__(self, signature, tensors):
        assert self.gate.wait(30)
        self.batches.append((signature, tensors["x"].tolist()))
        if signature == "broken":
            raise RuntimeError("a bug")
        if (tensors["x"] < 0).any():
            raise RequestError(400, "it is negative.")
        return {"y": 2 * tensors["x"]}


def inputs(*rows, signature="f", sizes=None):
    return Inputs(signature, {"x": np.array(rows, np.float32)}, len(rows), sizes=sizes)


def in_a_loop(wait=0.01, limit=100):
    """Makes a test of a model and a batcher, with one worker, run in an event loop."""

    def decorate(scenario):
        async def inside():
            model = Doubler()
            batcher = Batcher(model, 1, 8, wait, limit)
            try:
                await scenario(model, batcher)
            finally:
                model.gate.set()
                batcher.close()

        return lambda: asyncio.run(asyncio.wait_for(inside(), 30))

    return decorate


async def values(*answers):
    """Of each answer its rows, or its error."""
    found = await asyncio.gather(*answers, return_exceptions=True)
    return [one if isinstance(one, Exception) else one["y"].tolist() for one in found]


@in_a_loop()
async def test_what_waits_is_computed_together(model, batcher):
    answers = [batcher.submit(inputs(i, i + 0.5)) for i in range(6)]
    assert await values(*answers) == [[2 * i, 2 * i + 1] for i in range(6)]
    assert [len(rows) for _, rows in model.batches] == [8, 4]
    assert batcher.waiting == batcher.running == 0


@in_a_loop(wait=3600)
async def test_a_full_batch_waits_for_nothing_more(model, batcher):
    begin = time.monotonic()
    assert await values(*[batcher.submit(inputs(i)) for i in range(8)])
    assert time.monotonic() - begin < 25  # and not the hour that the batcher may wait


@in_a_loop()
async def test_unlike_requests_are_computed_apart(model, batcher):
    short, long = [10], [1000]
    kinds = [inputs(1), inputs(1, signature="g"), inputs([1, 2]), inputs(3),
             inputs(1, sizes=short), inputs(2, sizes=long),
             Inputs("f", {"x": np.float32(5)}, None)]  # fmt: skip
    found = await values(*[batcher.submit(kind) for kind in kinds])
    assert found == [[2], [2], [[2, 4]], [6], [2], [4], 10]
    assert ("f", [1, 3, 1]) in model.batches and len(model.batches) == 5


@in_a_loop()
async def test_only_the_bad_request_is_refused_and_its_row_named(model, batcher):
    good, bad, last = (batcher.submit(inputs(*rows)) for rows in ([1, 2], [3, -4], [5]))
    found = await values(good, bad, last)
    assert found[0] == [2, 4] and found[2] == [10]
    assert isinstance(found[1], RequestError)
    assert found[1].sentence == "instance 1: it is negative."


@in_a_loop()
async def test_a_bug_is_not_a_request_error(model, batcher):
    found = await values(*[batcher.submit(inputs(i, signature="broken")) for i in (1, 2)])
    assert [type(error) for error in found] == [RuntimeError] * 2
    assert await values(batcher.submit(inputs(1))) == [[2]]


@in_a_loop()
async def test_a_large_request_is_cut_by_length_and_put_together(model, batcher):
    rows, sizes = list(range(20)), [100 if i % 2 else 1000 for i in range(20)]
    assert await values(batcher.submit(inputs(*rows, sizes=sizes))) == [[2 * i for i in rows]]
    # 8, 8 and 4 rows; the last of the short ones are padded to the first of the long ones
    assert [len(rows) for _, rows in model.batches] == [8, 8, 4]
    assert all(i % 2 for i in model.batches[0][1])
    rows[13] = -1
    (error,) = await values(batcher.submit(inputs(*rows, sizes=sizes)))
    assert error.sentence == "instance 13: it is negative."
    assert batcher.waiting == 0


@in_a_loop(limit=4)
async def test_a_full_queue_refuses(model, batcher):
    model.gate.clear()
    first = batcher.submit(inputs(0))
    await asyncio.sleep(0.1)  # it is computed, and waits no more
    assert (batcher.running, batcher.waiting) == (1, 0)
    answers = [batcher.submit(inputs(i)) for i in range(4)]
    with pytest.raises(RequestError) as caught:
        batcher.submit(inputs(9))
    assert caught.value.status == 429 and caught.value.headers["Retry-After"] == "1"
    with pytest.raises(RequestError, match="no more than 4 may wait") as caught:
        batcher.submit(inputs(*range(5)))
    assert caught.value.status == 400
    model.gate.set()
    assert await values(first, *answers) == [[0], [0], [2], [4], [6]]


@in_a_loop()
async def test_a_client_that_hung_up_leaves_the_queue(model, batcher):
    model.gate.clear()
    first = batcher.submit(inputs(0))
    await asyncio.sleep(0.1)
    whole, stays = batcher.submit(inputs(*range(20))), batcher.submit(inputs(7))
    assert batcher.waiting == 21
    whole.cancel()
    first.cancel()  # too late for it, but it hurts nobody
    await asyncio.sleep(0.1)
    assert batcher.waiting == 1
    model.gate.set()
    assert await values(stays) == [[14]]
    assert model.batches == [("f", [0]), ("f", [7])]


def test_texts_of_like_length_are_one_class():
    assert length_class(0) == length_class(64) < length_class(65) == length_class(96)
    assert length_class(96) < length_class(97)
