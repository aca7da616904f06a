"""Holds every error that a client can be sent, each an HTTP status and one sentence.

raise errors.BODY_TOO_LARGE(most=1000)
"""

import contextlib
import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Self


class RequestError(Exception):
    """A request that cannot be served, with the answer to it.

    Attributes:
        status: of HTTP.
        sentence: says what is wrong.
        headers: of HTTP.
    """

    def __init__(
        self, status: int, sentence: str, headers: Mapping[str, str] | None = None
    ) -> None:
        super().__init__(sentence)
        self.status, self.sentence, self.headers = status, sentence, headers or {}

    @property
    def body(self) -> bytes:
        """Returns the JSON of the answer."""
        text = json.dumps({"error": self.sentence}, ensure_ascii=False, separators=(",", ":"))
        return text.encode("utf-8", "replace")

    def within(self, place: str) -> Self:
        """Returns the error with the part of the request that it is about before it."""
        return type(self)(self.status, f"{place}: {self.sentence}", self.headers)


@contextlib.contextmanager
def within(kind: str, name: object = "") -> Iterator[None]:
    """Prefixes errors with the part of the request that they are about, such as `instance 3`."""
    try:
        yield
    except RequestError as error:
        raise error.within(f"{kind} {name}".rstrip()) from None


@dataclass(frozen=True)
class Message:
    """A status and a sentence with placeholders; a call with their values returns the error."""

    status: int
    text: str
    headers: Mapping[str, str] | None = None

    def __call__(self, **values: object) -> RequestError:
        """Returns the error to raise."""
        return RequestError(self.status, self.text.format(**values), self.headers)


RETRY = {"Retry-After": "1"}

# The connection, and the body as bytes.
NOT_HTTP = Message(400, "this is not an HTTP/1.1 request.")
HEADERS_TOO_SLOW = Message(408, "the headers did not arrive within {seconds:g} s.")
HEADERS_TOO_LARGE = Message(431, "the headers must not be larger than {most} bytes.")
BODY_TOO_SLOW = Message(408, "the body did not arrive within {seconds:g} s.")
BODY_TOO_LARGE = Message(413, "the body must not be larger than {most} bytes.")
BODIES_TOO_LARGE = Message(
    429, "the requests of all clients together are too large: try again in a second.", RETRY
)
UNKNOWN_ENCODING = Message(
    415, 'Content-Encoding "{encoding}" is not known: send the body as it is (identity), or with '
    "gzip.", {"Accept-Encoding": "gzip, identity"},
)  # fmt: skip
NOT_GZIP = Message(400, "the body is not gzip, as its Content-Encoding says, or it is damaged.")
GZIP_CUT_OFF = Message(400, "the body's gzip ends too early.")
WRONG_MEDIA_TYPE = Message(
    415, "the body is {what} ({type}), and must be JSON: send {right} as application/json."
)

# Paths, and the state of the server.
NOT_FOUND = Message(404, "there is nothing at {path}.")
WRONG_METHOD = Message(405, "{path} takes no {method}.")
NO_SUCH_MODEL = Message(404, "there is no model {name!r}, but {served!r}.")
NO_SUCH_VERSION = Message(404, "model {name!r} is served in version {served}, not {version}.")
BUSY = Message(503, "the queue is full.")
STOPPING = Message(503, "the server is about to stop.", {"Connection": "close"})
FAILED = Message(500, "the server failed, and its log says why.")

# The JSON of a body.
NOT_JSON = Message(400, "the body is not JSON: {reason}.")
NOT_UTF8 = Message(400, "the body is not UTF-8 (at its byte {byte}).")
NESTED_TOO_DEEPLY = Message(400, "the body's JSON is nested too deeply.")
TOO_MANY_DIGITS = Message(400, "the body holds a number with too many digits.")
NOT_AN_OBJECT = Message(400, "the body must be a JSON object, not {given}.")
FILE_AS_BODY = Message(400, "the body is {what}, and must be JSON: send {right}.")
GZIP_AS_BODY = Message(400, "the body is compressed: say so by Content-Encoding: gzip.")

# Signatures.
SIGNATURE_NAME_TYPE = Message(400, "signature_name must be a string, not {given}.")
NO_SUCH_SIGNATURE = Message(400, "there is no signature {name!r}, but {known}.")
NO_DEFAULT_SIGNATURE = Message(400, "signature_name must be one of {known}.")
NOT_FOR_VERB = Message(400, "signature {name!r} is not for :{verb}; {others}.")
TAKES_NO_EXAMPLES = Message(400, "signature {name!r} does not take examples.")
TAKES_NO_BATCH = Message(
    400, "signature {name!r} takes one item, not a batch: send "
    '{{"inputs": {{"{scalar}": ...}}}} instead of "instances".',
)  # fmt: skip

# Instances, inputs and examples.
NOT_ONE_FORMAT = Message(
    400, 'the body must have either "instances" (a list, one item per instance) or "inputs" (whole '
    "tensors), not {given}.",
)  # fmt: skip
INSTANCES_TYPE = Message(400, '"instances" must be a list, not {given}.')
EMPTY = Message(400, '"{format}" is empty: it must hold at least one instance.')
INSTANCE_TYPE = Message(
    400, "instance {i} is {given}, and instance 0 an object with the names of the inputs: send one "
    "or the other.",
)  # fmt: skip
UNNAMED_INPUTS = Message(400, "{what} must be an object with the inputs {names}, not {given}.")
INPUT_MISSING = Message(400, "it lacks the input {name}.")
NO_SUCH_INPUT = Message(400, 'there is no input "{name}", but {names}.')
UNEQUAL_SHAPES = Message(
    400, "instance {i} has the shape {given}, and instance 0 {first}: all must have one."
)
NO_EXAMPLES = Message(400, '"examples" {what}: it must be a list of objects.')
CONTEXT_TYPE = Message(400, '"context" must be an object, not {given}.')
EXAMPLE_TYPE = Message(400, "it must be an object with features, not {given}.")
FEATURE_TWICE = Message(400, 'feature "{name}" is in "context" too.')
FEATURE_MISSING = Message(400, 'it lacks the feature "{name}".')
FEATURE_NOT_STRING = Message(400, 'feature "{name}" must be a string.')
FEATURE_NAME = Message(400, "the name of a feature holds half of a surrogate pair.")
MIXED_FEATURE = Message(
    400, "it holds {given}: strings, whole numbers or decimal numbers are taken, of one kind."
)

# Values.
WRONG_TYPE = Message(400, "it must be {wanted}, not {given}.")
WRONG_SHAPE = Message(400, "it must have the shape [{wanted}], not {given}.")
RAGGED = Message(400, "its lists are ragged: those of one level must be of one length.")
LISTS_TOO_DEEP = Message(400, "its lists are nested deeper than {most} levels.")
TOO_LARGE = Message(400, "{value} is too large for {dtype}.")
SOME_TOO_LARGE = Message(400, "it holds a number too large for {dtype}.")
OUT_OF_RANGE = Message(400, "{value} does not fit {dtype}, which is {least} to {most}.")
NOT_IN_JSON = Message(400, "a tensor of {dtype} cannot be given as JSON.")
HALF_SURROGATE = Message(400, "its text holds half of a surrogate pair.")
NOT_B64 = Message(400, 'an object in place of a string must be {{"b64": "..."}}.')
NOT_BASE64 = Message(400, 'its "b64" is not base64.')
BAD_EXAMPLE = Message(400, "{reason}.")  # an image or a text: the reasons are in input/raw.py

# The queue and the model.
TOO_MANY_INSTANCES = Message(
    400, "the request holds {count} instances, and no more than {limit} may wait: send fewer at "
    "once.",
)  # fmt: skip
QUEUE_FULL = Message(
    429, "{waiting} instances wait, and no more than {limit} may: try again in a second.", RETRY
)
OUT_OF_MEMORY = Message(503, "out of memory: {reason}.")
REFUSED_BY_MODEL = Message(400, "{reason}.")
ROWS_DO_NOT_MATCH = Message(
    400, 'output "{name}" of {rows} instances has the shape {shape}: this signature has no row per '
    'instance, so send "inputs".',
)  # fmt: skip

# The answer.
NO_ROWS = Message(
    400, "the outputs of this signature have no row per instance: send "
    '"inputs" instead of "instances".',
)  # fmt: skip
NO_CLASSES = Message(400, "this signature's outputs are not classes and scores of examples.")
NO_REGRESSION = Message(400, "this signature's outputs are not one number per example.")
OUTPUT_NOT_IN_JSON = Message(400, 'output "{name}" is {dtype}, which JSON cannot hold.')

# What a body should be, by the kind of the model.
BODIES = {
    "image": '{"instances": [{"b64": "<the file in base64>"}]}',
    "text": '{"instances": ["a text"]}',
    None: '{"instances": [...]}',
}
# Words for what a client sent.
WORDS = {str: "a string", int: "a number", float: "a number", bool: "a boolean",
         type(None): "null", list: "a list", dict: "an object"}  # fmt: skip


def kind(value: Any) -> str:
    """Says what a JSON value is."""
    return WORDS.get(type(value), "a value")


def shown(value: Any) -> str:
    """Returns a number as it is, and says of anything else only what it is."""
    is_number = type(value) in (int, float) and (type(value) is float or abs(value) < 10**30)
    return str(value) if is_number else kind(value)


def cut(text: str) -> str:
    """Shortens a client's own words for a sentence."""
    return text if len(text) <= 40 else f"{text[:40]}..."
