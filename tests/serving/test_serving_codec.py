"""JSON to tensors, where every malformed body is one sentence, and tensors to JSON."""

import base64
import json

import numpy as np
import pytest
from pictures import png, saved
from PIL import Image

from app.serving import codec
from app.serving.errors import RequestError
from app.serving.model import Signature, Spec
from app.serving.tensors import InputCheck
from input.raw import Limits

pytestmark = pytest.mark.fast

ROWS = {"y": Spec("float32", (None,))}


def signature(**inputs):
    return Signature("serving_default", "predict", inputs, ROWS)


NUMBER = signature(x=Spec("float32", (None,)))
WHOLE = signature(x=Spec("int32", (None, 2)))
PIXELS = signature(images=Spec("uint8", (None, None, None, 3)))
TEXT = signature(text=Spec("string", (None,)))
IMAGE = signature(image_bytes=Spec("string", (None,)))
TWO = signature(a=Spec("float32", (None,)), b=Spec("string", (None,)))
FLAG = signature(x=Spec("bool", (None,)))
ODD = signature(x=Spec("complex64", (None,)))
SINGLE = Signature("single", "predict", {"text": Spec("string", ())}, {"class": Spec("string", ())})
EXAMPLES = Signature("classify", "classify", {"inputs": Spec("string", (None,))}, ROWS)
LIMITS = Limits(pixels=10_000, text=50)
TEXTS, IMAGES, ANY = (InputCheck(kind, LIMITS) for kind in ("text", "image", None))


def picture(kind="PNG", size=(8, 6)):
    return saved(Image.new("RGB", size, "red"), kind)


def coded(data):
    return {"b64": base64.b64encode(data).decode()}


def predict(body, of, check=ANY):
    return codec.decode_predict(codec.parse(body), of, check)


def of(key, value):
    return json.dumps({key: value}).encode()


BODIES = [
    b"",
    b"\xff\xfe",
    b"\x00",
    b"not json",
    b'{"instances": [1.0',
    b'{"instances": [1.0]} trailing',
    b"{'instances': [1.0]}",
    b"[1, 2]",
    b"3",
    b'"text"',
    b"null",
    b"true",
    b"[" * 100_000,
    b'{"instances": ' + b"[" * 100_000 + b"]" * 100_000 + b"}",
    b'{"a":' * 50_000 + b"1" + b"}" * 50_000,
    b'{"instances": [' + b"9" * 5000 + b"]}",
    b'{"instances": [Nan]}',
    b'{"instances": [01]}',
    b'{"instances": ["\xc3("]}',
    b'{"instances": ["tab\tin a string"]}',
    '{"instances": [1]}'.encode("utf-16"),
]


@pytest.mark.parametrize("body", BODIES, ids=range(len(BODIES)))
def test_a_body_that_is_no_json_object_is_refused(body):
    with pytest.raises(RequestError) as caught:
        predict(body, NUMBER)
    must_be_a_sentence(caught.value)


MALFORMED = [
    # the frame
    (b"{}", NUMBER, ANY, "neither"),
    (b'{"instances": [1], "inputs": [1]}', NUMBER, ANY, "not both"),
    (b'{"instances": []}', NUMBER, ANY, "empty"),
    (b'{"inputs": []}', NUMBER, ANY, "empty"),
    (b'{"instances": 1}', NUMBER, ANY, "must be a list"),
    (b'{"instances": {"x": 1}}', NUMBER, ANY, "must be a list"),
    (b'{"instances": "text"}', TEXT, ANY, "must be a list"),
    (b'{"instances": null}', NUMBER, ANY, "must be a list"),
    (b'{"inputs": null}', NUMBER, ANY, "must be a number, not null"),
    # types
    (b'{"instances": [1, "2"]}', NUMBER, ANY, "instance 1: it must be a number, not a string"),
    (b'{"instances": [1, null]}', NUMBER, ANY, "instance 1"),
    (b'{"instances": [true]}', NUMBER, ANY, "instance 0: it must be a number, not a boolean"),
    (b'{"instances": [{"b64": "AAAA"}]}', NUMBER, ANY, "not an object"),
    (b'{"instances": [1e39]}', NUMBER, ANY, "too large for float32"),
    (b'{"instances": [1, ' + b"9" * 400 + b"]}", NUMBER, ANY, "instance 1"),
    (b'{"instances": [[1, 2], [3, 3.5]]}', WHOLE, ANY, "instance 1: it must be a whole number"),
    (b'{"instances": [[1, 3000000000]]}', WHOLE, ANY, "does not fit int32"),
    (b'{"instances": [[1, ' + b"9" * 4000 + b"]]}", WHOLE, ANY, "does not fit int32"),
    (b'{"instances": [[1, NaN]]}', WHOLE, ANY, "whole number"),
    (b'{"instances": [[1, true]]}', WHOLE, ANY, "whole number"),
    (b'{"instances": [[[[300, 0, 0]]]]}', PIXELS, ANY, "300 does not fit uint8"),
    (b'{"instances": [[[[-1, 0, 0]]]]}', PIXELS, ANY, "-1 does not fit uint8"),
    (b'{"instances": [3]}', TEXT, ANY, "instance 0: it must be a string, not 3"),
    (b'{"instances": [NaN]}', TEXT, ANY, "must be a string"),
    (b'{"instances": ["a", ["b"]]}', TEXT, ANY, "instance 1"),
    (b'{"instances": [1]}', FLAG, ANY, "true or false"),
    (b'{"instances": ["true"]}', FLAG, ANY, "true or false"),
    (b'{"instances": [1]}', ODD, ANY, "cannot be given as JSON"),
    # shapes
    (b'{"instances": [[1, 2], [3]]}', WHOLE, ANY, "instance 1: it must have the shape [2]"),
    (b'{"instances": [[1, 2, 3]]}', WHOLE, ANY, "instance 0: it must have the shape [2], not [3]"),
    (b'{"instances": [[1, 2], 3]}', WHOLE, ANY, "instance 1"),
    (b'{"instances": [[1, [2]]]}', WHOLE, ANY, "instance 0: its lists are ragged"),
    (b'{"instances": [[1.0]]}', NUMBER, ANY, "must have the shape []"),
    (b'{"inputs": 1}', NUMBER, ANY, "must have the shape [?], not []"),
    (b'{"instances": [[[[1, 2]]]]}', PIXELS, ANY, "shape [?, ?, 3]"),
    (b'{"instances": [[[[1, 2, 3]]], [[[1, 2, 3], [1, 2, 3]]]]}', PIXELS, ANY, "instance 1 has"),
    (b'{"instances": [[]]}', WHOLE, ANY, "shape"),
    (b'{"instances": ' + b"[" * 200 + b"1" + b"]" * 200 + b"}", NUMBER, ANY, "deeper"),
    # names
    (b'{"instances": [{"a": 1, "b": "t"}, {"a": 1}]}', TWO, ANY, "instance 1: it lacks the input"),
    (b'{"instances": [{"a": 1, "b": "t", "c": 1}]}', TWO, ANY, 'no input "c"'),
    (b'{"instances": [1]}', TWO, ANY, 'with the inputs "a", "b"'),
    (b'{"instances": [{"a": 1, "b": "t"}, 2]}', TWO, ANY, "instance 1 is a number"),
    (b'{"instances": ["t", {"text": "t"}]}', TEXT, ANY, "instance 1"),
    (b'{"instances": [{"txt": "t"}]}', TEXT, ANY, 'lacks the input "text"'),
    (b'{"inputs": {"a": [1]}}', TWO, ANY, 'lacks the input "b"'),
    (b'{"inputs": [1]}', TWO, ANY, 'with the inputs "a", "b"'),
    (b'{"inputs": {"x": [1], "y": [1]}}', NUMBER, ANY, 'no input "y"'),
    (b'{"instances": ["t"]}', SINGLE, ANY, 'send {"inputs"'),
    # base64
    (b'{"instances": [{"b64": "????"}]}', TEXT, ANY, "not base64"),
    (b'{"instances": [{"b64": "A"}]}', TEXT, ANY, "not base64"),
    (b'{"instances": [{"b64": "\xc3\xa4"}]}', TEXT, ANY, "not base64"),
    (b'{"instances": [{"b64": 3}]}', TEXT, ANY, "instance 0"),
    (b'{"instances": ["a", {"b64": "AAAA", "x": 1}]}', TEXT, ANY, "instance 1"),
    # texts
    (b'{"instances": ["good", ""]}', TEXT, TEXTS, "instance 1: the text is empty"),
    (b'{"instances": ["good", " \\n "]}', TEXT, TEXTS, "instance 1: the text is empty"),
    (of("instances", ["good", "a" * 51]), TEXT, TEXTS, "instance 1: the text has 51 bytes"),
    (of("instances", ["\u00e4" * 26]), TEXT, TEXTS, "52 bytes"),
    (of("instances", ["good", coded(b"\xff\xfe")]), TEXT, TEXTS, "instance 1: the text is not UTF"),
    (b'{"instances": ["half \\ud800"]}', TEXT, TEXTS, "surrogate"),
    (of("inputs", ""), SINGLE, TEXTS, "empty"),
    (of("inputs", {"text": ["a"]}), SINGLE, TEXTS, "shape []"),
    # images
    (of("instances", [coded(picture()), coded(b"")]), IMAGE, IMAGES, "instance 1: the image is em"),
    (of("instances", ["plain text"]), IMAGE, IMAGES, "neither a JPEG nor a PNG"),
    (of("instances", [coded(picture(size=(101, 100)))]), IMAGE, IMAGES, "101 x 100 pixels"),
    (of("instances", [coded(picture("JPEG", (200, 60)))]), IMAGE, IMAGES, "200 x 60 pixels"),
    (of("instances", [coded(png(60_000, 60_000, 8, 2, []))]), IMAGE, IMAGES, "more"),
    (of("instances", [coded(picture("GIF"))]), IMAGE, IMAGES, "a GIF image, not a JPEG"),
]


@pytest.mark.parametrize(
    ("body", "signature", "check", "reason"), MALFORMED, ids=range(len(MALFORMED))
)
def test_a_malformed_prediction_is_one_sentence(body, signature, check, reason):
    with pytest.raises(RequestError) as caught:
        predict(body, signature, check)
    assert reason in caught.value.sentence
    must_be_a_sentence(caught.value)


CLASSIFY = [
    ({}, ANY, '"examples" is missing'),
    ({"examples": []}, ANY, "empty"),
    ({"examples": {"x": 1}}, ANY, "not a list"),
    ({"examples": [1]}, ANY, "instance 0: it must be an object"),
    ({"examples": [{"x": None}]}, ANY, 'feature "x"'),
    ({"examples": [{"x": {"y": 1}}]}, ANY, 'feature "x"'),
    ({"examples": [{"x": [1, "a"]}]}, ANY, "of one kind"),
    ({"examples": [{"x": [[1]]}]}, ANY, "of one kind"),
    ({"examples": [{"x": 2**63}]}, ANY, "does not fit int64"),
    ({"examples": [{"x": 1e39}]}, ANY, "too large"),
    ({"examples": [{"x": {"b64": "?"}}]}, ANY, "not base64"),
    ({"examples": [{"\ud800": 1}]}, ANY, "surrogate"),
    ({"examples": [{}], "context": 1}, ANY, '"context" must be an object'),
    ({"examples": [{"x": 1}], "context": {"x": 1}}, ANY, '"context" too'),
    ({"examples": [{"text": "a"}, {"x": 1}]}, TEXTS, 'instance 1: it lacks the feature "text"'),
    ({"examples": [{"text": 5}]}, TEXTS, "must be a string"),
    ({"examples": [{"text": ""}]}, TEXTS, "instance 0: the text is empty"),
    ({"examples": [{"image_bytes": "a"}]}, IMAGES, "neither a JPEG nor a PNG"),
]


@pytest.mark.parametrize(("given", "check", "reason"), CLASSIFY, ids=range(len(CLASSIFY)))
def test_a_malformed_example_is_one_sentence(given, check, reason):
    with pytest.raises(RequestError) as caught:
        codec.decode_examples(given, EXAMPLES, check)
    assert reason in caught.value.sentence
    must_be_a_sentence(caught.value)


def must_be_a_sentence(error):
    assert error.status == 400
    assert error.sentence.endswith(".") and "\n" not in error.sentence
    assert len(error.sentence) < 300
    assert json.loads(error.body) == {"error": error.sentence}


def test_rows_and_columns_are_the_same_tensors():
    rows = predict(b'{"instances": [{"a": 1, "b": "t"}, {"a": 2.5, "b": {"b64": "AP8"}}]}', TWO)
    columns = predict(b'{"inputs": {"a": [1, 2.5], "b": ["t", {"b64": "AP8="}]}}', TWO)
    for inputs in (rows, columns):
        assert inputs.tensors["a"].tolist() == [1, 2.5] and inputs.tensors["a"].dtype == np.float32
        assert inputs.tensors["b"].tolist() == [b"t", b"\x00\xff"]
        assert inputs.rows == 2 and inputs.sizes is None
    assert rows.by_rows and not columns.by_rows


def test_a_plain_value_and_a_named_one_are_the_same():
    plain, named = (
        predict(b'{"instances": ["a"]}', TEXT),
        predict(b'{"instances": [{"text": "a"}]}', TEXT),
    )
    assert plain.tensors["text"].tolist() == named.tensors["text"].tolist() == [b"a"]


def test_texts_have_sizes():
    assert predict(of("instances", ["a", "four", "\u00e4"]), TEXT, TEXTS).sizes == [1, 4, 2]


def test_floats_may_be_nan_and_infinite():
    inputs = predict(b'{"instances": [NaN, Infinity, -Infinity, 3]}', NUMBER)
    np.testing.assert_array_equal(inputs.tensors["x"], [np.nan, np.inf, -np.inf, 3])


def test_a_scalar_is_not_computed_with_others():
    inputs = predict(b'{"inputs": {"text": "a good film"}}', SINGLE, TEXTS)
    assert inputs.rows is None and inputs.tensors["text"].item() == b"a good film"


def test_pictures_pass():
    files = [picture(), picture("JPEG")]
    inputs = predict(of("instances", [coded(file) for file in files]), IMAGE, IMAGES)
    assert inputs.tensors["image_bytes"].tolist() == files


def test_examples_hold_their_features_and_the_context():
    import tensorflow as tf

    given = {"context": {"c": "all"}, "examples": [{"x": [1, 2], "y": 0.5, "z": coded(b"\xff")}]}
    inputs = codec.decode_examples(given, EXAMPLES, ANY)
    example = tf.train.Example.FromString(inputs.tensors["inputs"][0])
    found = example.features.feature
    assert list(found["x"].int64_list.value) == [1, 2]
    assert list(found["y"].float_list.value) == [0.5]
    assert list(found["z"].bytes_list.value) == [b"\xff"]
    assert list(found["c"].bytes_list.value) == [b"all"]


def encode(outputs, verb="predict", by_rows=True):
    return codec.encode(verb, outputs, by_rows)


def test_answers_are_written_as_tensorflow_serving_does():
    one = {"y": np.array([0.2, np.nan, np.inf], np.float32)}
    assert encode(one) == b'{"predictions":[0.2,NaN,Infinity]}'
    assert encode(one, by_rows=False) == b'{"outputs":[0.2,NaN,Infinity]}'
    raw = np.array([b"\xff\x00", b"a"], object)
    two = {"raw_bytes": raw, "name": raw[::-1], "n": np.array([[1], [2]], np.int64)}
    assert json.loads(encode(two))["predictions"] == [
        {"raw_bytes": {"b64": "/wA="}, "name": "a", "n": [1]},
        {"raw_bytes": {"b64": "YQ=="}, "name": "\ufffd\x00", "n": [2]},
    ]
    assert set(json.loads(encode(two, by_rows=False))["outputs"]) == set(two)


def test_outputs_without_rows_are_an_error():
    with pytest.raises(RequestError, match="no row per instance"):
        encode({"y": np.float32(1)[()].reshape(())})


def test_classes_and_scores_are_pairs():
    scores, classes = np.array([[0.75, 0.25]], np.float32), np.array([[b"good", b"bad"]], object)
    answer = encode({"scores": scores, "classes": classes}, "classify")
    assert json.loads(answer) == {"results": [[["good", 0.75], ["bad", 0.25]]]}
    assert json.loads(encode({"scores": scores}, "classify")) == {
        "results": [[["", 0.75], ["", 0.25]]]
    }
    answer = encode({"outputs": np.array([[2.5], [3]], np.float32)}, "regress")
    assert json.loads(answer) == {"results": [2.5, 3.0]}
