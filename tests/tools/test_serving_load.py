"""The load test of a server: requests, answers, the report, and servers that fail."""

import json
import socket
import threading

import exported
import psutil
import pytest

from app.errors import DONE, NUMBERS, DataError
from app.serving import versions
from app.tools.serving import benchmark, clients, report
from app.tools.serving.clients import Answer
from app.tools.serving.report import Setting
from input import InputError
from input.items import open_items


def requests_of(model, path):
    found = versions.find(model)
    return benchmark.make_requests(found, open_items(str(path), found.about.kind, None, None))


def measured(model, path, folder, *flags):
    settings = benchmark.make_settings(8, [3])
    flags = [f"--model={model}", *flags]
    return benchmark.main(settings, requests_of(model, path), 0.3, flags, folder)


@pytest.fixture
def quick(monkeypatch):
    monkeypatch.setattr(benchmark, "KERNELS", (False,))
    monkeypatch.setattr(benchmark, "ROUNDS", 2)


def test_a_server_is_measured(tmp_path, quick, capfd):
    texts = tmp_path / "texts.jsonl"
    texts.write_text('{"text": "fine"}\n"odd"\n{"nothing": 1}\n' + json.dumps("x" * 2000) + "\n")
    model = exported.lengths(tmp_path / "model")
    assert measured(model, texts, tmp_path / "report", "--threads=2") == DONE
    single, batched = json.loads((tmp_path / "report" / "serving.json").read_text())
    assert (single["max_batch"], single["clients"]) == (1, 1)
    assert (batched["max_batch"], batched["clients"]) == (8, 3)
    for row in (single, batched):
        assert row["answers"] > 0 and row["answers_per_second"] > 0 and len(row["rounds"]) == 2
        assert 0 < row["p50_ms"] <= row["p90_ms"] <= row["p99_ms"]
        assert row["wrong"] == row["refused"] == 0
    printed = capfd.readouterr().out
    assert (tmp_path / "report" / "serving.txt").read_text() in printed
    assert "times the best one by one" in printed
    assert not [p for p in psutil.Process().children() if "serve" in p.cmdline()]


def test_a_server_that_does_not_start_is_named(tmp_path, quick):
    texts = tmp_path / "texts.txt"
    texts.write_text("fine\n")
    model = exported.lengths(tmp_path / "model")
    next(model.glob("*/saved_model.pb")).write_bytes(b"damaged")
    with pytest.raises(DataError, match=r"did not start: error: .*; see .*serve-0-1.log"):
        measured(model, texts, tmp_path / "report")


def test_a_number_of_clients_is_measured_once():
    one, few, many = benchmark.make_settings(8, [5, 2, 5])[:3]
    assert (one, few, many) == ((False, 1, 1), (False, 8, 2), (False, 8, 5))
    assert len(benchmark.make_settings(8, [5, 2, 5])) == 6


def test_input_without_readable_items_is_an_error(tmp_path):
    texts = tmp_path / "texts.jsonl"
    texts.write_text("{}\n")
    with pytest.raises(InputError, match="nothing that can be read"):
        requests_of(exported.lengths(tmp_path / "model"), texts)


def test_items_are_taken_evenly(tmp_path):
    texts = tmp_path / "texts.txt"
    texts.write_text("".join(f"text {i}\n" for i in range(2 * benchmark.MAX_REQUESTS + 1)))
    requests = requests_of(exported.lengths(tmp_path / "model"), texts)
    assert len(requests) <= benchmark.MAX_REQUESTS and len(set(requests)) == len(requests)
    assert b"text 0" in requests[0]
    assert f"text {2 * benchmark.MAX_REQUESTS}".encode() not in requests[1]
    assert int(requests[-1].split(b"text ")[1].split(b'"')[0]) > 1.9 * benchmark.MAX_REQUESTS


def served(*pieces):
    """The port of a server that reads a request before each piece, sends it, and closes."""
    listener = socket.create_server(("127.0.0.1", 0))

    def serve():
        with listener, listener.accept()[0] as client:
            for piece in pieces:
                client.recv(65536)
                client.sendall(piece)
            client.recv(65536)

    threading.Thread(target=serve, daemon=True).start()
    return listener.getsockname()[1]


def http(status, body):
    return b"HTTP/1.1 %d x\r\nContent-Length: %d\r\n\r\n%s" % (status, len(body), body)


def test_a_client_sends_in_order_and_reads_whole_answers():
    refusal = b'{"error":"no"}'
    port = served(http(200, b"12"), http(400, refusal), http(200, b"3" * 100_000))
    answers = clients.send_each_once(port, [b"a", b"b", b"c"])
    assert [a.request for a in answers] == [0, 1, 2]
    assert [a.status for a in answers] == [200, 400, 200]
    assert [a.body for a in answers] == [b"12", refusal, b"3" * 100_000]
    assert all(a.begin < a.end for a in answers)


def test_the_error_of_a_closed_connection_names_the_log(tmp_path):
    port = served(http(200, b"1"))
    fails = pytest.raises(DataError, match=r"stopped answering .* closed .* log in")
    with fails, benchmark.servers(set(), [], tmp_path):
        clients.send_for(port, [b"a"], 1, 60, 0)


def test_no_client_begins_after_the_time_is_over():
    answers = clients.send_for(served(http(200, b"1")), [b"a"], 1, 1e-9, 0)
    assert answers == []


def answer(request, end=1.0, status=200, **scores):
    row = {"classes": list(scores), "scores": list(scores.values())}
    return Answer(request, end - 0.5, end, status, json.dumps({"predictions": [row]}).encode())


def test_answers_that_are_mixed_up_are_found():
    singles = [answer(0, a=0.9, b=0.1), answer(1, a=0.3, b=0.7)]
    expected = list(map(report.prediction, singles))
    good = [answer(0, b=0.1, a=0.90001), answer(1, a=0.3, b=0.7), answer(1, end=3.0, a=0.3, b=0.7)]
    fine = report.summarize(Setting(False, 8, 2), [good, good], 2.0, expected)
    assert fine["wrong"] == 0 and fine["answers"] == 6 and fine["rounds"] == [1.0, 1.0]
    assert fine["p50_ms"] == pytest.approx(500)
    bad = [answer(1, a=0.9, b=0.1), answer(0, a=0.9), answer(0, status=429, a=0.9, b=0.1)]
    found = report.summarize(Setting(False, 8, 2), [bad], 2.0, expected)
    assert (found["wrong"], found["refused"], found["answers"]) == (2, 1, 2)
    assert report.exit_code([fine]) == DONE and report.exit_code([fine, found]) == NUMBERS


def test_answers_agree_but_for_rounding():
    assert report.agrees([1, "a", [0.5, 0.25]], [1, "a", [0.50009, 0.25]])
    for other in ([1, "a", [0.5002, 0.25]], [1, "b", [0.5, 0.25]], [1, "a"], [2, "a", [0.5, 0.25]]):
        assert not report.agrees([1, "a", [0.5, 0.25]], other)
    assert not report.agrees({"a": 1.0}, {"b": 1.0}) and not report.agrees(1.0, "1.0")


def test_the_report_names_the_best_settings(capfd):
    rows = [
        {"onednn": o, "max_batch": b, "clients": c, "answers_per_second": e, "rounds": [e, 1.2 * e],
         "p50_ms": ms, "p90_ms": ms, "p99_ms": ms, "answers": 5, "refused": r, "wrong": 0}
        for o, b, c, e, ms, r in (
            (False, 1, 1, 50.0, 20.0, 0), (False, 32, 64, 140.0, 400.0, 0),
            (True, 1, 1, 40.0, 25.0, 0), (True, 32, 64, 160.0, 350.0, 2),
        )
    ]  # fmt: skip
    most, soonest, times = report.advice(rows)
    assert "TF_ENABLE_ONEDNN_OPTS=1 ./run.sh serve --max_batch=32, 64 clients: 160.0" in most
    assert "TF_ENABLE_ONEDNN_OPTS=0 ./run.sh serve --max_batch=1, 1 client: p50 20.0" in soonest
    assert "3.20 times the best one by one" in times and "50.0 answers/s" in times
    assert report.exit_code(rows) == DONE and "2 requests were refused" in capfd.readouterr().err
    assert {len(report.line(row)) for row in rows} == {len(report.HEADING)}
