"""What is a lost peer, and what is a bug that only sounds like one."""

import pytest
import tensorflow as tf

from app import __main__, errors

SHUT_DOWN = (
    "Horovod has been shut down. This was caused by an exception on one of the ranks or an attempt "
    "to allreduce, allgather or broadcast a tensor after one of the ranks finished execution."
)
GLOO = "[/src/third_party/compatible17_gloo/gloo/transport/tcp/pair.cc:598] Connection closed by "
EAGER = "{{{{function_node __wrapped__HorovodAllreduce_device_/device:CPU:0}}}} {} [Op:Horovod...]"
GRAPH = """Graph execution error:

Detected at node gradient0 defined at (most recent call last):
  File "<string>", line 111, in horovod_allreduce

{}
\t [[{{{{node gradient0}}}}]] [Op:__inference_graph_12]"""
SEVERAL = "Graph execution error:\n\n2 root error(s) found.\n  (0) UNKNOWN:  {}\n\t [[...]]"


def unknown(text):
    return tf.errors.UnknownError(None, None, text)


@pytest.mark.parametrize("form", [EAGER, GRAPH, SEVERAL, "{}"])
@pytest.mark.parametrize("text", [SHUT_DOWN, GLOO])
def test_what_horovod_s_operators_raise_is_a_lost_peer(form, text):
    """As they were seen when a rank was killed between two sums, and in one."""
    assert errors.is_lost_peer(unknown(form.format(text)))


def test_so_is_a_server_that_does_not_answer():
    from tensorflow.python.distribute.coordinator.cluster_coordinator import PSUnavailableError

    lost = tf.errors.UnavailableError(None, None, "failed to connect")
    assert errors.is_lost_peer(lost) and errors.is_lost_peer(PSUnavailableError(lost))
    assert errors.is_lost_peer(tf.errors.AbortedError(None, None, "connection reset"))


def test_leaving_for_a_lost_peer_is_one_line(monkeypatch, capsys):
    def lost(arguments):
        raise unknown(EAGER.format(GLOO))

    monkeypatch.setattr(__main__, "run", lost)
    assert __main__.main(["train"]) == errors.LOST_PEER
    assert capsys.readouterr().err == "error: rank 0 lost a peer and stops; the peer says why.\n"


class UnavailableError(Exception):
    """A user's own, of that name."""


OF_THE_USER = [
    FileNotFoundError(2, "No such file", "/data/gloo/images/7.jpg"),
    RuntimeError(GLOO), ValueError(SHUT_DOWN), KeyError("gloo/"), UnavailableError("the shop"),
]  # fmt: skip


@pytest.mark.parametrize("error", OF_THE_USER, ids=lambda error: type(error).__name__)
def test_an_exception_of_the_user_s_is_a_bug_whatever_its_text(error, monkeypatch):
    def fail(arguments):
        raise error

    monkeypatch.setattr(__main__, "run", fail)
    with pytest.raises(type(error)):  # with its traceback; Python makes an exit code 1 of it
        __main__.main(["train"])


@pytest.mark.parametrize("error", OF_THE_USER, ids=lambda error: type(error).__name__)
@pytest.mark.parametrize("in_graph", [False, True])
def test_even_through_an_operator(error, in_graph):
    def fail():
        raise error

    def call():
        return tf.py_function(fail, [], tf.float32)

    with pytest.raises(tf.errors.OpError) as raised:
        (tf.function(call, autograph=False) if in_graph else call)()
    assert not errors.is_lost_peer(raised.value)


def test_even_from_a_data_set():
    """Where TensorFlow adds words of its own before those of the exception."""

    def fail(i):
        raise RuntimeError(GLOO)

    data = tf.data.Dataset.range(3).map(lambda i: tf.py_function(fail, [i], tf.float32))
    with pytest.raises(tf.errors.UnknownError) as raised:
        next(iter(data))
    assert "gloo/" in str(raised.value) and not errors.is_lost_peer(raised.value)
