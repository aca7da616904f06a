"""Files of texts as people have them: one reader, for training and prediction."""

import bz2
import codecs
import gzip
import json
import lzma
import subprocess
import sys

import pytest
from ranks import ROOT

from input import InputError, items
from input.rows import Rows
from input.text import Text
from input.text.files import labelled

pytestmark = pytest.mark.fast

TABLE = "text,label\n" + "".join(f"t{i} größe,{'good' if i % 2 else 'bad'}\n" for i in range(60))
ROWS = [(f"t{i} größe", "good" if i % 2 else "bad") for i in range(60)]
LIST = json.dumps([{"text": t, "label": label} for t, label in ROWS], indent=1, ensure_ascii=False)
STORED = {
    "x.CSV": TABLE.encode(),
    "x.csv": TABLE.replace(",", ";").encode(),
    "tab.csv": TABLE.replace(",", "\t").encode(),
    "x.tsv": TABLE.replace(",", "\t").encode(),
    "x.tab": TABLE.replace(",", "\t").encode(),
    "x.txt": TABLE.encode(),
    "x.csv.gz": gzip.compress(TABLE.encode()),
    "x.csv.bz2": bz2.compress(TABLE.encode()),
    "x.csv.xz": lzma.compress(TABLE.encode()),
    "packed.csv": gzip.compress(TABLE.encode()),
    "utf16.csv": TABLE.encode("utf-16"),
    "utf16be.csv": codecs.BOM_UTF16_BE + TABLE.encode("utf-16-be"),
    "bare.csv": TABLE.encode("utf-16-le"),
    "utf32.csv": TABLE.encode("utf-32"),
    "utf16.csv.gz": gzip.compress(TABLE.replace("\n", "\r\n").encode("utf-16")),
    "marked.csv": TABLE.encode("utf-8-sig"),
    "mac.csv": TABLE.replace("\n", "\r").encode(),
    "windows.csv": TABLE.replace("\n", "\r\n").encode(),
    "x.json": LIST.encode(),
    "marked.json": LIST.encode("utf-8-sig"),
    "x.ndjson": "".join(json.dumps({"text": t, "label": c}) + "\n" for t, c in ROWS).encode(),
    "lines.json": "\n\n".join(json.dumps({"text": t, "label": c}) for t, c in ROWS).encode(),
}


@pytest.mark.parametrize("name", STORED)
def test_training_and_prediction_read_the_same_rows_however_they_are_stored(tmp_path, name):
    path = tmp_path / name
    path.write_bytes(STORED[name])
    form = "csv" if name == "x.txt" else None  # without a label, a .txt is a text a line
    found = items.open_items(str(path), "text", form, "text")
    assert [found.fetch(i)[0].decode() for i in range(len(found))] == [t for t, _ in ROWS]
    config = Text(str(path), evaluation_file=str(path))
    train, held, _ = config.open_splits("")
    assert train.classes == ("bad", "good")
    assert list(zip(*train.fetch(range(60)), strict=True)) == [
        (t.encode(), int(label == "good")) for t, label in ROWS
    ]
    assert held.digest == train.digest
    if "json" not in name:
        assert train.name(0) == f"{path}, line 2"


def test_lines_are_those_an_editor_shows(tmp_path):
    path = tmp_path / "x.csv"
    path.write_bytes(b'text,label\r\n"a\r\nb",1\r\n\r\nc,2\r\n"d\r\n\r\ne",3\r\nf,4\r\n')
    assert list(Rows(path, "csv", ["text"]).lines) == [2, 5, 6, 9]
    path = tmp_path / "x.json"
    path.write_text('[\n {"text": "a"},\n\n {"text":\n "b"}, {"text": "ü"},\n {"text": "c"}\n]\n')
    rows = Rows(path, "jsonl", ["text"])
    assert list(rows.lines) == [2, 4, 5, 6]
    assert [rows.values(i) for i in range(4)] == [["a"], ["b"], ["ü"], ["c"]]


# Of a .tsv: whether its quotation marks enclose fields.
QUOTED = 'text\tlabel\n"a\nb"\tpos\n"say ""x"""\t"neg"\n'
PLAIN = 'text\tlabel\n"a" b\tpos\n"c\tneg\nd"\tneg\n'


def test_a_tsv_is_quoted_or_not_as_its_content_shows(tmp_path):
    path = tmp_path / "x.tsv"
    for content, expected in (
        (QUOTED, [["a\nb", "pos"], ['say "x"', "neg"]]),
        (PLAIN, [['"a" b', "pos"], ['"c', "neg"], ['d"', "neg"]]),
    ):
        path.write_text(content)
        rows = Rows(path, "tsv", ["text", "label"])
        assert [rows.values(i) for i in range(len(rows))] == expected


REFUSED = {
    "two.csv": (b"text,label,text\na,b,c\n", "2 columns 'text'"),
    "number.jsonl": (b'{"text": 5, "label": "a"}\n', "line 1: 'text' is 5, which is no text"),
    "label.jsonl": (b'{"text": "a", "label": ["neg"]}\n', "line 1: 'label' is .'neg'.: a label"),
    "nan.jsonl": (b'{"text": "a", "label": NaN}\n', "line 1: 'label' is nan: a label"),
    "null.jsonl": (b'{"text": "a", "label": null}\n', "line 1: 'label' is empty or missing"),
    "again.csv": (b"text,label\na,b\n\xef\xbb\xbftext,label\nc,d\n", "line 3: the row repeats"),
    "latin.csv": (b"text,label\ngr\xf6sse,b\n", "line 2: 'text' is not UTF-8 .byte 0xf6"),
    "cut.json": (b'[{"text": "a", "label": "b"},', "it ends within the list"),
    "deep.json": (b"[" * 100_000, "is no list in JSON"),
    "comma.json": (b'[{"text": "a"} {"text": "b"}]', "is missing after the record of line 1"),
    "one.json": (b'{"data": [\n {"text": "a"}]}', "line 1: the line is not JSON"),
    "x.xlsx": (b"PK\x03\x04" + bytes(40), "ZIP archive, as spreadsheets are: save its table"),
    "parquet.csv": (b"PAR1" + bytes(40), "a Parquet file: save its table as .csv"),
    "pointer.csv": (b"version https://git-lfs.github.com/spec/v1\n", "git-lfs left"),
    "cut.csv.gz": (gzip.compress(TABLE.encode())[:60], "cannot be unpacked"),
    "zeros.csv": (b"text,label\na\0,b\n", "holds zero bytes"),
    "odd.csv": (b"text,label\na,b\n".decode().encode("utf-16")[:-1], "is not UTF-16"),
    "texts.txt": (b"a text\nanother\n", "no column 'text'"),
    "quote.csv": (b'text,label\n"a,b\nc,d\n', "line 3: unexpected end of data"),
    "commas.csv": (
        b"text,label\nslow, but good,good\n",
        "line 2: .* 3 columns, not 2: quote",
    ),
    "narrow.tsv": (b"text\tlabel\nfine\tgood\nx\n", "line 3: the row has 1 columns, not 2"),
    "blank.tsv": (b"text\tlabel\nfine\tgood\n  \tbad\n", "line 3: 'text' is empty"),
    "names.tsv": (b"words\tlabel\nfine\tgood\n", "'text', only words, label: .* data.text_field"),
    "header.tsv": (b"text\tlabel\n", "has no rows"),
    "one.tsv": (b"text\tlabel\nfine\tgood\nwell\tgood\n", "1 classes: it needs 2 or more"),
    "lines.jsonl": (b'{"text": "a", "label": "b"}\n\n{"text": ', "line 3: the line is not JSON"),
    "half.jsonl": (b'{"text": "\\ud83d", "label": "b"}', "line 1: 'text' is not UTF-8 .half a"),
    "list.jsonl": (b"[1]", "line 1: the line is not a JSON object"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_what_cannot_train_is_refused_in_a_sentence(tmp_path, name):
    content, words = REFUSED[name]
    (tmp_path / name).write_bytes(content)
    with pytest.raises(InputError, match=words):
        Text(str(tmp_path / name)).open_splits("")


def test_a_label_of_none_of_the_classes_is_named(tmp_path):
    (tmp_path / "x.tsv").write_text("text\tlabel\nfine\tgreat\nx\tbad\n")
    with pytest.raises(InputError, match="line 2: label 'great' is none of the classes bad, good"):
        Text(str(tmp_path / "x.tsv"), classes=("bad", "good")).open_splits("")


@pytest.mark.parametrize(
    "name", ["two.csv", "number.jsonl", "again.csv", "parquet.csv", "cut.json"]
)
def test_prediction_refuses_the_same(tmp_path, name):
    (tmp_path / name).write_bytes(REFUSED[name][0])
    with pytest.raises((InputError, ValueError)):
        found = items.open_items(str(tmp_path / name), "text", None, None)
        for i in range(len(found)):
            found.fetch(i)


def test_a_mark_where_files_were_joined_is_of_no_text(tmp_path):
    path = tmp_path / "x.csv"
    path.write_bytes(b"text,label\na,1\n\xef\xbb\xbfb,2\n")
    rows = Rows(path, "csv", ["text", "label"])
    assert [labelled(rows, i) for i in range(2)] == [("a", "1"), ("b", "2")]


def test_a_text_file_trains_from_where_it_is(tmp_path):
    """Its rows are not held: a process that opens 30 MB of texts takes a few."""
    path = tmp_path / "x.csv"
    with path.open("w") as file:
        file.write("text,label\n")
        file.writelines(f"{i} {'long ' * 600},{i % 2}\n" for i in range(10_000))
    script = (
        "import sys, tracemalloc; from input.text import Text, files\n"
        "tracemalloc.start(); splits = Text(sys.argv[1]).open_splits('')\n"
        "print(tracemalloc.get_traced_memory()[1], len(splits[0]))"
    )
    done = subprocess.run(
        [sys.executable, "-c", script, str(path)], cwd=ROOT, capture_output=True, check=True
    )
    most, count = map(int, done.stdout.split())
    assert most < path.stat().st_size / 5 and count > 8000
