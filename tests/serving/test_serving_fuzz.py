"""Whatever a body holds, it is answered: never by a traceback, a 500 or silence."""

import asyncio
import gzip
import json
import time

import exported
import fuzz
import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from app.serving import versions
from app.serving.api import Service
from app.serving.batching import Batcher
from app.serving.connection import BodyReader
from app.serving.model import load
from app.serving.tensors import InputCheck
from input.raw import Limits

MOST, SECONDS = 50_000, 20  # bytes of a body; until an answer
MODELS = {"text": exported.lengths, "image": exported.light, "number": exported.half_plus_two}
EXPECTED = {200, 400, 413, 415}

numbers = st.one_of(
    st.integers(), st.floats(), st.sampled_from([2**31, 2**63, -(2**64), 10**400, 1e308, 5e-324])
)
codes = st.one_of(
    st.text(), st.sampled_from(["YWI=", "YWI", "Y W I =", "!!!!", "\ud800", "iVBORw0K"])
)
strings = st.one_of(
    st.text(), codes.map(lambda code: {"b64": code}), numbers.map(lambda x: {"b64": x}),
    st.sampled_from([{"b64": "YWI=", "c": 1}, "half \ud800"]),
)  # fmt: skip
plain = st.one_of(st.none(), st.booleans(), numbers, strings)
values = st.recursive(
    plain,
    lambda inner: st.one_of(
        st.lists(inner, max_size=5),
        st.dictionaries(st.sampled_from(["x", "text", "image_bytes", "inputs", ""]), inner),
    ),
)
keys = st.sampled_from(
    ["instances", "inputs", "examples", "context", "signature_name", "model_spec", "\u0000"]
)
signatures = st.sampled_from(["serving_default", "single", "classify", "regress", "picky", "none"])
requests = st.one_of(
    st.dictionaries(keys, values, max_size=3),
    st.fixed_dictionaries({"instances": st.lists(strings, max_size=6)}),
    st.fixed_dictionaries({"instances": values, "signature_name": signatures}),
    st.fixed_dictionaries({"inputs": values, "signature_name": signatures}),
    st.fixed_dictionaries({"examples": values, "signature_name": signatures}),
)
nested = st.builds(
    lambda key, depth, open_, close: f'{{"{key}": {open_ * depth}{close * depth}}}'.encode(),
    st.sampled_from(["instances", "inputs", "examples"]), st.integers(1, 9000),
    st.sampled_from(["[", '{"a":']), st.sampled_from(["]", "}", ""]),
)  # fmt: skip
digits = st.builds(
    lambda sign, count: b'{"instances": [' + sign + b"9" * count + b"]}",
    st.sampled_from([b"", b"-", b"1e", b"0.", b"1e-"]), st.integers(1, 9000),
)  # fmt: skip
written = st.builds(
    lambda value, ascii: json.dumps(value, ensure_ascii=ascii).encode("utf-8", "replace"),
    requests, st.booleans(),
)  # fmt: skip


@st.composite
def changed(draw, bodies):
    """A body of which some bytes were overwritten, taken out or put in."""
    body = bytearray(draw(bodies))
    for _ in range(draw(st.integers(1, 4))):
        start = draw(st.integers(0, len(body)))
        body[start : start + draw(st.integers(0, 4))] = draw(st.binary(max_size=4))
    return bytes(body)


bodies = st.one_of(st.binary(), written, changed(written), nested, digits)
zipped = st.builds(gzip.compress, st.one_of(bodies, st.integers(0, 10**6).map(bytes)))
encoded = st.one_of(
    st.tuples(bodies, st.sampled_from(["", "identity", "gzip", "br", "gzip, gzip", "\xff"])),
    st.tuples(st.one_of(zipped, changed(zipped)), st.just("gzip")),
    st.tuples(st.builds(bytes.__add__, zipped, st.one_of(zipped, st.binary())), st.just("gzip")),
)
types = st.sampled_from(["", "application/json", "text/plain", "image/png", "multipart/x", "\xff"])


class Served:
    """A model behind the API, without sockets; answers are waited for so long and no longer."""

    def __init__(self, model):
        self.loop = asyncio.new_event_loop()
        self.loop.run_until_complete(self._open(model))
        self.path = f"/v1/models/{model.version.name}"

    async def _open(self, model):
        self.batcher = Batcher(model.run, 2, 8, 0.0, 64)
        check = InputCheck(model.version.about.kind, Limits(10_000, 1000))
        self.service = Service(model, self.batcher, check, BodyReader(MOST, SECONDS))

    def post(self, verb, parts, *headers):
        """Status and body of an answer to what arrives in parts."""
        scope = {
            "type": "http", "method": "POST", "path": f"{self.path}:{verb}", "query_string": b"",
            "headers": [(name, value.encode("latin-1")) for name, value in headers if value],
        }  # fmt: skip
        messages = [{"type": "http.request", "body": part, "more_body": True} for part in parts]
        messages.append({"type": "http.request", "body": b"", "more_body": False})
        sent = []

        async def receive():
            if messages:
                return messages.pop(0)
            return await asyncio.Event().wait()  # the client is there until it is answered

        async def send(message):
            sent.append(message)

        answer = asyncio.wait_for(self.service(scope, receive, send), SECONDS)
        self.loop.run_until_complete(answer)
        return sent[0]["status"], b"".join(message.get("body", b"") for message in sent[1:])

    def close(self):
        self.batcher.close()
        self.loop.close()


@pytest.fixture(scope="module", params=MODELS)
def model(request, tmp_path_factory):
    folder = MODELS[request.param](tmp_path_factory.mktemp(request.param))
    served = Served(load(versions.find(folder)))
    yield served
    served.close()


@fuzz.examples()
@given(st.sampled_from(["predict", "classify", "regress"]), encoded, types, st.integers(1, 3))
@example("predict", (b'{"instances": [1' + b" " * 2 * MOST + b"]}", ""), "", 1)
@example("predict", (gzip.compress(bytes(10**7)), "gzip"), "", 2)
@example("predict", (b'{"instances": [' * 900, ""), "", 1)
@example("predict", (b'{"instances": ["\\ud800"]}', ""), "", 1)
def test_fuzz_of_bodies(model, verb, body, content_type, cuts):
    data, encoding = body
    size = -(-len(data) // cuts) or 1
    parts = [data[i : i + size] for i in range(0, len(data), size)]
    headers = (b"content-encoding", encoding), (b"content-type", content_type)
    begin = time.monotonic()
    status, answer = model.post(verb, parts, *headers)
    assert time.monotonic() - begin < SECONDS
    assert status in EXPECTED, (status, answer)
    found = json.loads(answer)
    if status == 200:
        return
    reason = found["error"]
    assert set(found) == {"error"} and len(reason) < 700
    assert reason.endswith(".") and "\n" not in reason
    for mark in ("Traceback", "{{", "[Op:", "/job:", "[[{", "errors_impl"):
        assert mark not in reason
