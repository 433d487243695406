"""The Open Inference Protocol v2, case by case: bad requests, lone ones, bad answers, packing."""

from __future__ import annotations

import json
import tracemalloc
from collections.abc import Callable, Sequence
from typing import Any

import pytest

from gpu_batcher.api import BadAnswerError, BadRequestError, Call, Message, Tensor
from gpu_batcher.codecs.kserve_v2 import KserveV2
from gpu_batcher.codecs.kserve_v2_request import LONGEST_KEPT, MOST_KEPT
from tests.batcher import oip
from tests.batcher.oip import HEADER, TARGET, Given

X = Given("x", "INT32", (1, 2), [1, 2])
TEXTS = Given("t", "BYTES", (2,), [b"a", b"\xff"])


def read(codec: KserveV2, inputs: Sequence[Given], **fields: Any) -> Call:
    head, body = oip.request(list(inputs), **fields)
    call = codec.read(TARGET, head, memoryview(body))
    assert call is not None
    return call


def entry(**fields: Any) -> dict[str, Any]:
    """An input of JSON data, with other fields; None takes one away."""
    every = {"name": "x", "shape": [1, 2], "datatype": "INT32", "data": [1, 2], **fields}
    return {name: value for name, value in every.items() if value is not None}


def body(*inputs: dict[str, Any], **fields: Any) -> bytes:
    return json.dumps({"inputs": list(inputs), **fields}).encode()


def binary(size: Any, data: bytes, **fields: Any) -> tuple[bytes, bytes]:
    """The JSON, and the whole body."""
    given = entry(data=None, parameters={"binary_data_size": size}, **fields)
    return body(given), body(given) + data


def region(**fields: Any) -> dict[str, Any]:
    return entry(parameters={"shared_memory_region": "r", "shared_memory_byte_size": 8}, **fields)


# -- bad for any server ------------------------------------------------------------------------

BAD_JSON = [
    (b"", "malformed JSON"),
    (b"{", "malformed JSON"),
    (b"\xff", "malformed JSON"),
    (b'{"inputs":[{"name":"\xff"}]}', "."),
    (b"[]", "not an inference request"),
    (b"{}", "inputs"),
    (b'{"inputs":' + b"[" * 100_000, "."),
    (b'{"inputs":[{"name":"x","shape":[1],"datatype":"BOOL","data":' + b"[" * 100_000, "."),
    (b'{"parameters":{"a":' + b'{"a":' * 100_000, "."),
    (b'{"inputs":[],"parameters":{"a":' + b"9" * 10_000 + b"e}}", "."),
    (body(entry(name=1)), r"name"),
    (body(entry(shape=[-1, 2])), r"shape\[0\]"),
    (body(entry(shape=[1, 2**63])), r"shape\[1\]"),
    (body(entry(shape=[1, 2**70])), r"shape\[1\]"),
    (body(entry(shape=[1, 1.5])), r"shape\[1\]"),
    (body(entry(shape=[True, 2])), r"shape\[0\]"),
    (body(entry(shape=[1, "2"])), r"shape\[1\]"),
    (body(entry(shape=2)), "shape"),
    (body(entry(shape=[1] * 33)), "more than 32 dimensions"),
    (body(entry(shape=[1, 3])), "has 2 elements where its shape has 3"),
    (body(entry(shape=[1, 2**62, 2**62])), "has 2 elements where its shape has"),
    (body(entry(datatype="FP32", data=["1", 2])), "no array of FP32"),
    (body(entry(datatype="FP16")), "is to be sent as binary data"),
    (body(entry(datatype="BF16")), "is to be sent as binary data"),
    (body(entry(datatype="BYTES")), "no array of BYTES"),
    (body(entry(data=[1, 2**31])), "INT32 has no room for"),
    (body(entry(data=None)), "exactly one of"),
    (body(entry(parameters={"binary_data_size": 8})), "exactly one of"),
    (body(region()), "exactly one of"),
    (body(entry(), entry()), "the same name"),
    (body(entry(), outputs=[{"name": "y", "parameters": {"binary_data": 1}}]), "binary_data is"),
    (body(entry(), parameters={"binary_data_output": "true"}), "binary_data_output is"),
    (body(entry(), parameters=[1]), "parameters"),
    (body(entry(), id=7), "id"),
]


@pytest.mark.parametrize(("text", "said"), BAD_JSON)
def test_bad_json(text: bytes, said: str) -> None:
    for head in ({}, {HEADER: b"%d" % len(text)}) if text else ({},):
        with pytest.raises(BadRequestError, match=said):
            KserveV2().read(TARGET, head, memoryview(text))


BAD_BINARY: list[tuple[Any, bytes, dict[str, Any], str]] = [
    (8, b"\0" * 7, {}, "7 bytes follow the JSON where"),
    (8, b"\0" * 9, {}, "9 bytes follow the JSON where"),
    (8, b"", {}, "0 bytes follow the JSON where"),
    (7, b"\0" * 7, {}, "shape and datatype have 8 bytes"),
    (16, b"\0" * 16, {}, "shape and datatype have 8 bytes"),
    (-8, b"\0" * 8, {}, "a number of bytes"),
    (True, b"\0", {"datatype": "BOOL", "shape": [1, 1]}, "a number of bytes"),
    (8.0, b"\0" * 8, {}, "a number of bytes"),
    ("8", b"\0" * 8, {}, "a number of bytes"),
    (None, b"\0" * 8, {}, "a number of bytes"),
    (2**31, b"\0" * 10, {"shape": [1, 2**29]}, "10 bytes follow the JSON where"),
    (10, b"\0" * 10, {"shape": [1, 2**29]}, "have 2147483648 bytes"),
    (0, b"", {"shape": [1, 2**32, 2**32]}, "have 73786976294838206464 bytes"),
    (2**64, b"", {"shape": [1, 2**62]}, "0 bytes follow the JSON where"),
    (10, b"\0" * 10, {"datatype": "BYTES", "shape": [2]}, "2 bytes after its 2 elements"),
    (8, b"\0" * 8, {"datatype": "BYTES", "shape": [3]}, "too few bytes for its 3 elements"),
    (8, b"\5\0\0\0abcd", {"datatype": "BYTES", "shape": [1]}, "longer than the data left"),
    (8, b"\xff\xff\xff\xffabcd", {"datatype": "BYTES", "shape": [2]}, "longer than the data left"),
    (4, b"\0" * 4, {"datatype": "BYTES", "shape": [1, 2**40]}, "too few bytes for its"),
]


@pytest.mark.parametrize(("size", "data", "fields", "said"), BAD_BINARY)
def test_bad_binary_data(size: Any, data: bytes, fields: dict[str, Any], said: str) -> None:
    text, whole = binary(size, data, **fields)
    codec = KserveV2()
    for _ in range(2):
        with pytest.raises(BadRequestError, match=said):
            codec.read(TARGET, {HEADER: b"%d" % len(text)}, memoryview(whole))


@pytest.mark.parametrize("length", [b"", b"-1", b"+1", b"1.0", b" 5", b"0x5", b"9" * 40, b"\xb2"])
def test_a_length_that_is_none(length: bytes) -> None:
    with pytest.raises(BadRequestError, match="a number of bytes"):
        KserveV2().read(TARGET, {HEADER: length}, memoryview(body(entry())))


def test_json_longer_than_the_body() -> None:
    with pytest.raises(BadRequestError, match="but the body has"):
        KserveV2().read(TARGET, {HEADER: b"10000"}, memoryview(body(entry())))


def test_nothing_is_allocated_by_a_claim() -> None:
    text, whole = binary(2**31, b"\0" * 10, shape=[1, 2**29])
    claims = [
        ({HEADER: b"%d" % len(text)}, whole),
        ({}, body(entry(shape=[1, 2**40]))),
        ({}, body(entry(shape=[2**40, 1], datatype="BYTES", data=["a"]))),
    ]
    codec = KserveV2()
    tracemalloc.start()
    try:
        for head, data in claims:
            with pytest.raises(BadRequestError):
                codec.read(TARGET, head, memoryview(data))
        assert tracemalloc.get_traced_memory()[1] < 1 << 20
    finally:
        tracemalloc.stop()


def test_a_message_is_not_as_long_as_a_name() -> None:
    with pytest.raises(BadRequestError) as caught:
        KserveV2().read(TARGET, {}, memoryview(body(entry(name="n" * 10_000, data=[1]))))
    assert len(str(caught.value)) < 200


# -- alone -------------------------------------------------------------------------------------

ALONE = [
    body(),
    body(entry(shape=[], data=[1])),
    body(entry(shape=[0, 2], data=[])),
    body(entry(), entry(name="y", shape=[2, 1])),
    body(entry(datatype="STRING")),
    body(region(data=None)),
    body(entry(unknown=1)),
    body(entry(), unknown=1),
    body(entry(), model_name="another"),
    body(entry(), parameters={"k": [1]}),
    body(entry(), parameters={"k": None}),
    body(entry(), parameters={"k": 2**64}),
    body(entry(parameters={"k": {}})),
    body(entry(), outputs=[{"name": "y", "parameters": {"classification": 3}}]),
    body(entry(), outputs=[{"name": "y", "parameters": {"shared_memory_region": "r"}}]),
    body(entry(), outputs=[{"name": "y"}, {"name": "y"}]),
    *[
        body(entry(), parameters={name: 1})
        for name in (
            "sequence_id",
            "sequence_start",
            "sequence_end",
            "priority",
            "timeout",
            "headers",
            "triton_enable_empty_final_response",
        )
    ],
]


@pytest.mark.parametrize("text", ALONE)
def test_alone(text: bytes) -> None:
    codec = KserveV2()
    for _ in range(2):
        assert codec.read(TARGET, {}, memoryview(text)) is None


@pytest.mark.parametrize(
    "target",
    [
        b"/v2/models/echo/generate",
        b"/v2/models/echo/infer?x=1",
        b"/v2/models//infer",
        b"/v2/models/a/b/infer",
        b"/v2/models/echo/versions//infer",
        b"/v1/models/echo:predict",
        b"/",
    ],
)
def test_another_target_is_alone(target: bytes) -> None:
    assert KserveV2().read(target, {}, memoryview(body(entry()))) is None


def test_raw_and_compressed_requests_are_alone() -> None:
    codec = KserveV2()
    assert codec.read(TARGET, {HEADER: b"0"}, memoryview(b"\1\2")) is None
    assert codec.read(TARGET, {b"content-encoding": b"gzip"}, memoryview(b"\1\2")) is None
    plain = {b"content-encoding": b" Identity"}
    assert codec.read(TARGET, plain, memoryview(body(entry()))) is not None


def test_what_a_server_of_json_cannot_be_sent_is_alone() -> None:
    codec = KserveV2(binary=False)
    for given in (
        TEXTS,
        Given("x", "BF16", (1,), [0]),
        Given("x", "FP16", (1,), [0x7C00]),
        Given("x", "FP32", (1,), [float("nan")]),
        Given("x", "FP64", (1,), [float("-inf")]),
    ):
        head, data = oip.request([given])
        assert codec.read(TARGET, head, memoryview(data)) is None


# -- what is kept ------------------------------------------------------------------------------


def test_the_same_json_is_read_once() -> None:
    codec = KserveV2()
    first = read(codec, [X])
    assert read(codec, [Given("x", "INT32", (1, 2), [3, 4])]).key is first.key
    named = read(codec, [X], id="1")
    assert named.key is first.key
    assert named.notes != first.notes
    assert read(codec, [X]).notes is first.notes


def test_little_is_kept() -> None:
    codec = KserveV2()
    kept = codec._reader._kept
    for number in range(3 * MOST_KEPT):
        read(codec, [X], parameters={"k": number})
        assert len(kept) <= MOST_KEPT
    kept.clear()
    read(codec, [Given("x", "INT32", (1, 2), [1, 2], binary=False)])
    read(codec, [Given("n" * LONGEST_KEPT, "INT32", (1, 2), [1, 2])])
    read(codec, [X], parameters={"k": 1, "s": "x" * LONGEST_KEPT})
    assert kept == {}


@pytest.mark.parametrize("before", ['{"id":"1",', ' {\n"id" : "1" , '])
def test_an_id_that_comes_twice_is_the_last(before: str) -> None:
    text = (before + f'"inputs":[{json.dumps(entry())}],"id":"2"}}').encode()
    codec = KserveV2()
    call = codec.read(TARGET, {}, memoryview(text))
    assert call is not None
    reply = codec.divide([call], oip.serve(codec.join([call])))[0]
    assert json.loads(reply.body)["id"] == "2"


@pytest.mark.parametrize("text", [b'{"id":"1",}', b'{"id":"1",,"inputs":[]}', b'{"id":"1"'])
def test_an_id_does_not_mend_json(text: bytes) -> None:
    with pytest.raises(BadRequestError):
        KserveV2().read(TARGET, {}, memoryview(text))


# -- bad answers -------------------------------------------------------------------------------


def spoil(change: Callable[[dict[str, Any]], object]) -> Callable[[Message], None]:
    """A change to the first output of an answer."""

    def spoiled(answer: Message) -> None:
        text, tail = oip.parsed(answer.head, answer.joined())
        change(text["outputs"][0])
        data = json.dumps(text).encode()
        answer.body, answer.head = [data, tail], {HEADER: b"%d" % len(data)}

    return spoiled


def put(name: str, value: Any) -> Callable[[Message], None]:
    return spoil(lambda output: output.update({name: value}))


def replaced(old: bytes, new: bytes) -> Callable[[Message], None]:
    def replace(answer: Message) -> None:
        answer.body = [answer.joined().replace(old, new)]

    return replace


def no_outputs(answer: Message) -> None:
    answer.body, answer.head = [b'{"outputs":[]}'], {}


BAD_ANSWERS = [
    (no_outputs, "has no outputs"),
    (put("shape", [1, 2]), "3 rows were asked"),
    (put("shape", [4, 2]), "3 rows were asked"),
    (put("shape", [6]), "3 rows were asked"),
    (put("shape", []), "3 rows were asked"),
    (put("shape", [3, -2]), "not an inference answer"),
    (put("shape", [3, 1]), "has 24 bytes where its shape and datatype have 12"),
    (put("shape", [3, 2**62]), "has 24 bytes where"),
    (put("shape", [3] * 33), "33 dimensions"),
    (put("datatype", "INT16"), "has 24 bytes where its shape and datatype have 12"),
    (put("datatype", "BYTES"), "out_x"),
    (put("datatype", "STRING"), "unknown here"),
    (put("name", "z"), "output 'out_x' is missing"),
    (put("parameters", {}), "bytes follow the outputs"),
    (put("parameters", {"binary_data_size": -1}), "binary_data_size that is no"),
    (put("parameters", {"binary_data_size": True}), "binary_data_size that is no"),
    (put("parameters", {"binary_data_size": 2**40}), "up to the 24 that are left"),
    (put("parameters", {"binary_data_size": 16}), "bytes follow the outputs"),
    (replaced(b'"outputs"', b'"outpust"'), "not an inference answer"),
    (lambda answer: answer.body.append(b"\0"), "1 bytes follow the outputs"),
    (lambda answer: answer.body.pop(), "up to the 0 that are left"),
    (lambda answer: answer.body.clear(), "not an inference answer"),
    (lambda answer: answer.head.update({HEADER: b"x"}), "not an inference answer"),
    (lambda answer: answer.head.update({HEADER: b"99999"}), "not an inference answer"),
    (lambda answer: answer.head.update({b"content-encoding": b"gzip"}), "compressed"),
]


@pytest.mark.parametrize(("change", "said"), BAD_ANSWERS)
def test_bad_answers(change: Callable[[Message], object], said: str) -> None:
    codec = KserveV2()
    outputs = [{"name": "out_x"}]
    two = Given("x", "INT32", (2, 2), [3, 4, 5, 6])
    calls = [read(codec, [X], outputs=outputs), read(codec, [two], outputs=outputs)]
    answer = oip.serve(codec.join(calls))
    change(answer)
    with pytest.raises(BadAnswerError, match=said):
        codec.divide(calls, answer)


def test_an_output_twice() -> None:
    codec = KserveV2()
    call = read(codec, [X])
    outputs = [Tensor("y", "INT8", (1,), b"\1"), Tensor("y", "INT8", (1,), b"\2")]
    with pytest.raises(BadAnswerError, match="the same name"):
        codec.reply(call, outputs)


def test_elements_of_different_lengths_stay_with_their_rows() -> None:
    codec = KserveV2()
    given = [
        Given("t", "BYTES", (2, 2), [b"", b"long" * 9, b"x", b""]),
        Given("t", "BYTES", (1, 2), [b"\xff", b"yy"]),
    ]
    form = {"binary_data_output": True}
    calls = [read(codec, [each], parameters=form) for each in given]
    replies = codec.divide(calls, oip.serve(codec.join(calls)))
    for reply, mine in zip(replies, given, strict=True):
        text, tail = oip.parsed(reply.head, reply.body)
        assert oip.tensors(text["outputs"], tail)[0].values == mine.values


# -- what JSON cannot carry is that caller's own affair ------------------------------------------


@pytest.mark.parametrize(
    "given", [Given("x", "FP16", (1,), [7]), Given("x", "BYTES", (1,), [b"\xff"])]
)
def test_no_json_for_one_is_no_failure_for_the_other(given: Given) -> None:
    codec = KserveV2()
    calls = [read(codec, [given]), read(codec, [given], parameters={"binary_data_output": True})]
    first, second = codec.divide(calls, oip.serve(codec.join(calls)))
    assert first.status == 400
    assert "ask for it as binary data" in json.loads(first.body)["error"]
    assert second.status == 200
    assert second.body.endswith(oip.to_bytes(given.datatype, given.values))
