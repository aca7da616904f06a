import hashlib
import json
import os
import threading
import tracemalloc

import numpy as np
import pytest
import tensorflow as tf
from pictures import png, saved
from PIL import Image

from input import InputError, items
from input.images import preprocessing
from input.raw import Limits

pytestmark = pytest.mark.fast
SMALL = preprocessing.Preprocessing(8, "none", mean=(0.5,) * 3, std=(0.2,) * 3)


def encoded(kind="PNG", size=(5, 4)):
    return saved(Image.new("RGB", size, (200, 30, 30)), kind)


@pytest.mark.parametrize(
    ("kind", "raw", "message"),
    [
        ("image", png(30000, 30000, 8, 2, []), "30000 x 30000 pixels, more than the 1000 that"),
        ("image", png(50, 50, 8, 2, []), "50 x 50 pixels, more than the 1000 that"),
        ("text", b" \n", "the text is empty"),
        ("text", b"good \xff", "not UTF-8 .at its byte 6"),
        ("text", b"x" * 21, "21 bytes, more than the 20 that"),
    ],
)
def test_what_is_refused(kind, raw, message):
    with pytest.raises(ValueError, match=message):
        Limits(pixels=1000, text=20).check(kind, raw)


def test_what_is_accepted():
    for kind, raw in (
        ("image", encoded()), ("image", encoded("JPEG")), ("text", "größe".encode())
    ):  # fmt: skip
        Limits().check(kind, raw)


@pytest.mark.parametrize("kind", ["PNG", "JPEG"])
def test_the_graph_looks_at_headers_too(kind):
    image = encoded(kind, (50, 40))
    seen = SMALL.evaluation(tf.constant(image), 2000)
    assert np.array_equal(seen, SMALL.evaluation(tf.constant(image)))
    with pytest.raises(tf.errors.InvalidArgumentError, match="more than 1999 pixels"):
        SMALL.evaluation(tf.constant(image), 1999)


def test_a_folder_holds_every_file_in_order(tmp_path):
    for name in ("b/2.png", "b/10.jpg", "a.txt", ".hidden", "b/.trash/x.png"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_bytes(name.encode())
    (tmp_path / "loop.png").symlink_to(tmp_path / "loop.png")
    os.mkfifo(tmp_path / "pipe.png")
    (tmp_path / os.fsdecode(b"caf\xe9.png")).write_bytes(b"c")
    found = items.open_items(str(tmp_path), "image", None, None)
    names = [found.name(i) for i in range(len(found))]
    assert names[:3] == ["a.txt", "b/10.jpg", "b/2.png"] and names[4:] == ["loop.png", "pipe.png"]
    assert names[3].startswith("caf\ufffd") and found.fetch(3)[0] == b"c"
    for place in (4, 5):
        with pytest.raises((OSError, ValueError)):
            found.fetch(place)
    assert found.fetch(1) == (b"b/10.jpg", None)
    before = found.digest
    (tmp_path / "a.txt").write_text("longer")
    assert items.open_items(str(tmp_path), "image", None, None).digest != before


def rows(path, content, kind="text", form=None, field=None):
    path.write_bytes(content)
    found = items.open_items(str(path), kind, form, field)
    results = []
    for i in range(len(found)):
        try:
            results.append((found.name(i), found.fetch(i)[0].decode()))
        except ValueError as error:
            results.append((found.name(i), str(error)))
    return results


def test_lines(tmp_path):
    found = rows(tmp_path / "x.txt", "\ufeffa\r\n\nb\u2028c\n".encode())
    assert found == [(1, "a"), (2, ""), (3, "b\u2028c")]


WIDE = (
    "the row has 3 columns, not 2: quote texts with commas in a .csv, and take tabs out of texts "
    "in a .tsv"
)


def test_columns(tmp_path):
    content = b'id,text\n1,"a, b"\n2,c,d\n\n3,"e\nf"\n'
    assert rows(tmp_path / "x.csv", content) == [
        (2, "a, b"), (3, WIDE), (5, "e\nf")
    ]  # fmt: skip
    assert rows(tmp_path / "x.tsv", b'id\ttext\n1\t"a\n') == [(2, '"a')]
    assert rows(tmp_path / "x", b"id,t\n1,a\n", form="csv", field="t") == [(2, "a")]
    with pytest.raises(InputError, match="no column 'text', only id, t"):
        rows(tmp_path / "y.csv", b"id,t\n1,a\n")
    with pytest.raises(InputError, match="line 2: unexpected end of data"):
        rows(tmp_path / "y.csv", b'text\n"a\n')


def test_json_lines(tmp_path):
    content = b'{"text": "a"}\n\nnothing\n{"other": 1}\n"b"\n{"text": 5}\n' + b"[" * 100_000
    found = rows(tmp_path / "x.jsonl", content)
    assert [line for line, _ in found] == [1, 3, 4, 5, 6, 7]
    assert [text for _, text in found][::3] == ["a", "b"]
    assert "not JSON" in found[1][1] and "no text in 'text'" in found[2][1]


@pytest.mark.parametrize("form", ["txt", "csv", "tsv", "jsonl"])
def test_a_large_file_stays_where_it_is(tmp_path, form):
    path, text = tmp_path / f"x.{form}", "a long text " * 50
    wrapped = {"csv": f'"{text},\n"', "jsonl": f'{{"text": "{text}"}}'}.get(form, text)
    with path.open("w") as file:
        file.write("text\n" if form in ("csv", "tsv") else "")
        file.writelines(f"{wrapped}\n" for _ in range(10_000))
    tracemalloc.start()
    found = items.open_items(str(path), "text", None, None)
    texts = {found.fetch(i)[0] for i in (0, 5_000, 9_999)}
    held, most = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    expected = text if form == "jsonl" else wrapped.strip('"')
    assert len(found) == 10_000 and texts == {expected.strip().encode()}
    assert held < path.stat().st_size / 10
    assert most < path.stat().st_size / 2  # a block of it at once, for the digest


@pytest.mark.parametrize("kind", ["text", "image"])
def test_the_digest_is_that_of_jobs_begun_before(tmp_path, kind):
    """As when the whole file was in memory: what was begun then goes on."""
    (tmp_path / "a.png").write_bytes(encoded())
    path, field = tmp_path / "x.csv", {"text": "text", "image": "path"}[kind]
    content = f"{field}\na.png\nmissing.png\n".encode()
    path.write_bytes(content)
    found = tmp_path.joinpath("a.png").stat()
    states = [(found.st_size, found.st_mtime_ns), (0, 0)] if kind == "image" else []
    expected = hashlib.sha256(json.dumps(["csv", field, states]).encode() + content).hexdigest()
    assert items.open_items(str(path), kind, None, None).digest == expected


def test_a_row_that_names_nothing_does_not_make_the_folder_part_of_the_input(tmp_path):
    (tmp_path / "x.jsonl").write_text('{"path": ""}\nnothing\n')
    before = items.open_items(str(tmp_path / "x.jsonl"), "image", None, None).digest
    (tmp_path / "out.jsonl.partial").mkdir()  # as a job does beside its input
    assert items.open_items(str(tmp_path / "x.jsonl"), "image", None, None).digest == before


def test_a_file_that_changes_is_not_read_on(tmp_path):
    path = tmp_path / "x.txt"
    path.write_text("a\nb\n")
    found = items.open_items(str(path), "text", None, None)
    (tmp_path / "other").write_text("c\n")
    (tmp_path / "other").replace(path)  # another file of that name
    assert found.fetch(1)[0] == b"b"
    found = items.open_items(str(path), "text", None, None)
    with path.open("a") as file:
        file.write("d\n")
    with pytest.raises(InputError, match="changed while it was read"):
        found.fetch(0)


def test_a_pipe_is_read_once(tmp_path):
    os.mkfifo(tmp_path / "x.csv")
    writer = threading.Thread(target=lambda: (tmp_path / "x.csv").write_text("text\na\nb\n"))
    writer.start()
    found = items.open_items(str(tmp_path / "x.csv"), "text", None, None)
    writer.join()
    assert [found.fetch(i)[0] for i in (1, 0, 1)] == [b"b", b"a", b"b"]


def test_carriage_returns_within_a_text_are_its_own(tmp_path):
    assert rows(tmp_path / "x.txt", b"a\rb\r\nc") == [(1, "a\rb"), (2, "c")]
    assert rows(tmp_path / "x.csv", b'id,text\r\n1,"a\rb\r\nc"\r\n') == [(2, "a\rb\nc")]
    assert rows(tmp_path / "y.csv", "\ufefftext\na\n".encode()) == [(2, "a")]


def test_bytes_that_are_not_utf8_keep_their_row(tmp_path):
    path = tmp_path / "x.csv"
    path.write_bytes(b"text\ngood\nb\xffd\n")
    found = items.open_items(str(path), "text", None, None)
    assert found.fetch(0)[0] == b"good"
    with pytest.raises(ValueError, match="not UTF-8"):
        Limits().check("text", found.fetch(1)[0])


def test_paths_of_images_are_from_where_the_list_is(tmp_path):
    (tmp_path / "images").mkdir()
    (tmp_path / "images/1.png").write_bytes(encoded())
    (tmp_path / "list.csv").write_text("path\nimages/1.png\nimages/2.png\n")
    found = items.open_items(str(tmp_path / "list.csv"), "image", None, None)
    assert found.name(0) == "images/1.png" and found.fetch(0)[0] == encoded()
    with pytest.raises(OSError, match="No such file"):
        found.fetch(1)
    before = found.digest
    (tmp_path / "images/1.png").write_bytes(encoded(size=(9, 9)))
    assert items.open_items(str(tmp_path / "list.csv"), "image", None, None).digest != before
    (tmp_path / "list.jsonl").write_text('{"path": "\\ud800.png"}\n')
    found = items.open_items(str(tmp_path / "list.jsonl"), "image", None, None)
    assert "\ufffd" in found.name(0)
    with pytest.raises((OSError, ValueError)):
        found.fetch(0)


@pytest.mark.parametrize(
    ("name", "kind", "message"),
    [
        ("missing.txt", "text", "does not exist"),
        ("x.dat", "text", "give --format"),
        (".", "text", "is a folder, but a model of texts"),
        ("empty", "image", "has no files"),
        ("empty.txt", "text", "has no rows"),
    ],
)
def test_no_input(tmp_path, name, kind, message):
    (tmp_path / "empty").mkdir()
    (tmp_path / "x.dat").write_text("a")
    (tmp_path / "empty.txt").write_text("")
    with pytest.raises(InputError, match=message):
        items.open_items(str(tmp_path / name), kind, None, None)
