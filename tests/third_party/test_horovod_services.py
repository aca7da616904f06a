"""Horovod's servers: no message of a stranger is run, and the honest ones pass."""

import base64
import contextlib
import pickle
import socket
import threading
import urllib.error
import urllib.request
from types import SimpleNamespace

import cloudpickle
import pytest
from horovod.runner import task_fn
from horovod.runner.common.service import task_service
from horovod.runner.common.util import secret, timeout
from horovod.runner.common.util.settings import Settings
from horovod.runner.driver import driver_service
from horovod.runner.elastic import rendezvous, worker
from horovod.runner.http import http_client, http_server

pytestmark = pytest.mark.fast
KEY = secret.make_secret_key()


class Touch:
    """Makes a file when it is unpickled."""

    def __init__(self, path):
        self.path = str(path)

    def __reduce__(self):
        return open, (self.path, "w")


class TouchAsAnswer(worker.WorkerNotificationService):
    """A stranger's service: it answers everything with an object that runs."""

    def __init__(self, canary):
        self.canary = canary
        super().__init__(KEY, None, None)

    def _handle(self, request, client):
        return Touch(self.canary)


class Driver:
    """What the rendezvous server needs of the elastic driver: it connects to each worker."""

    def __init__(self):
        self.clients = {}

    def register_worker_server(self, host, slot, addresses, key):
        self.clients[host, slot] = worker.WorkerNotificationClient(addresses, key, verbose=0)


class Listener:
    """Keeps what a worker's notification service passes on."""

    def __init__(self):
        self.seen = []

    def on_hosts_updated(self, timestamp, update):
        self.seen.append((timestamp, update))


@pytest.fixture
def canary(tmp_path):
    """A file that only a stranger's message makes."""
    yield tmp_path / "canary"
    assert not (tmp_path / "canary").exists(), "what a stranger sent was run"


@pytest.fixture
def elastic():
    """An elastic job's rendezvous server and its driver."""
    driver, server = Driver(), http_server.RendezvousServer()
    port = server.start(rendezvous.create_rendezvous_handler(driver))
    server.init([])
    yield SimpleNamespace(driver=driver, port=port)
    server.stop()


@pytest.fixture
def manager(elastic):
    """A worker that has registered its notification service."""
    manager = worker.WorkerNotificationManager()
    manager.init("127.0.0.1", elastic.port, nic="lo", hostname="worker", local_rank=0)
    yield manager
    manager._service.shutdown()


def put(port, path, body):
    """Sends a body as anybody may; the server may refuse it."""
    url = f"http://127.0.0.1:{port}/{path}"
    with contextlib.suppress(OSError):
        urllib.request.urlopen(urllib.request.Request(url, body, method="PUT"), timeout=10).close()


def send(service, message):
    """Sends a message that is signed with the service's own key."""
    with socket.create_connection(("127.0.0.1", service.get_port()), timeout=10) as connection:
        with connection.makefile("wb") as stream:
            service._wire.write(message, stream)
        connection.recv(1)  # an answer or the end: the message was read


def test_pickle_put_to_rendezvous_server_is_not_run(elastic, canary):
    body = base64.b64encode(pickle.dumps(Touch(canary)))
    put(elastic.port, "worker_addresses/worker:0", body)
    assert not elastic.driver.clients


def test_answer_of_foreign_worker_is_not_run(elastic, canary):
    service = TouchAsAnswer(canary)
    value = ({"lo": [("127.0.0.1", service.get_port())]}, KEY)
    put(elastic.port, "worker_addresses/worker:0", base64.b64encode(pickle.dumps(value)))
    service.shutdown()
    assert not elastic.driver.clients


def test_pickle_sent_to_notification_service_is_not_run(elastic, manager, canary):
    send(manager._service, Touch(canary))
    send(manager._service, cloudpickle.loads)  # a function by its name
    elastic.driver.clients["worker", 0].notify_hosts_updated(1, worker.HostUpdateResult.added)


def test_key_of_notification_service_is_not_in_store(elastic, manager):
    with pytest.raises(urllib.error.HTTPError, match="404"):
        urllib.request.urlopen(f"http://127.0.0.1:{elastic.port}/worker_addresses/worker:0")


@pytest.mark.parametrize("update", [worker.HostUpdateResult(number) for number in range(4)])
def test_notification_of_changed_hosts_arrives(elastic, manager, update):
    listener = Listener()
    manager.register_listener(listener)
    elastic.driver.clients["worker", 0].notify_hosts_updated(7, update)
    assert listener.seen == [(7, update)]


def test_signed_command_is_not_run(canary):
    service = task_service.BasicTaskService("task", 0, KEY, None)
    send(service, task_service.RunCommandRequest(f"touch {canary}", {}))
    if service._command_thread is not None:
        service._command_thread.join()
    service.shutdown()


def test_function_in_store_is_not_run(canary):
    server = http_server.KVStoreServer(verbose=0)
    port = server.start_server()
    put(port, "runfunc/func", base64.b64encode(pickle.dumps(Touch(canary))))
    with pytest.raises(pickle.UnpicklingError):
        http_client.read_data_from_kvstore("127.0.0.1", port, "runfunc", "func")
    http_client.put_data_into_kvstore("127.0.0.1", port, "result", "0", {"loss": [0.5, None]})
    result = http_client.read_data_from_kvstore("127.0.0.1", port, "result", "0")
    assert result == {"loss": [0.5, None]}
    server.shutdown_server()


def test_launch_over_several_hosts_finds_their_network():
    limit = timeout.Timeout(60, "{activity}")
    settings = Settings(key=KEY, start_timeout=limit, nics=None, verbose=0)
    driver = driver_service.HorovodRunDriverService(2, KEY, None)
    tasks = [
        threading.Thread(target=task_fn._task_fn, args=(i, 2, driver.addresses(), settings))
        for i in range(2)
    ]
    for task in tasks:
        task.start()
    assert "lo" in driver_service._run_probe(driver, settings, 2)
    for task in tasks:
        task.join()
    driver.shutdown()
