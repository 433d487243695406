"""Whatever goes in, embeddings come out at their own caller, and usage adds up."""

from __future__ import annotations

import base64
import json
import struct
from collections.abc import Mapping, Sequence
from typing import Any

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from gpu_batcher.api import BadAnswerError, BadRequestError, Call, Codec, Message, Tensor
from gpu_batcher.codecs.openai_embeddings import OpenAiEmbeddings, apportion

CODEC: Codec = OpenAiEmbeddings()
PLAIN: Codec = OpenAiEmbeddings(upstream_base64=False)
TARGET = b"/v1/embeddings"
HEAD = {b"content-type": b"application/json"}

texts = st.text(max_size=8)
tokens = st.lists(st.integers(0, 2**53 + 1), max_size=6)
formats = st.sampled_from([None, "float", "base64"])


def read(body: Any, codec: Codec = CODEC, head: Mapping[bytes, bytes] = HEAD) -> Call | None:
    text = body if isinstance(body, bytes) else json.dumps(body).encode()
    return codec.read(TARGET, head, memoryview(text))


def call(codec: Codec = CODEC, **fields: Any) -> Call:
    found = read({"model": "m", **fields}, codec)
    assert found is not None
    return found


def float32(numbers: Sequence[float]) -> bytes:
    return struct.pack(f"<{len(numbers)}f", *numbers)


def in_base64(numbers: Sequence[float]) -> str:
    return base64.b64encode(float32(numbers)).decode()


def numbers_of(embedding: Any) -> list[float]:
    """As a client reads it, which works with float32."""
    if isinstance(embedding, str):
        data = base64.b64decode(embedding)
        return list(struct.unpack(f"<{len(data) // 4}f", data))
    return list(struct.unpack(f"<{len(embedding)}f", float32(embedding)))


def vector(item: Any) -> list[float]:
    """What the stand-in makes of an input: its mark, and a number that is not exact in binary."""
    who, row = item[:2] if isinstance(item, list) else item.split()[:2]
    return numbers_of([int(who), int(row), 0.1])


def serve(joined: Message, order: Sequence[int] | None = None, **others: Any) -> Message:
    """A server: answers in the format asked for, its data in the order given."""
    request = json.loads(joined.joined())
    write = in_base64 if request.get("encoding_format") == "base64" else list
    data = [
        {"object": "embedding", "index": index, "embedding": write(vector(item))}
        for index, item in enumerate(request["input"])
    ]
    data = [data[index] for index in order] if order is not None else data
    used = sum(map(len, request["input"]))
    usage = {"prompt_tokens": used, "total_tokens": used}
    return answer(object="list", data=data, model="m-1", usage=usage, **others)


def answer(**fields: Any) -> Message:
    return Message([json.dumps(fields).encode()])


def rows(*indexes: Any, embedding: Any = (0.5,)) -> list[dict[str, Any]]:
    return [{"index": index, "embedding": embedding} for index in indexes]


# -- rows come out at their own caller ---------------------------------------------------------


@st.composite
def crowds(draw: st.DrawFn) -> list[tuple[list[Any], str | None]]:
    """The inputs of several callers, each input marked, and the format each wants."""
    kind = draw(st.booleans())
    sizes = draw(st.lists(st.integers(1, 4), min_size=1, max_size=6))
    crowd = []
    for who, size in enumerate(sizes):
        mine: list[Any] = [
            f"{who} {row} {draw(texts)}" if kind else [who, row, *draw(tokens)]
            for row in range(size)
        ]
        crowd.append((mine, draw(formats)))
    return crowd


@given(crowds(), st.booleans(), st.data())
def test_each_caller_gets_its_own_rows(
    crowd: list[tuple[list[Any], str | None]], plain: bool, data: st.DataObject
) -> None:
    codec, asked = (PLAIN, crowd[0][1]) if plain else (CODEC, None)
    calls = []
    for inputs, wants in crowd:
        wants = asked if plain else wants
        single = len(inputs) == 1 and data.draw(st.booleans())
        fields = {"encoding_format": wants} if wants else {}
        calls.append(call(codec, input=inputs[0] if single else inputs, **fields))
    assert len({each.key for each in calls}) == 1
    joined = codec.join(calls)
    request = json.loads(joined.joined())
    assert request["input"] == [item for inputs, _ in crowd for item in inputs]
    assert request["model"] == "m"
    assert request.get("encoding_format") == (asked if plain else "base64")
    order = data.draw(st.permutations(range(len(request["input"]))))
    replies = codec.divide(calls, serve(joined, order))
    used = 0
    for (inputs, wants), reply in zip(crowd, replies, strict=True):
        body = json.loads(reply.body)
        assert (body["object"], body["model"], reply.status) == ("list", "m-1", 200)
        assert [row["index"] for row in body["data"]] == list(range(len(inputs)))
        assert {row["object"] for row in body["data"]} == {"embedding"}
        assert [numbers_of(row["embedding"]) for row in body["data"]] == list(map(vector, inputs))
        form = str if (asked if plain else wants) == "base64" else list
        assert {type(row["embedding"]) for row in body["data"]} == {form}
        assert body["usage"]["prompt_tokens"] == sum(map(len, inputs))
        used += body["usage"]["total_tokens"]
    assert used == sum(map(len, request["input"]))


indexes = st.lists(st.integers(-2, 6) | st.sampled_from([2**31, 2**63, 10**4000]), max_size=7)


@given(st.lists(st.integers(1, 3), min_size=1, max_size=3), indexes)
@example([1], [0])
@example([2, 1], [2, 0, 1])
@example([1, 1], [0, 0])
@example([2], [1, 1])
def test_each_index_is_needed_exactly_once(sizes: list[int], found: list[int]) -> None:
    calls = [call(input=["x"] * size) for size in sizes]
    text = b'{"data": [' + b",".join(
        b'{"embedding":[0.5],"index":%s}' % str(index).encode() for index in found
    ) + b"]}"  # fmt: skip
    if sorted(found) == list(range(sum(sizes))):
        assert len(CODEC.divide(calls, Message([text]))) == len(calls)
    else:
        with pytest.raises(BadAnswerError, match=r"^data: "):
            CODEC.divide(calls, Message([text]))


# -- usage -----------------------------------------------------------------------------------------


@given(st.integers(0, 10**30), st.lists(st.integers(1, 10**6), min_size=1, max_size=20))
def test_parts_add_up_and_are_fair(total: int, weights: list[int]) -> None:
    parts = apportion(total, weights)
    assert sum(parts) == total
    for part, weight in zip(parts, weights, strict=True):
        assert abs(part * sum(weights) - total * weight) < sum(weights)
    assert apportion(sum(weights), weights) == weights


def test_usage_goes_by_characters_where_tokens_are_not_known() -> None:
    calls = [call(input="aaaa"), call(input=["bb", "é"]), call(input="c")]
    usage = {"prompt_tokens": 9, "total_tokens": 10, "prompt_tokens_details": None,
             "completion_tokens": 0, "cost": 0.5, "details": {"x": 1}, "odd": True,
             "less": -1, "huge": 2**70}  # fmt: skip
    text = answer(data=rows(0, 1, 2, 3), usage=usage)
    shares = [json.loads(reply.body)["usage"] for reply in CODEC.divide(calls, text)]
    assert [share["prompt_tokens"] for share in shares] == [5, 3, 1]
    assert [share["total_tokens"] for share in shares] == [5, 4, 1]
    assert [share["completion_tokens"] for share in shares] == [0, 0, 0]
    assert {key for share in shares for key in share} == {
        "prompt_tokens", "total_tokens", "completion_tokens", "prompt_tokens_details"
    }  # fmt: skip
    (whole,) = CODEC.divide([call(input="x")], answer(data=rows(0), usage=usage))
    assert json.loads(whole.body)["usage"] == usage


@pytest.mark.parametrize("usage", [[], 5, "x", {"prompt_tokens": [1]}])
def test_usage_of_another_shape(usage: Any) -> None:
    calls = [call(input="a"), call(input="b")]
    text = answer(data=rows(0, 1), usage=usage)
    if isinstance(usage, dict):
        assert [json.loads(each.body)["usage"] for each in CODEC.divide(calls, text)] == [{}, {}]
    else:
        with pytest.raises(BadAnswerError, match=r"^usage: "):
            CODEC.divide(calls, text)


@pytest.mark.parametrize("fields", [{}, {"usage": None}])
def test_no_usage_is_none(fields: dict[str, Any]) -> None:
    calls = [call(input="a"), call(input="b")]
    for reply in CODEC.divide(calls, answer(data=rows(0, 1), **fields)):
        body = json.loads(reply.body)
        assert {key: body[key] for key in body if key != "data"} == fields


# -- what is joined --------------------------------------------------------------------------------


def test_what_keeps_calls_apart() -> None:
    bodies: list[dict[str, Any]] = [
        {"input": "a"}, {"input": [1]}, {"input": "a", "model": "n"}, {"input": "a", "user": "u"},
        {"input": "a", "user": "v"}, {"input": "a", "dimensions": 8},
        {"input": "a", "truncate": True},
    ]  # fmt: skip
    assert len({call(**body).key for body in bodies}) == len(bodies)
    assert call(input="a").key == call(input=["b", "c"]).key
    assert call(input=[1]).key == call(input=[[1], [2, 3]]).key
    assert call(input="a").key == call(input="a", encoding_format="base64").key
    assert call(PLAIN, input="a").key != call(PLAIN, input="a", encoding_format="base64").key
    other = CODEC.read(b"/v1/embeddings?v=2", HEAD, memoryview(b'{"input":"a","model":"m"}'))
    assert other is not None
    assert other.key != call(input="a").key


def test_a_list_of_token_ids_is_one_input() -> None:
    found = call(input=[5, 2**63 - 1, 7])
    assert (found.rows, found.length, list(found.items)) == (1, 3, [[5, 2**63 - 1, 7]])
    assert json.loads(CODEC.join([found]).joined())["input"] == [[5, 2**63 - 1, 7]]
    found = call(input=["abcdefgh", "é"])
    assert (found.rows, found.length, found.size) == (2, 2, len('["abcdefgh", "\\u00e9"]'))


ALONE = [
    {"input": ""}, {"input": []}, {"input": ["a", ""]}, {"input": [[]]}, {"input": [[1], []]},
    {"input": "a", "encoding_format": "int8"}, {"input": "a", "encoding_format": 1},
]  # fmt: skip


@pytest.mark.parametrize("body", ALONE, ids=str)
def test_what_servers_differ_on_goes_alone(body: dict[str, Any]) -> None:
    assert read(body) is None


def test_another_path_or_encoding_goes_alone() -> None:
    body = memoryview(b'{"input": "a"}')
    assert CODEC.read(b"/v1/chat/completions", HEAD, body) is None
    assert CODEC.read(b"/x?y=/v1/embeddings", HEAD, body) is None
    assert CODEC.read(b"/team/v1/embeddings?x", HEAD, body) is not None
    assert CODEC.read(TARGET, {b"content-type": b"text/plain"}, body) is None
    assert CODEC.read(TARGET, {b"content-encoding": b"br"}, body) is None


# -- hostile requests ------------------------------------------------------------------------------

BOMB = b'{"input": ' + b"[" * 100_000 + b"]" * 100_000 + b"}"
MISTAKES = [
    b"", b"{", b"[]", b"null", b"{}", b'{"model": "m"}', b'{"input": null}', b'{"input": 5}',
    b'{"input": true}', b'{"input": {}}', b'{"input": [true]}', b'{"input": [1.5]}',
    b'{"input": [-1]}', b'{"input": [[-1]]}', b'{"input": [9223372036854775808]}',
    b'{"input": [' + b"9" * 6000 + b"]}", b'{"input": ["a", 1]}', b'{"input": ["a", [1]]}',
    b'{"input": [1, [1]]}', b'{"input": [[[1]]]}', b'{"input": [["a"]]}', b'{"input": [null]}',
    b'{"input": NaN}', b'{"input": "\xff"}', b'{"input": "\\udc00"}', b'{"input": "a\nb"}',
    b'\xef\xbb\xbf{"input": "a"}', BOMB, b'{"input": "a", "x": ' + BOMB + b"}", b'{"a":' * 100_000,
]  # fmt: skip


@pytest.mark.parametrize("body", MISTAKES, ids=lambda body: repr(body[:40]))
def test_mistakes_are_their_callers(body: bytes) -> None:
    with pytest.raises(BadRequestError, match=r"^(body|input): "):
        read(body)


def test_more_inputs_than_openai_takes() -> None:
    assert call(input=["a"] * 2048).rows == 2048
    assert call(input=list(range(3000))).rows == 1
    with pytest.raises(BadRequestError, match="at most 2048, got one of 2049"):
        call(input=["a"] * 2049)
    with pytest.raises(BadRequestError, match="at most 2048"):
        call(input=[[1]] * 2049)
    with pytest.raises(BadRequestError, match="at most 3"):
        call(OpenAiEmbeddings(max_inputs=3), input=["a"] * 4)


@given(st.binary(max_size=40) | st.text('{}[]",:\\ue+-.019 "input', max_size=40).map(str.encode))
@example(b'{"input":"a","input":["b","c"],"model":1,"model":2}')
def test_whatever_is_joined_is_json(noise: bytes) -> None:
    for body in (noise, b'{"input": ' + noise + b"}", b'{"input": ["a' + noise + b'"]}'):
        try:
            found = read(body)
        except BadRequestError:
            continue
        if found is not None:
            joined = json.loads(CODEC.join([found, found]).joined())
            assert joined["input"] == [*found.items, *found.items]
            assert joined["encoding_format"] == "base64"


# -- hostile answers -------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "text",
    [
        "", "x", "[]", "{}", '{"data": null}', '{"data": {}}', '{"error": {"message": "boom"}}',
        '{"data": [{"index": 0, "embedding": [1]}]}', '{"data": [1, 2]}',
        '{"data": [{"index": 0, "embedding": [1]}, {"embedding": [1]}]}',
        '{"data": [{"index": 0, "embedding": [1]}, {"index": 1}]}',
        '{"data": [{"index": 0, "embedding": [1]}, {"index": "1", "embedding": [1]}]}',
        '{"data": [{"index": 0, "embedding": [1]}, {"index": true, "embedding": [1]}]}',
        '{"data": [{"index": 0, "embedding": [1]}, {"index": 1, "embedding": null}]}',
        '{"data": [{"index": 0, "embedding": [1]}, {"index": 1, "embedding": {}}]}',
        '{"data": [{"index": 0, "embedding": [1]}, {"index": 1, "embedding": "AAAA"}]}',
        '{"data": [{"index": 0, "embedding": [1]}, {"index": 1, "embedding": ""}]}',
        '{"data": [{"index": 0, "embedding": [1]}, {"index": 1, "embedding": "!AAA"}]}',
        json.dumps({"data": rows(0, embedding="AAAAAA==") + rows(1, embedding="AAAAAAAAAAA=")}),
        '{"data": [{"index": 0, "embedding": [1]}, {"index": 1, "embedding": [1]}], "x": [0]}',
        '{"data": ' + "[" * 100_000,
    ],
    ids=lambda text: text[-40:],
)  # fmt: skip
def test_an_answer_that_cannot_be_divided(text: str) -> None:
    with pytest.raises(BadAnswerError):
        CODEC.divide([call(input="a"), call(input="b")], Message([text.encode()]))


def test_a_compressed_answer_is_not_divided() -> None:
    with pytest.raises(BadAnswerError, match="compressed"):
        CODEC.divide([call(input="a")], Message([b"x"], {b"content-encoding": b"gzip"}))


def test_a_server_that_answers_numbers_is_passed_on() -> None:
    """To callers of either form, and to the digit: base64 of these would not be exact."""
    text = b'{"data":[{"index":1,"embedding":[0.1, 1e-3]},{"index":0,"embedding":[2.50]}]}'
    calls = [call(input="a", encoding_format="base64"), call(input="b")]
    assert [reply.body for reply in CODEC.divide(calls, Message([text]))] == [
        b'{"data":[{"object":"embedding","index":0,"embedding":[2.50]}]}',
        b'{"data":[{"object":"embedding","index":0,"embedding":[0.1, 1e-3]}]}',
    ]


# -- a model in the sidecar ------------------------------------------------------------------------


def test_a_reply_from_rows() -> None:
    outputs = [Tensor("e", "FP32", (2, 3), float32([0.1, 1, -2.5, float("nan"), 4, 5]))]
    body = json.loads(CODEC.reply(call(input=["a", "b"]), outputs).body)
    assert body == {
        "object": "list",
        "data": [
            {"object": "embedding", "index": 0, "embedding": [0.1, 1.0, -2.5]},
            {"object": "embedding", "index": 1, "embedding": [None, 4.0, 5.0]},
        ],
        "model": "m",
        "usage": {"prompt_tokens": 0, "total_tokens": 0},
    }
    mine = call(input=[[7, 8], [9]], encoding_format="base64")
    body = json.loads(CODEC.reply(mine, outputs).body)
    assert body["data"][0]["embedding"] == in_base64([0.1, 1, -2.5])
    assert body["usage"] == {"prompt_tokens": 3, "total_tokens": 3}
    outputs.append(Tensor("prompt_tokens", "INT32", (2,), struct.pack("<2i", 4, 6)))
    body = json.loads(CODEC.reply(mine, outputs).body)
    assert body["usage"] == {"prompt_tokens": 10, "total_tokens": 10}


@pytest.mark.parametrize(
    ("datatype", "shape", "size"),
    [
        ("FP32", (1, 3), 12), ("FP32", (2, 3), 20), ("FP32", (2, 0), 0), ("FP32", (2,), 8),
        ("FP64", (2, 3), 48), ("FP32", (2, 3, 1), 24), ("FP32", (2, 10**12), 24), ("FP32", (), 4),
    ],
)  # fmt: skip
def test_rows_of_another_shape_are_refused(
    datatype: str, shape: tuple[int, ...], size: int
) -> None:
    with pytest.raises(BadAnswerError):
        CODEC.reply(call(input=["a", "b"]), [Tensor("e", datatype, shape, bytes(size))])


def test_no_rows_or_odd_counts_are_refused() -> None:
    with pytest.raises(BadAnswerError):
        CODEC.reply(call(input="a"), [])
    good = Tensor("e", "FP32", (1, 1), bytes(4))
    for count in (struct.pack("<i", -1), bytes(8)):
        with pytest.raises(BadAnswerError):
            CODEC.reply(call(input="a"), [good, Tensor("prompt_tokens", "INT32", (1,), count)])
