"""The Open Inference Protocol v2: whatever is joined, each caller gets its own rows back."""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gpu_batcher.api import SIZES, BadAnswerError, BadRequestError, Call
from gpu_batcher.codecs.kserve_v2 import KserveV2
from tests.batcher import oip
from tests.batcher.oip import ELEMENTS, HEADER, NOT_JSON, TARGET, Given


def read(codec: KserveV2, inputs: Sequence[Given], **fields: Any) -> Call:
    head, body = oip.request(list(inputs), **fields)
    call = codec.read(TARGET, head, memoryview(body))
    assert call is not None
    return call


# -- joined and divided ------------------------------------------------------------------------

NAMES = ["a", "b", "x ü\n"]
TAILS = st.lists(st.integers(0, 2), max_size=2).map(tuple)
SIGNATURES = st.dictionaries(
    st.sampled_from(NAMES), st.tuples(st.sampled_from(sorted(SIZES)), TAILS), min_size=1
)


@st.composite
def callers(draw: st.DrawFn) -> list[tuple[list[Given], dict[str, Any]]]:
    """Requests that may be joined, each in a form of its own."""
    signature = draw(SIGNATURES)
    named = draw(st.booleans())
    found = []
    for _ in range(draw(st.integers(1, 5))):
        rows = draw(st.integers(1, 3))
        inputs = []
        for name, (datatype, tail) in draw(st.permutations(sorted(signature.items()))):
            shape = (rows, *tail)
            count = math.prod(shape)
            values = draw(st.lists(ELEMENTS[datatype], min_size=count, max_size=count))
            binary = datatype in NOT_JSON or draw(st.booleans())
            inputs.append(Given(name, datatype, shape, values, binary, draw(st.booleans())))
        fields: dict[str, Any] = {}
        if draw(st.booleans()):
            fields["id"] = draw(st.sampled_from(["1", 'a"\\b', "ü", ""]))
        if draw(st.booleans()):
            fields["parameters"] = {"binary_data_output": draw(st.booleans())}
        if named:
            outputs = draw(st.permutations(sorted(signature)))
            fields["outputs"] = [
                {"name": f"out_{name}", **draw(st.sampled_from(FORMS))} for name in outputs
            ]
        found.append((inputs, fields))
    return found


FORMS: list[dict[str, Any]] = [
    {},
    {"parameters": {"binary_data": True}},
    {"parameters": {"binary_data": False}},
]


def asked_binary(fields: dict[str, Any], name: str) -> bool:
    default = fields.get("parameters", {}).get("binary_data_output", False)
    for each in fields.get("outputs", ()):
        if each["name"] == name:
            default = each.get("parameters", {}).get("binary_data", default)
    return bool(default)


def check_reply(reply: Any, inputs: list[Given], fields: dict[str, Any]) -> None:
    """It holds the caller's own inputs, as it asked for them, and its own id."""
    own = {f"out_{each.name}": each for each in inputs}
    refused = [
        name
        for name, each in own.items()
        if each.datatype in NOT_JSON and not asked_binary(fields, name)
    ]
    if refused:
        assert reply.status == 400
        assert "binary data" in json.loads(reply.body)["error"]
        return
    assert reply.status == 200
    text, tail = oip.parsed(reply.head, reply.body)
    assert text["model_name"] == "echo"
    assert text.get("id") == (fields.get("id") or None)
    outputs = oip.tensors(text["outputs"], tail)
    if "outputs" in fields:
        assert [each.name for each in outputs] == [each["name"] for each in fields["outputs"]]
    assert {each.name for each in outputs} == set(own)
    for each in outputs:
        mine = own[each.name]
        assert (each.datatype, each.shape, each.values) == (mine.datatype, mine.shape, mine.values)
        assert each.binary == asked_binary(fields, each.name)


@given(callers())
def test_the_rows_of_a_caller_come_back_to_it(
    asked: list[tuple[list[Given], dict[str, Any]]],
) -> None:
    codec = KserveV2()
    for _ in range(2):  # The second time, some are known already.
        calls = [read(codec, inputs, **fields) for inputs, fields in asked]
        assert len({call.key for call in calls}) == 1
        for call, (inputs, _) in zip(calls, asked, strict=True):
            assert call.rows == inputs[0].shape[0]
            assert call.size == sum(len(tensor.data) for tensor in call.inputs)
        replies = codec.divide(calls, oip.serve(codec.join(calls)))
        assert len(replies) == len(calls)
        for reply, (inputs, fields) in zip(replies, asked, strict=True):
            check_reply(reply, inputs, fields)


@given(callers())
def test_with_a_server_that_knows_only_json(
    asked: list[tuple[list[Given], dict[str, Any]]],
) -> None:
    codec = KserveV2(binary=False)
    requests = [oip.request(inputs, **fields) for inputs, fields in asked]
    calls = [codec.read(TARGET, head, memoryview(body)) for head, body in requests]
    if any(each.datatype in NOT_JSON for each in asked[0][0]):
        return
    known = [call for call in calls if call is not None]
    assert len(known) == len(calls)
    replies = codec.divide(known, oip.serve(codec.join(known), binary=False))
    for reply, (inputs, fields) in zip(replies, asked, strict=True):
        check_reply(reply, inputs, fields)


@given(callers(), st.data())
def test_an_answer_with_other_rows_is_never_divided(
    asked: list[tuple[list[Given], dict[str, Any]]], data: st.DataObject
) -> None:
    """The server answers for one caller more, or for one less."""
    codec = KserveV2()
    calls = [read(codec, inputs, **fields) for inputs, fields in asked]
    others = calls + calls[:1] if len(calls) == 1 or data.draw(st.booleans()) else calls[1:]
    with pytest.raises(BadAnswerError):
        codec.divide(calls, oip.serve(codec.join(others)))


# -- hostile bytes -----------------------------------------------------------------------------

SPARKS = [b'"', b"[", b"]", b"{", b"}", b",", b"0", b"-", b"1e9", b"99999999999", b"null", b"\xff"]
SPARKS += [b"\\u", b'"data":[1],', b'"id":"x",', b'"name":"a",', b"\0", b"NaN", b"true", b" "]


@st.composite
def spoiled(draw: st.DrawFn, good: bytes) -> bytes:
    """With one to three pieces cut out, put in, replaced or doubled."""
    data = good
    for _ in range(draw(st.integers(1, 3))):
        at = draw(st.integers(0, len(data)))
        end = min(len(data), at + draw(st.integers(0, 6)))
        piece = draw(st.sampled_from([b"", data[at:end] * 2, *SPARKS]))
        data = data[:at] + piece + data[end:]
    return data


def check_call(call: Call) -> None:
    """What is taken for good is whole, whatever it was read from."""
    assert call.rows >= 1
    for tensor in call.inputs:
        assert tensor.shape[0] == call.rows
        values = oip.from_bytes(tensor.datatype, bytes(tensor.data))
        assert len(values) == math.prod(tensor.shape)
        if SIZES[tensor.datatype]:
            assert len(tensor.data) == len(values) * SIZES[tensor.datatype]
    assert call.size == sum(len(tensor.data) for tensor in call.inputs)


LENGTHS = st.sampled_from([b"", b"0", b"-1", b"+5", b"1e2", b" 3", b"9" * 30, b"12", b"\xb2"])


@given(st.binary(max_size=64), st.none() | LENGTHS)
def test_any_bytes(body: bytes, length: bytes | None) -> None:
    head = {} if length is None else {HEADER: length}
    try:
        call = KserveV2().read(TARGET, head, memoryview(body))
    except BadRequestError:
        return
    assert call is None


@given(callers(), st.data())
def test_spoiled_requests(
    asked: list[tuple[list[Given], dict[str, Any]]], data: st.DataObject
) -> None:
    codec = KserveV2()
    inputs, fields = asked[0]
    good = read(codec, inputs, **dict(fields))
    head, body = oip.request(inputs, **dict(fields))
    length = int(head.get(HEADER, len(body)))
    text = data.draw(spoiled(body[:length]))
    if HEADER in head:
        head[HEADER] = b"%d" % data.draw(st.sampled_from([len(text), length, len(body)]))
    try:
        call = codec.read(TARGET, head, memoryview(text + body[length:]))
    except BadRequestError:
        call = None
    if call is None:
        return
    check_call(call)
    if call.key == good.key:
        answer = oip.serve(codec.join([good, call, good]))
        replies = codec.divide([good, call, good], answer)
        check_reply(replies[0], inputs, fields)
        check_reply(replies[2], inputs, fields)


@given(callers(), st.data())
def test_spoiled_answers(
    asked: list[tuple[list[Given], dict[str, Any]]], data: st.DataObject
) -> None:
    codec = KserveV2()
    calls = [read(codec, inputs, **dict(fields)) for inputs, fields in asked]
    answer = oip.serve(codec.join(calls))
    length = int(answer.head.get(HEADER, len(answer.joined())))
    text = data.draw(spoiled(answer.joined()[:length]))
    if HEADER in answer.head:
        answer.head[HEADER] = b"%d" % data.draw(st.sampled_from([len(text), length]))
    answer.body = [text, answer.joined()[length:]]
    try:
        replies = codec.divide(calls, answer)
    except BadAnswerError:
        return
    assert len(replies) == len(calls)
    for call, reply in zip(calls, replies, strict=True):
        for each in json_outputs(reply):
            assert each["shape"][0] == call.rows


def json_outputs(reply: Any) -> list[dict[str, Any]]:
    outputs: list[dict[str, Any]] = oip.parsed(reply.head, reply.body)[0].get("outputs", [])
    return outputs


# -- which may be joined -----------------------------------------------------------------------

X = Given("x", "INT32", (1, 2), [1, 2])
Y = Given("y", "FP32", (1,), [0.5])
KNOWING = KserveV2()


def key(target: bytes = TARGET, inputs: Sequence[Given] = (X, Y), **fields: Any) -> object:
    head, body = oip.request(list(inputs), **fields)
    call = KNOWING.read(target, head, memoryview(body))
    assert call is not None
    return call.key


SAME: list[dict[str, Any]] = [
    {"inputs": (Y, X)},
    {"inputs": (Given("x", "INT32", (3, 2), [0] * 6), Given("y", "FP32", (3,), [0.0] * 3))},
    {"inputs": (Given("x", "INT32", (1, 2), [1, 2], binary=False), Y)},
    {"id": "mine"},
    {"parameters": {"binary_data_output": True}},
    {"outputs": []},
    {"model_name": "echo"},
]


@pytest.mark.parametrize("fields", SAME)
def test_what_makes_no_difference(fields: dict[str, Any]) -> None:
    assert key(**fields) == key()


def other(**fields: Any) -> dict[str, Any]:
    return {"inputs": (Given(**{**vars(X), **fields}), Y)}


OTHERS: list[dict[str, Any]] = [
    {},
    {"target": b"/v2/models/other/infer"},
    {"target": b"/v2/models/echo/versions/1/infer"},
    {"inputs": (X,)},
    other(name="z"),
    other(datatype="UINT32"),
    other(shape=(1, 1), values=[1]),
    other(shape=(1, 2, 1)),
    {"outputs": [{"name": "out_x"}]},
    {"outputs": [{"name": "out_y"}]},
    {"outputs": [{"name": "out_y"}, {"name": "out_x"}]},
    {"outputs": [{"name": "out_y", "parameters": {"k": 1}}]},
    {"parameters": {"k": 1}},
    {"parameters": {"k": 1.0}},
    {"parameters": {"k": True}},
    {"parameters": {"k": "1"}},
    {"parameters": {"k": 0.0}},
    {"parameters": {"k": -0.0}},
    {"parameters": {"k": 2**53}},
    {"parameters": {"k": 2**53 + 1}},
]


def test_what_makes_a_difference() -> None:
    for _ in range(2):  # The second time, all are known.
        assert len({key(**each) for each in OTHERS}) == len(OTHERS)


def test_the_order_of_outputs_is_the_callers_own() -> None:
    outputs = [{"name": "out_x"}, {"name": "out_y"}]
    assert key(outputs=outputs) == key(outputs=outputs[::-1])


def test_parameters_go_into_the_joined_request() -> None:
    codec = KserveV2()
    parameters = {"k": 2**53 + 1, "s": "ü", "f": 0.1, "b": False}
    outputs = [{"name": "out_x", "parameters": {"o": 1, "binary_data": False}}]
    call = read(codec, [X, Y], parameters=parameters, outputs=outputs, id="1")
    text, _ = oip.parsed(codec.join([call]).head, codec.join([call]).joined())
    assert text["parameters"] == {**parameters, "binary_data_output": True}
    assert text["outputs"] == [{"name": "out_x", "parameters": {"o": 1, "binary_data": True}}]
    assert "id" not in text
    codec = KserveV2(binary=False)
    call = read(codec, [X, Y], parameters=parameters, outputs=outputs)
    text = json.loads(codec.join([call]).joined())
    assert text["parameters"] == parameters
    assert text["outputs"] == [{"name": "out_x", "parameters": {"o": 1}}]
    assert text["inputs"][0]["data"] == [1, 2]


def test_calls_of_different_keys_are_not_joined() -> None:
    codec = KserveV2()
    with pytest.raises(ValueError, match="keys"):
        codec.join([read(codec, [X, Y]), read(codec, [X])])


def test_variable_axes() -> None:
    codec = KserveV2({"x": (1, 2)})
    short = read(codec, [Given("x", "INT8", (1, 2, 3), [0] * 6)])
    long = read(codec, [Given("x", "INT8", (2, 1, 5), [0] * 10)])
    assert short.key == long.key
    assert (short.length, long.length) == (3, 5)
    with pytest.raises(ValueError, match="packed"):
        codec.join([short, long])
    assert read(codec, [X, Given("x2", "INT8", (1, 7), [0] * 7)]).length == 2
    assert read(KserveV2(), [X]).length == 1
    with pytest.raises(ValueError, match="batch"):
        KserveV2({"x": (0,)})
