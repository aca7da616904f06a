"""Random files of texts are read, or refused in a sentence, by training and prediction alike."""

import csv
import gzip
import io
import json

import pytest
from fuzz import examples
from hypothesis import given
from hypothesis import strategies as st

from input import InputError, items
from input.raw import Limits
from input.text import Text

pytestmark = pytest.mark.fast

TEXTS = st.text(max_size=30)
LABELS = st.sampled_from(["good", "bad", "0", "1.0", "", "nan", "['x']", "a,b", '"q"', "\ufeffx"])
VALUES = st.one_of(
    TEXTS, LABELS, st.none(), st.booleans(), st.integers(), st.floats(), st.lists(TEXTS, max_size=2)
)
PIECES = st.sampled_from([b'"', b",", b"\t", b";", b"\n", b"\r", b"\r\n", b"\0", b"\xff\xfe",
                          b"\xef\xbb\xbf", b"text", b"label", b"[", b"]", b"{", b"}", b":",
                          b"\\u", b"\xe2\x80\xa8", b"a", b"\xc3", b"1e999", b"NaN"])  # fmt: skip


def table(rows, delimiter, quoting):
    file = io.StringIO()
    escapes = {"escapechar": "\\", "quoting": quoting, "lineterminator": "\n"}
    writer = csv.writer(file, delimiter=delimiter, **escapes)
    writer.writerows([("text", "label"), *rows])
    return file.getvalue().encode("utf-8", "surrogatepass")


@st.composite
def files(draw):
    """Tables and JSON as programs write them, of any values; then some bytes are changed."""
    usual = st.tuples(TEXTS.map(lambda text: f"t{text}"), LABELS.filter(bool))
    rows = [("a", "good"), ("b", "bad"), *draw(st.lists(usual, max_size=4))]
    rows += draw(st.lists(st.tuples(VALUES, VALUES), max_size=2)) * draw(st.integers(0, 1))
    if draw(st.booleans()):
        quoting = draw(st.sampled_from([csv.QUOTE_MINIMAL, csv.QUOTE_ALL, csv.QUOTE_NONE]))
        content = table(rows, draw(st.sampled_from(",;\t|")), quoting)
    else:
        records = [{"text": text, "label": label} for text, label in rows]
        lines = [json.dumps(record) for record in records]
        content = draw(st.sampled_from(["\n".join(lines), json.dumps(records, indent=1)])).encode()
    for piece in draw(st.lists(PIECES, max_size=3)):
        at = draw(st.integers(0, len(content)))
        content = content[:at] + piece + content[at + draw(st.integers(0, 2)) :]
    if draw(st.integers(0, 9)) == 0:
        content = gzip.compress(content)[: draw(st.integers(0, 400))]
    return content


NAMES = st.sampled_from(["x.csv", "x.tsv", "x.txt", "x.jsonl", "x.json", "x.csv.gz"])


@given(content=st.one_of(files(), st.binary(max_size=200)), name=NAMES)
@examples(share=4)
def test_fuzz_a_file_is_read_alike_or_refused(tmp_path_factory, content, name):
    path = tmp_path_factory.getbasetemp() / name
    path.write_bytes(content)
    trained = None
    try:
        train, _, _ = Text(str(path), evaluation_file=str(path)).open_splits("")
        trained = train.fetch(range(len(train)))[0]
        assert all(text.strip() and Limits().check("text", text) is None for text in trained)
    except InputError as error:
        assert str(path) in str(error) and str(error).endswith(".")
    found = []
    try:
        form = "csv" if name == "x.txt" else None  # as training takes it
        rows = items.open_items(str(path), "text", form, "text")
        for i in range(len(rows)):
            assert rows.name(i) >= 1
            try:
                raw, _ = rows.fetch(i)
                Limits().check("text", raw)
                found.append(raw)
            except ValueError as error:
                assert str(error)
    except InputError as error:
        assert str(path) in str(error) and str(error).endswith(".")
    if trained is not None:
        assert trained == found
