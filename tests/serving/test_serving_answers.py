"""Tensors to JSON, as TensorFlow Serving writes it."""

import json

import numpy as np
import pytest

from app.serving import answers
from app.serving.errors import RequestError

pytestmark = pytest.mark.fast


def test_answers_are_written_as_tensorflow_serving_does():
    one = {"y": np.array([0.2, np.nan, np.inf], np.float32)}
    assert answers.predictions(one, True) == b'{"predictions":[0.2,NaN,Infinity]}'
    assert answers.predictions(one, False) == b'{"outputs":[0.2,NaN,Infinity]}'
    raw = np.array([b"\xff\x00", b"a"], object)
    two = {"raw_bytes": raw, "name": raw[::-1], "n": np.array([[1], [2]], np.int64)}
    assert json.loads(answers.predictions(two, True))["predictions"] == [
        {"raw_bytes": {"b64": "/wA="}, "name": "a", "n": [1]},
        {"raw_bytes": {"b64": "YQ=="}, "name": "\ufffd\x00", "n": [2]},
    ]
    assert set(json.loads(answers.predictions(two, False))["outputs"]) == set(two)


def test_outputs_without_rows_are_told():
    with pytest.raises(RequestError, match="no row an instance"):
        answers.predictions({"y": np.float32(1)[()].reshape(())}, True)


def test_classes_and_scores_are_pairs():
    scores, classes = np.array([[0.75, 0.25]], np.float32), np.array([[b"good", b"bad"]], object)
    answer = answers.classifications({"scores": scores, "classes": classes})
    assert json.loads(answer) == {"results": [[["good", 0.75], ["bad", 0.25]]]}
    assert json.loads(answers.classifications({"scores": scores})) == {
        "results": [[["", 0.75], ["", 0.25]]]
    }
    answer = answers.regressions({"outputs": np.array([[2.5], [3]], np.float32)})
    assert json.loads(answer) == {"results": [2.5, 3.0]}
