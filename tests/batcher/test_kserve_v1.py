"""Whatever goes in, predictions come out at their own caller, and nobody else's with them."""

from __future__ import annotations

import json
import struct
from collections.abc import Mapping, Sequence
from typing import Any, cast

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from gpu_batcher.api import BadAnswerError, BadRequestError, Call, Codec, Message, Tensor
from gpu_batcher.codecs.kserve_v1 import KServeV1

CODEC: Codec = KServeV1()
TARGET = b"/v1/models/m:predict"
HEAD = {b"content-type": b"application/json"}

scalars = (
    st.none() | st.booleans() | st.integers() | st.text()
    | st.floats(allow_nan=False, allow_infinity=False)
)  # fmt: skip
values = st.recursive(
    scalars,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3),
    max_leaves=8,
)
callers = st.lists(st.lists(values, min_size=1, max_size=4), min_size=1, max_size=6)
"""What the instances of each of several callers hold, besides their mark."""


def read(
    body: bytes | str, target: bytes = TARGET, head: Mapping[bytes, bytes] = HEAD
) -> Call | None:
    return CODEC.read(target, head, memoryview(body.encode() if isinstance(body, str) else body))


def call(body: bytes | str) -> Call:
    found = read(body)
    assert found is not None
    return found


def marked(callers: Sequence[Sequence[Any]]) -> list[list[Any]]:
    return [
        [{"mark": [who, row], "value": value} for row, value in enumerate(mine)]
        for who, mine in enumerate(callers)
    ]


def echo(joined: Message, **others: Any) -> Message:
    """A model whose prediction is its instance."""
    instances = json.loads(joined.joined())["instances"]
    return Message([json.dumps({"predictions": instances, **others}).encode()])


def answer(text: str) -> Message:
    return Message([text.encode()])


# -- rows come out at their own caller ---------------------------------------------------------


@given(callers, st.sampled_from([None, 2]), st.booleans())
def test_each_caller_gets_its_own_rows(mine: list[Any], indent: int | None, plain: bool) -> None:
    instances = marked(mine)
    calls = [
        call(json.dumps({"instances": each}, indent=indent, ensure_ascii=plain))
        for each in instances
    ]
    assert len({each.key for each in calls}) == 1
    joined = CODEC.join(calls)
    assert json.loads(joined.joined()) == {"instances": [row for each in instances for row in each]}
    assert joined.head[b"content-type"] == b"application/json"
    replies = CODEC.divide(calls, echo(joined, model_version="7"))
    for reply, rows in zip(replies, instances, strict=True):
        assert json.loads(reply.body) == {"predictions": rows, "model_version": "7"}
        assert (reply.status, dict(reply.head)) == (200, HEAD)


@given(callers, st.integers(0, 40))
def test_another_number_of_predictions_is_nobodys(mine: list[Any], count: int) -> None:
    calls = [call(json.dumps({"instances": each})) for each in mine]
    total = sum(each.rows for each in calls)
    text = json.dumps({"predictions": list(range(count))})
    if count == total:
        replies = CODEC.divide(calls, answer(text))
        found = [row for reply in replies for row in json.loads(reply.body)["predictions"]]
        assert found == list(range(count))
    else:
        with pytest.raises(BadAnswerError, match=f"{count} of them for {total}"):
            CODEC.divide(calls, answer(text))


@given(callers, st.data())
def test_an_answer_may_come_in_any_pieces(mine: list[Any], data: st.DataObject) -> None:
    instances = marked(mine)
    calls = [call(json.dumps({"instances": each})) for each in instances]
    whole = echo(CODEC.join(calls)).joined()
    cuts = sorted(data.draw(st.lists(st.integers(0, len(whole)), max_size=4)))
    pieces = [whole[a:b] for a, b in zip([0, *cuts], [*cuts, len(whole)], strict=True)]
    replies = CODEC.divide(calls, Message([memoryview(piece) for piece in pieces]))
    assert [json.loads(reply.body)["predictions"] for reply in replies] == instances


ODD = [
    "9007199254740993", "-123456789012345678901234567890", "1" * 6000, "1.10", "1E5", "-0", "-0.0",
    "0.1000000000000000055511151231257827", '"\\u00e9\\ud83d\\ude00\\/"', '{"b":1,"a":2,"b":3}',
    '"é"', "[[],{}]", '"NaN"', '"\\"NaN"',
]  # fmt: skip


@given(st.lists(st.lists(st.sampled_from(ODD), min_size=1, max_size=3), min_size=1, max_size=4))
def test_what_is_written_survives_to_the_digit(mine: list[list[str]]) -> None:
    calls = [call('{"instances": [' + " , ".join(each) + "]}") for each in mine]
    every = [text for each in mine for text in each]
    assert CODEC.join(calls).joined() == b'{"instances":[' + ",".join(every).encode() + b"]}"
    replies = CODEC.divide(calls, answer('{"predictions": [' + ", ".join(every) + "]}"))
    for reply, texts in zip(replies, mine, strict=True):
        assert reply.body == b'{"predictions":[' + ",".join(texts).encode() + b"]}"


@given(st.lists(st.sampled_from(["NaN", "-Infinity", '"NaN"', '"\\"NaN"', "0.5"]), min_size=3))
def test_nan_comes_back_to_its_caller_alone(texts: list[str]) -> None:
    """TF Serving writes NaN; the others are not to pay for it."""
    calls = [call('{"instances": [1]}') for _ in texts]
    replies = CODEC.divide(calls, answer('{"predictions": [' + ", ".join(texts) + "]}"))
    assert [reply.body for reply in replies] == [
        b'{"predictions":[' + text.encode() + b"]}" for text in texts
    ]


# -- what is joined --------------------------------------------------------------------------------


@pytest.mark.parametrize("one", ['{"instances":[1],"signature_name":"a"}', '{"instances":[1]}'])
@pytest.mark.parametrize(
    "other",
    [
        '{"instances":[1],"signature_name":"b"}',
        '{"instances":[1],"signature_name":null}',
        '{"instances":[1],"parameters":{}}',
        '{"instances":[1],"signature_name":"a","x":1}',
    ],
)
def test_another_field_is_not_joined(one: str, other: str) -> None:
    assert call(one).key != call(other).key


def test_the_order_of_fields_makes_no_difference() -> None:
    one = call('{"a": 1, "instances": [1], "b": {"c": [2]}}')
    two = call('{"b":{"c": [2]},"a":1,"instances":[2, 3]}')
    assert one.key == two.key
    joined = json.loads(CODEC.join([one, two]).joined())
    assert joined == {"a": 1, "b": {"c": [2]}, "instances": [1, 2, 3]}


def test_the_call_says_how_large_it_is() -> None:
    found = call('{"instances": [[1,2],[3]]}')
    assert (found.rows, found.size, found.length, found.inputs) == (2, len("[[1,2],[3]]"), 1, ())


TARGETS = [
    (b"/v1/models/m:predict", True),
    (b"/v1/models/m/versions/3:predict", True),
    (b"/v1/models/m/labels/stable:predict", True),
    (b"/team/v1/models/m:predict?x=1", True),
    (b"/v1/models/a:b:predict", True),
    (b"/v1/models/m:classify", False),
    (b"/v1/models/m:explain", False),
    (b"/v1/models/m:predict/", False),
    (b"/v1/models/:predict", False),
    (b"/v1/models/m/x:predict", False),
    (b"/v1/models/m?x=/v1/models/m:predict", False),
    (b"/v2/models/m/infer", False),
    (b"*", False),
    (b"/v1/models/" * 6000, False),
]


@pytest.mark.parametrize(("target", "known"), TARGETS, ids=lambda each: str(each)[:40])
def test_targets(target: bytes, known: bool) -> None:
    assert (read('{"instances":[1]}', target) is not None) is known


def test_two_models_are_not_joined() -> None:
    keys = {
        getattr(read('{"instances":[1]}', target), "key", None)
        for target, known in TARGETS
        if known
    }
    assert len(keys) == 5


@pytest.mark.parametrize(
    "body",
    [
        "[1]", "1", "null", "{}", "[" * 100_000, '{"instances": []}', '{"instances": {}}',
        '{"instances": null}', '{"instances": "abc"}', '{"inputs": [1]}',
        '{"instances": [1], "inputs": [1]}', '{"instances": [NaN]}',
        '{"instances": [-Infinity], "x": 1}',
    ],
    ids=lambda body: body[:30],
)  # fmt: skip
def test_what_is_not_understood_goes_alone(body: str) -> None:
    assert read(body) is None


# -- hostile requests ------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "body",
    [
        b"", b" ", b"{", b'{"instances": [1}', b'{"instances": [1]} x', b'{"instances": [1],}',
        b'{"instances": [01]}', b'{"instances": [1.]}', b'{"instances": [+1]}',
        b'{"instances": ["\x01"]}', b'{"instances": ["\\x"]}', b'{"instances": ["\\ud800"]}',
        b'\xef\xbb\xbf{"instances": [1]}', b'{"instances": ["\xff"]}', b'{"\xff": 1}',
        b'{"instances": ["\xed\xa0\x80"]}', '{"instances": [1]}'.encode("utf-16"),
        b'{"instances": ' + b"[" * 100_000 + b"]" * 100_000 + b"}",
        b'{"a":' * 100_000, b"{'instances': [1]}", b"instances=1",
    ],
    ids=lambda body: repr(body[:30]),
)  # fmt: skip
def test_malformed_bodies_are_their_callers_mistake(body: bytes) -> None:
    with pytest.raises(BadRequestError, match=r"^body: "):
        read(body)


def test_a_field_that_stands_twice_counts_once() -> None:
    found = call('{"instances": [1], "a": 1, "instances": [2, 3], "a": 2}')
    assert found.rows == 2
    assert CODEC.join([found]).joined() == b'{"instances":[2,3],"a":2}'


bodies = st.one_of(
    st.binary(max_size=60),
    st.text(alphabet='{}[]",:\\ueE+-.019naN "instances', max_size=60).map(str.encode),
    st.tuples(
        st.just(json.dumps({"instances": [{"a": [1.5, "é\\"]}, None], "b": "c"}).encode()),
        st.integers(0, 60), st.integers(0, 5), st.binary(max_size=5),
    ).map(lambda t: t[0][: t[1]] + t[3] + t[0][t[1] + t[2] :]),
)  # fmt: skip


@given(bodies)
@example(b'{"instances":[1,"\\ud83d\\ude00"]}')
def test_whatever_is_joined_is_json(body: bytes) -> None:
    """So that no caller's bytes can change what a neighbour's mean."""
    try:
        found = read(body)
    except BadRequestError:
        return
    if found is None:
        return
    for item in found.items:
        json.loads(bytes(cast("bytes", item)).decode())
    other = call('{"instances": ["mark"]}')
    joined = json.loads(CODEC.join([other, found, other]).joined())
    assert (joined["instances"][0], joined["instances"][-1]) == ("mark", "mark")
    assert len(joined["instances"]) == found.rows + 2


@pytest.mark.parametrize("kind", [bytes, bytearray])
def test_the_body_need_not_stay(kind: type[bytes] | type[bytearray]) -> None:
    """A body that is changed, or released, after it was read."""
    body = kind(b'{"instances": ["mine"]}')
    view = memoryview(body)
    found = CODEC.read(TARGET, HEAD, view)
    view.release()
    if isinstance(body, bytearray):
        body[:] = b"x" * 4096
    del body
    assert found is not None
    assert CODEC.join([found]).joined() == b'{"instances":["mine"]}'


def test_a_part_of_a_buffer_is_read_as_that_part() -> None:
    view = memoryview(b'xx{"instances": [1]}yy')[2:-2]
    found = CODEC.read(TARGET, HEAD, view)
    assert found is not None
    assert found.rows == 1


# -- hostile answers -------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "text",
    [
        "", "x", "[1,2]", "null", "{}", '{"predictions": null}', '{"predictions": {"0": 1}}',
        '{"predictions": "ab"}', '{"message": "boom", "batchId": "", "predictions": null}',
        '{"error": "boom"}', '{"predictions": [1, 2}', '{"predictions": [1, 2]} 3',
        '{"predictions": [1, 2', '{"predictions": [1, NaN', '{"predictions": [1, NaNs]}',
        '{"predictions": ' + "[" * 100_000, '{"predictions": [1, NaN, "' + '\\"' * 100_000,
        '{"predictions": [1], "predictions": [1, 2, 3]}',
    ],
    ids=lambda text: text[:40],
)  # fmt: skip
def test_an_answer_without_a_prediction_for_each(text: str) -> None:
    calls = [call('{"instances": [1]}'), call('{"instances": [2]}')]
    with pytest.raises(BadAnswerError):
        CODEC.divide(calls, answer(text))


def test_a_compressed_answer_is_not_divided() -> None:
    with pytest.raises(BadAnswerError, match="compressed"):
        CODEC.divide(
            [call('{"instances": [1]}')],
            Message([b'{"predictions": [1]}'], {b"content-encoding": b"gzip"}),
        )


# -- a model in the sidecar ------------------------------------------------------------------------


def predicted(rows: int, *outputs: Tensor) -> Any:
    mine = call(json.dumps({"instances": [0] * rows}))
    return json.loads(CODEC.reply(mine, outputs).body)["predictions"]


def test_one_output_is_the_predictions() -> None:
    data = struct.pack("<8q", *range(7), 2**63 - 1)
    expected = [[[0, 1], [2, 3]], [[4, 5], [6, 2**63 - 1]]]
    assert predicted(2, Tensor("y", "INT64", (2, 2, 2), data)) == expected
    assert predicted(2, Tensor("y", "FP16", (2,), struct.pack("<2e", 0.5, 2))) == [0.5, 2.0]
    assert predicted(2, Tensor("y", "BF16", (2, 1), b"\x00\x3f\x00\xc0")) == [[0.5], [-2.0]]
    assert predicted(1, Tensor("y", "BOOL", (1, 2), b"\x01\x00")) == [[True, False]]
    assert predicted(1, Tensor("y", "FP32", (1,), struct.pack("<f", float("nan")))) == [None]
    assert predicted(2, Tensor("y", "FP32", (2, 10**12, 0), b"")) == [[], []]


def test_several_outputs_are_objects() -> None:
    strings = b"\x02\x00\x00\x00ab" + b"\x01\x00\x00\x00\xff"
    outputs = (Tensor("a", "UINT8", (2,), b"\x01\x02"), Tensor("b", "BYTES", (2,), strings))
    assert predicted(2, *outputs) == [{"a": 1, "b": "ab"}, {"a": 2, "b": {"b64": "/w=="}}]


@pytest.mark.parametrize(
    ("datatype", "shape", "data"),
    [
        ("FP32", (3,), bytes(12)), ("FP32", (), bytes(4)), ("FP32", (2,), bytes(9)),
        ("FP32", (2, 10**12), bytes(8)), ("FP99", (2,), bytes(8)), ("BYTES", (2,), bytes(4)),
        ("BYTES", (2,), b"\x09\0\0\0ab"), ("BYTES", (2,), bytes(12)), ("BYTES", (2,), bytes(9)),
        ("BYTES", (2,), b"\xff\xff\xff\xff"), ("BYTES", (2, 10**12), bytes(8)),
    ],
)  # fmt: skip
def test_an_output_of_another_size_is_refused(
    datatype: str, shape: tuple[int, ...], data: bytes
) -> None:
    with pytest.raises(BadAnswerError):
        predicted(2, Tensor("y", datatype, shape, data))


def test_no_output_is_refused() -> None:
    with pytest.raises(BadAnswerError):
        predicted(1)
