"""The server as clients meet it: a process of its own, real models, real sockets.

A server takes seconds to start, so few tests start one and make many checks.
"""

import base64
import contextlib
import gzip
import http.client
import json
import os
import signal
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from types import SimpleNamespace

import exported
import pytest
from pictures import saved
from PIL import Image
from ranks import ROOT
from served import LIMIT, Served, everything, wait_for

from app.errors import UsageError
from app.serving import server
from app.serving.versions import About, ModelVersion

PAGE = "https://shop.example"
HALF, TEXTS, IMAGES = (f"/v1/models/{name}" for name in ("half_plus_two", "lengths", "renamed"))


def test_numbers_and_all_that_clients_do_wrong(tmp_path):
    flags = {"max_body_mb": 0.2, "request_seconds": 1.5, "max_batch": 8}
    with Served(exported.half_plus_two(tmp_path), **flags) as half:
        must_answer_as_documented(half)
        must_say_in_one_sentence_what_is_wrong(half)
        must_not_mix_up_its_clients(half)
        must_refuse_large_bodies_with_an_answer(half)
        must_take_bodies_that_are_compressed(half)
        must_refuse_what_is_no_json(half)
        must_not_let_pages_of_other_origins_in(half)
        must_refuse_slow_clients_and_be_held_up_by_none(half)
        must_refuse_what_is_no_http(half)
        must_show_health_and_metrics(half)
        must_let_the_page_run_nothing_but_itself(half)


def test_texts_and_what_is_in_flight_when_it_is_stopped(tmp_path):
    flags = {"max_text": 1000, "grace_seconds": 20, "cors_origins": f"{PAGE},http://localhost:3000"}
    with Served(exported.lengths(tmp_path), **flags) as served:
        must_answer_texts(served)
        must_let_pages_of_its_origins_in(served)
        must_cut_large_requests(served)
        page = served.get("/")[1]
        assert 'data-kind="text"' in page and "2 classes: even, odd" in page and "float32" in page
        body = {"signature_name": "slow", "inputs": 400.0}
        pending = served.in_flight(f"{TEXTS}:predict", 6, body)
        idle = served.connect()
        assert served.stop() == (0, "")
        idle.close()
        assert [one.result() for one in pending] == [(200, {"outputs": 400.0})] * 6
        with pytest.raises(OSError):
            served.connect()


def test_images_a_full_queue_and_clients_that_hang_up(tmp_path):
    flags = {"name": "renamed", "max_batch": 1, "queue": 4, "grace_seconds": 1}
    with Served(exported.light(tmp_path), **flags) as served:
        must_know_images(served, f"{IMAGES}:predict")
        endless = {"signature_name": "slow", "inputs": 1e9}  # holds a worker to the end
        pending = served.in_flight(f"{IMAGES}:predict", 2, endless)
        body = b'{"signature_name": "slow", "inputs": 1.0}'
        head = f"POST {IMAGES}:predict HTTP/1.1\r\nHost: x\r\nContent-Length: {len(body)}\r\n\r\n"
        waiting = [served.connect() for _ in range(4)]
        for client in waiting:
            client.sendall(head.encode() + body)
        wait_for(lambda: served.metric("scaleproof_queue_length") == 4)
        status, headers, data = served.ask("POST", f"{IMAGES}:predict", body)
        assert status == 429 and headers["Retry-After"] == "1"
        assert "4 instances wait" in json.loads(data)["error"]
        assert served.get("/readyz")[0] == 503
        for client in waiting[:2]:
            client.close()
        wait_for(lambda: served.metric("scaleproof_queue_length") == 2)
        wait_for(lambda: served.metric('scaleproof_requests_total{code="499"') == 2)
        assert served.get("/readyz")[0] == 200
        assert served.stop()[0] == 0  # what computes takes longer than the grace
        for status, answer in (one.result() for one in pending):
            assert status == 503 and "about to stop" in answer["error"]
        for client in waiting[2:]:
            assert everything(client).startswith(b"HTTP/1.1 503 ")
            client.close()


def must_answer_as_documented(half):
    assert half.post(f"{HALF}:predict", {"instances": [1.0, 2.0, 5.0]}) == (
        200, {"predictions": [2.5, 3.0, 4.5]}
    )  # fmt: skip
    assert half.post(f"{HALF}/versions/123:predict", {"inputs": {"x": [1.0]}}) == (
        200, {"outputs": [2.5]}
    )  # fmt: skip
    body = {"signature_name": "regress", "examples": [{"x": 1.0}, {"x": 2.0}]}
    assert half.post(f"{HALF}:regress", body) == (200, {"results": [2.5, 3.0]})
    status, text = half.get(HALF)
    fine = {"error_code": "OK", "error_message": ""}
    version = {"version": "123", "state": "AVAILABLE", "status": fine}
    assert (status, json.loads(text)) == (200, {"model_version_status": [version]})
    status, text = half.get(f"{HALF}/versions/123/metadata")
    found = json.loads(text)
    assert found["model_spec"] == {
        "name": "half_plus_two", "signature_name": "", "version": "123"
    }  # fmt: skip
    x = found["metadata"]["signature_def"]["signature_def"]["serving_default"]["inputs"]["x"]
    assert x["dtype"] == "DT_FLOAT" and x["tensor_shape"]["dim"] == [{"size": "-1", "name": ""}]
    assert half.line.startswith("serving half_plus_two (version 123, any) on http://127.0.0.1:")


WRONG = [
    ("GET", "/nothing", None, 404, "there is nothing at /nothing."),
    ("GET", "/v1/models/half", None, 404, "there is no model 'half'"),
    ("POST", "/v1/models/half:predict", '{"instances": [1]}', 404, "there is no model 'half'"),
    ("GET", f"{HALF}/versions/9", None, 404, "version 123, not 9"),
    ("GET", f"{HALF}/versions/x/metadata", None, 404, "version 123, not x"),
    ("POST", f"{HALF}/versions/9:predict", '{"instances": [1]}', 404, "version 123, not 9"),
    ("POST", f"{HALF}:guess", "{}", 404, "there is nothing at"),
    ("GET", f"{HALF}:predict", None, 405, "takes no GET"),
    ("PUT", f"{HALF}:predict", "{}", 405, "takes no PUT"),
    ("POST", HALF, "{}", 405, "takes no POST"),
    ("DELETE", "/", None, 405, "takes no DELETE"),
    ("POST", f"{HALF}:predict", "", 400, "not JSON"),
    ("POST", f"{HALF}:predict", '{"instances": ["a"]}', 400, "instance 0: it must be a number"),
    ("POST", f"{HALF}:predict", '{"instances": [1], "signature_name": 3}', 400, "must be a string"),
    ("POST", f"{HALF}:predict", '{"instances": [1], "signature_name": "no"}', 400, "no signature"),
    ("POST", f"{HALF}:classify", '{"examples": [{"x": 1.0}]}', 400, "none is for :classify"),
    ("POST", f"{HALF}:regress", '{"examples": [{"z": 1.0}]}', 400, "instance 0: "),
    (
        "POST", f"{HALF}:predict",
        '{"signature_name": "picky", "instances": [[1], [2], [-3]]}', 400, "instance 2: ",
    ),
]  # fmt: skip


def must_say_in_one_sentence_what_is_wrong(half):
    for method, path, body, status, reason in WRONG:
        found, headers, data = half.ask(method, path, body)
        assert found == status, (method, path, data)
        assert headers["Content-Type"] == "application/json"
        error = json.loads(data)["error"]
        assert reason in error and error.endswith(".") and "\n" not in error and "{{" not in error
        assert status != 405 or headers["Allow"]


def must_not_mix_up_its_clients(half):
    batches, taken = half.metric("scaleproof_batch_size_count"), 0

    def client(number):
        connection = http.client.HTTPConnection("127.0.0.1", half.port, timeout=LIMIT)
        for i in range(20):
            # of three inner shapes, as only like ones can be joined; some larger than a batch
            rows = 1 + (number * i) % 11
            values = [[float(1000 * number + 10 * i + r)] * (1 + number % 3) for r in range(rows)]
            body = json.dumps({"signature_name": "picky", "instances": values})
            connection.request("POST", f"{HALF}:predict", body)
            response = connection.getresponse()
            text = response.read()
            if response.status == 429:
                continue
            assert json.loads(text) == {"predictions": [[2 * x for x in row] for row in values]}
        connection.close()
        return number

    with ThreadPoolExecutor(64) as clients:
        assert list(clients.map(client, range(64))) == list(range(64))
    taken = half.metric('scaleproof_requests_total{code="200",kind="predict"')
    assert half.metric("scaleproof_batch_size_count") - batches < taken


def must_refuse_large_bodies_with_an_answer(half):
    body = json.dumps({"instances": [1.0] * 200_000})
    status, headers, data = half.ask("POST", f"{HALF}:predict", body)
    assert status == 413 and headers["Connection"] == "close"
    assert json.loads(data)["error"] == "the body must not be larger than 200000 bytes."

    def endless():
        for _ in range(100):
            yield b"[" * 10_000

    status, _, data = half.ask("POST", f"{HALF}:predict", endless())  # chunked: no length is sent
    assert status == 413 and "200000" in json.loads(data)["error"]


def must_take_bodies_that_are_compressed(half):
    def ask(body, encoding="gzip", **headers):
        path = f"{HALF}:predict"
        status, found, data = half.ask("POST", path, body, Content_Encoding=encoding, **headers)
        return status, json.loads(data).get("error", data), found

    plain = b'{"instances": [1.0' + b" " * 100_000 + b"]}"
    small = gzip.compress(plain)
    for encoding in ("gzip", "GZIP", "x-gzip"):
        assert ask(small, encoding)[0] == 200
    assert ask(gzip.compress(plain[:99]) + gzip.compress(plain[99:]))[0] == 200  # two files
    assert ask(plain, "identity")[0] == 200
    assert ask(iter([small[:50], small[50:]]))[0] == 200  # chunked
    status, reason, headers = ask(small, "br")
    assert status == 415 and '"br"' in reason and headers["Accept-Encoding"] == "gzip, identity"
    assert ask(small, "gzip, gzip")[0] == 415
    assert ask(plain)[:2] == (
        400, "the body is not gzip, as its Content-Encoding says, or it is damaged."
    )  # fmt: skip
    assert ask(small[:-9])[:2] == (400, "the body's gzip ends too early.")
    assert ask(small + b"garbage")[0] == 400
    bomb = gzip.compress(bytes(150_000_000), 9)
    assert len(bomb) < 200_000  # as it is sent it is within the limit
    status, reason, _ = ask(bomb)
    assert status == 413 and reason == "the body must not be larger than 200000 bytes."
    status, reason, _ = ask(small, "")
    assert status == 400 and "Content-Encoding: gzip" in reason
    head = f"POST {HALF}:predict HTTP/1.1\r\nHost: x\r\nContent-Encoding: gzip\r\n"
    for body, code in ((small, b"200"), (b"no", b"400")):
        with half.connect() as client:
            client.sendall(f"{head}Content-Length: {len(body)}\r\n".encode())
            client.sendall(b"Expect: 100-continue\r\n\r\n")
            assert client.recv(4096) == b"HTTP/1.1 100 Continue\r\n\r\n"
            client.sendall(body)
            assert client.recv(4096).startswith(b"HTTP/1.1 " + code)
    with half.connect() as client:  # one that is refused gets no 100
        client.sendall(f"{head}Content-Length: 200001\r\nExpect: 100-continue\r\n\r\n".encode())
        assert client.recv(4096).startswith(b"HTTP/1.1 413 ")


NO_JSON = [
    ({"Content_Type": "multipart/form-data; boundary=x"}, b"--x\r\n", 415, "a form with files"),
    ({"Content_Type": "image/jpeg"}, b"\xff\xd8\xff", 415, "an image (image/jpeg)"),
    ({}, b"\xff\xd8\xff\xe0", 400, "the body is a JPEG file"),
    ({"Content_Type": "application/octet-stream"}, b"\x89PNG\r\n\x1a\n", 400, "a PNG file"),
]


def must_refuse_what_is_no_json(half):
    for headers, body, code, reason in NO_JSON:
        status, _, data = half.ask("POST", f"{HALF}:predict", body, **headers)
        error = json.loads(data)["error"]
        assert (status, reason in error) == (code, True), error
        assert 'send {"instances": [' in error
    form = {"Content_Type": "application/x-www-form-urlencoded"}  # as curl calls what -d sends
    assert half.ask("POST", f"{HALF}:predict", {"instances": [1.0]}, **form)[0] == 200


def must_not_let_pages_of_other_origins_in(half):
    preflight = {"Origin": PAGE, "Access_Control_Request_Method": "POST"}
    status, headers, _ = half.ask("OPTIONS", f"{HALF}:predict", **preflight)
    assert status == 405 and "Access-Control-Allow-Origin" not in headers
    _, headers, _ = half.ask("GET", HALF, Origin=PAGE)
    assert "Access-Control-Allow-Origin" not in headers


def must_let_pages_of_its_origins_in(served):
    preflight = {"Access_Control_Request_Method": "POST", "Access_Control_Request_Headers": "x-a"}
    for origin in (PAGE, "http://localhost:3000"):
        status, headers, _ = served.ask("OPTIONS", f"{TEXTS}:predict", Origin=origin, **preflight)
        assert (status, headers["Access-Control-Allow-Origin"]) == (200, origin)
        assert "POST" in headers["Access-Control-Allow-Methods"]
        assert headers["Access-Control-Allow-Headers"] == "x-a" and "Origin" in headers["Vary"]
        for body, code in (({"instances": ["abc"]}, 200), ("no JSON", 400)):
            status, headers, _ = served.ask("POST", f"{TEXTS}:predict", body, Origin=origin)
            assert (status, headers["Access-Control-Allow-Origin"]) == (code, origin)
    other = "https://shop.example.evil"
    status, headers, _ = served.ask("OPTIONS", f"{TEXTS}:predict", Origin=other, **preflight)
    assert status == 400 and "Access-Control-Allow-Origin" not in headers
    _, headers, _ = served.ask("POST", f"{TEXTS}:predict", {"instances": ["a"]}, Origin=other)
    assert "Access-Control-Allow-Origin" not in headers


def must_refuse_slow_clients_and_be_held_up_by_none(half):
    head = f"POST {HALF}:predict HTTP/1.1\r\nHost: x\r\nContent-Length: 99\r\n\r\n".encode()
    slow = [half.connect() for _ in range(30)]
    for i, client in enumerate(slow):
        client.sendall(head + b'{"inst' if i % 2 else head[:20])
    assert half.post(f"{HALF}:predict", {"instances": [1.0]})[0] == 200
    for i, client in enumerate(slow):
        answer = everything(client)
        assert answer.startswith(b"HTTP/1.1 408 ")
        assert (b"the body did not" if i % 2 else b"the headers did not") in answer
        client.close()


def must_refuse_what_is_no_http(half):
    for garbage in (b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03", b"GET\r\n\r\n", b"A" * 3000,
                    b"GET /\xff HTTP/1.1\r\n\r\n"):  # fmt: skip
        with half.connect() as client:
            client.sendall(garbage + b"\r\n\r\n")
            answer = client.recv(4096)
            assert answer.startswith((b"HTTP/1.1 400 ", b"HTTP/1.1 404 ")), answer
    with half.connect() as client, contextlib.suppress(ConnectionError):
        client.sendall(b"GET / HTTP/1.1\r\n" + b"X-Long: " + b"a" * 10_000_000)
        assert client.recv(4096).startswith(b"HTTP/1.1 431 ")
    assert half.get("/healthz")[0] == 200


def must_show_health_and_metrics(half):
    assert half.get("/healthz") == (200, '{"status":"lives"}')
    assert half.get("/readyz") == (200, '{"status":"ready"}')
    half.post(f"{HALF}:predict", {"instances": [1.0]})
    before = half.metric("scaleproof_instances_total")
    half.post(f"{HALF}:predict", {"instances": [1.0, 2.0]})
    assert half.metric("scaleproof_instances_total") == before + 2
    status, text = half.get("/monitoring/prometheus/metrics")
    assert status == 200
    for name in ('requests_total{code="200",kind="predict"}', "queue_length", "batch_size_bucket",
                 'request_seconds_bucket{kind="predict"', "batches_running"):  # fmt: skip
        assert f"scaleproof_{name}" in text
    half.get("/made/up/by/a/client")
    assert "made" not in half.get("/metrics")[1]


def must_let_the_page_run_nothing_but_itself(half):
    status, headers, data = half.ask("GET", "/")
    assert status == 200 and headers["Content-Type"] == "text/html; charset=utf-8"
    policy = headers["Content-Security-Policy"]
    assert "default-src 'none'" in policy and "script-src 'sha256-" in policy
    assert "unsafe" not in policy
    assert b"half_plus_two" in data and b"picky" in data and b"http" not in data


def must_answer_texts(served):
    assert "(version 3, text, 2 classes)" in served.line
    one = {"class": "odd", "probability": 0.75, "classes": ["odd", "even"], "scores": [0.75, 0.25]}
    assert served.post(f"{TEXTS}:predict", {"instances": ["abc"]}) == (200, {"predictions": [one]})
    body = {"signature_name": "single", "inputs": {"text": "abc"}}
    assert served.post(f"{TEXTS}:predict", body) == (200, {"outputs": one})
    body = {"examples": [{"text": "abc"}, {"text": {"b64": "YWI="}}]}
    assert served.post(f"{TEXTS}:classify", body) == (
        200, {"results": [[["odd", 0.75], ["even", 0.25]], [["even", 0.75], ["odd", 0.25]]]}
    )  # fmt: skip
    status, answer = served.post(f"{TEXTS}:predict", {"instances": ["fine", "a" * 1001]})
    assert status == 400 and answer["error"].startswith("instance 1: the text has 1001 bytes")


def must_cut_large_requests(served):
    lengths = [(37 * i) % 101 + 1 for i in range(200)]
    status, answer = served.post(f"{TEXTS}:predict", {"instances": ["x" * n for n in lengths]})
    assert status == 200
    wanted = ["odd" if n % 2 else "even" for n in lengths]
    assert [one["class"] for one in answer["predictions"]] == wanted
    status, answer = served.post(f"{TEXTS}:predict", {"instances": ["x"] * 257})
    assert status == 400 and "send fewer at once" in answer["error"]


def must_know_images(served, path):
    def coded(color, kind, most=None):
        content = saved(Image.new("RGB", (64, 64), color), kind)
        return {"b64": base64.b64encode(content[:most]).decode()}

    body = {"instances": [coded("white", "PNG"), coded("black", "JPEG")]}
    status, answer = served.post(path, body)
    assert [one["class"] for one in answer["predictions"]] == ["bright", "dark"]
    for kind, most in (("JPEG", 640), ("PNG", 80)):  # whole headers, and half of the pixels
        body = {"instances": [coded("white", kind), coded("white", kind, most)]}
        status, answer = served.post(path, body)
        assert status == 400 and answer["error"].startswith("instance 1: "), answer
        assert answer["error"].endswith(".") and "{{" not in answer["error"]


def test_a_port_that_is_taken_is_named():
    with server.listening("127.0.0.1", 0) as first:
        first.listen()
        port = first.getsockname()[1]
        with pytest.raises(UsageError, match=f"127.0.0.1:{port} cannot be used"):  # noqa: SIM117
            with server.listening("127.0.0.1", port):
                pass
    with pytest.raises(UsageError, match="no address"), server.listening("no.such.host.", 0):
        pass


@pytest.mark.parametrize(
    "origin", ["shop.example", "https://a.example/", "https://a.example/b", ""]
)
def test_origins_are_as_browsers_send_them(origin):
    with pytest.raises(UsageError, match=r"--cors_origins=.* without a path"):
        server.main(server.Settings(str(ROOT), cors_origins=("*", origin)))


def test_a_host_that_others_can_reach_is_warned_of():
    version = ModelVersion(ROOT, "shop", 3, About())
    for host, is_warned in (("127.0.0.1", False), ("0.0.0.0", True)):
        with server.listening(host, 0) as listener:
            settings = server.Settings(str(ROOT))
            line = server.describe(SimpleNamespace(version=version), settings, listener, 2)
        assert line.startswith("warning: 0.0.0.0 can be reached by others") == is_warned
        assert f"serving shop (version 3, any) on http://{host}:" in line


@pytest.mark.parametrize("given", [None, "0"])
@pytest.mark.parametrize(("write", "own"), [(exported.lengths, "1"), (exported.light, None)])
def test_variables_are_chosen_before_tensorflow_is_imported(write, own, given, tmp_path):
    memory, kernels = "TF_CPU_ALLOCATOR_USE_BFC", "TF_ENABLE_ONEDNN_OPTS"
    found = f"[os.environ.get(n) for n in {[memory, kernels]}], 'tensorflow' in sys.modules"
    code = (
        "import os, sys\nfrom app.serving import server\n"
        f"server.hold_threads = lambda cores: sys.exit(str(({found})))\n"
        f"server.main(server.Settings({str(write(tmp_path))!r}, port=0))"
    )
    env = {n: v for n, v in os.environ.items() if n not in (memory, kernels)}
    env |= {memory: given, kernels: given} if given else {}
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, timeout=LIMIT, cwd=ROOT,
        env=env,
    )  # fmt: skip
    assert done.stderr == f"{([given or 'true', given or own], False)}\n"


def test_it_can_be_stopped_before_it_serves(tmp_path):
    (tmp_path / "saved_model.pb").write_bytes(b"x")
    code = (
        "import os, signal\nfrom app.serving import server\n"
        f"server.hold_threads = lambda cores: os.kill(os.getpid(), {signal.SIGTERM:d})\n"
        f"server.main(server.Settings({str(tmp_path)!r}, port=0))"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, timeout=LIMIT, cwd=ROOT
    )
    assert done.returncode == 0 and not done.stdout
