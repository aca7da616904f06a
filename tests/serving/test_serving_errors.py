"""The errors that a client can be sent: whole sentences, whose gaps are filled."""

import ast
import string

import pytest
from ranks import ROOT

from app.serving import errors

pytestmark = pytest.mark.fast

MESSAGES = {name: m for name, m in vars(errors).items() if isinstance(m, errors.Message)}


def calls():
    """Yields each message that is raised, with the names of its values."""
    for path in (ROOT / "app" / "serving").glob("*.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            is_call = isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute)
            if is_call and node.func.attr in MESSAGES:
                yield node.func.attr, {keyword.arg for keyword in node.keywords}


def test_every_gap_of_a_sentence_is_filled():
    found = list(calls())
    for name, given in found:
        parts = string.Formatter().parse(MESSAGES[name].text)
        assert given == {gap for _, gap, _, _ in parts if gap}, name
    # the router's own errors become one of these two, which are called as `message`
    assert {name for name, _ in found} | {"NOT_FOUND", "WRONG_METHOD"} == set(MESSAGES)


def test_every_message_is_one_sentence():
    for message in MESSAGES.values():
        assert 400 <= message.status < 600
        assert message.text.endswith(".") and "\n" not in message.text
