"""The Open Inference Protocol v2: outputs that came another way than in an answer, dealt out."""

from __future__ import annotations

import json
import struct
from array import array
from collections.abc import Sequence
from typing import Any

import pytest

from gpu_batcher.api import BadAnswerError, Call, Message, Reply, Tensor
from gpu_batcher.codecs.kserve_v2 import KserveV2
from tests.batcher import oip
from tests.batcher.oip import TARGET, Given

CODEC = KserveV2({"x": (1,)})


def call(rows: int, size: int = 2, **fields: Any) -> Call:
    given = Given("x", "INT8", (rows, size), [0] * (rows * size))
    head, body = oip.request([given], **fields)
    found = CODEC.read(TARGET, head, memoryview(body))
    assert found is not None
    return found


def outputs_of(reply: Reply) -> list[tuple[str, tuple[int, ...], list[Any]]]:
    assert reply.status == 200
    text, tail = oip.parsed(reply.head, reply.body)
    return [(each.name, each.shape, each.values) for each in oip.tensors(text["outputs"], tail)]


BINARY = {"binary_data_output": True}


def test_without_an_answer_all_are_told_of_the_model() -> None:
    calls = [call(1, id="a", parameters=BINARY), call(2, id="b"), call(1)]
    replies = CODEC.deal(calls, [Tensor("y", "INT16", (4, 1), struct.pack("<4h", 1, 2, 3, 4))])
    assert [oip.parsed(each.head, each.body)[0].get("id") for each in replies] == ["a", "b", None]
    for reply, mine in zip(replies, ([1], [2, 3], [4]), strict=True):
        assert oip.parsed(reply.head, reply.body)[0]["model_name"] == "echo"
        assert outputs_of(reply) == [("y", (len(mine), 1), mine)]


def parts(*shapes: tuple[int, ...]) -> list[Tensor]:
    """A tensor for each caller, of its own shape; its elements are the caller's place."""
    found = []
    for place, shape in enumerate(shapes):
        count = shape[0] * shape[1]
        found.append(Tensor("y", "INT8", shape, bytes([place]) * count))
    return found


@pytest.mark.parametrize("binary", [False, True])
def test_parts_have_shapes_of_their_own(binary: bool) -> None:
    """Two have as many rows, and not the same JSON, which is kept by rows where all are alike."""
    calls = [call(1, parameters={"binary_data_output": binary}) for _ in range(3)]
    calls.append(call(2, parameters={"binary_data_output": binary}))
    whole = [Tensor("y", "INT8", (5, 9), b""), Tensor("z", "INT8", (5,), b"abcde")]
    own = {"y": parts((1, 2), (1, 3), (1, 2), (2, 0))}
    replies = CODEC.deal(calls, whole, None, own)
    assert [outputs_of(each) for each in replies] == [
        [("y", (1, 2), [0, 0]), ("z", (1,), [ord("a")])],
        [("y", (1, 3), [1, 1, 1]), ("z", (1,), [ord("b")])],
        [("y", (1, 2), [2, 2]), ("z", (1,), [ord("c")])],
        [("y", (2, 0), []), ("z", (2,), [ord("d"), ord("e")])],
    ]


def test_parts_of_texts() -> None:
    calls = [call(1), call(1)]
    whole = Tensor("y", "BYTES", (2, 2), b"")
    own = [
        Tensor("y", "BYTES", (1, 1), oip.to_bytes("BYTES", [b"first"])),
        Tensor("y", "BYTES", (1, 2), oip.to_bytes("BYTES", [b"second", b""])),
    ]
    first, second = CODEC.deal(calls, [whole], None, {"y": own})
    assert outputs_of(first) == [("y", (1, 1), [b"first"])]
    assert outputs_of(second) == [("y", (1, 2), [b"second", b""])]
    own[0].data = oip.to_bytes("BYTES", [b"first", b"of another"])
    with pytest.raises(BadAnswerError, match="bytes after its 1 elements"):
        CODEC.deal(calls, [whole], None, {"y": own})


def test_parts_go_with_an_answer() -> None:
    answer = {
        "model_name": "m",
        "outputs": [{"name": "y", "datatype": "INT8", "shape": [2, 3]}],
    }
    message = Message([json.dumps(answer).encode()])
    own = {"y": parts((1, 1), (1, 2))}
    replies = CODEC.deal([call(1), call(1)], CODEC.outputs(message), message, own)
    assert [outputs_of(each)[0][2] for each in replies] == [[0], [1, 1]]
    assert json.loads(replies[0].body)["model_name"] == "m"


def part(shape: tuple[int, ...], data: Any, datatype: str = "INT8") -> Tensor:
    return Tensor("y", datatype, shape, data)


GOOD = part((1, 2), b"ab")
BAD: list[tuple[Sequence[Tensor], str]] = [
    ([], "parts for 0 callers of 2"),
    ([GOOD], "parts for 1 callers of 2"),
    ([GOOD, GOOD, GOOD], "parts for 3 callers of 2"),
    ([GOOD, part((), b"a")], "where 1 rows were asked"),
    ([GOOD, part((2, 1), b"ab")], "where 1 rows were asked"),
    ([GOOD, part((0, 2), b"")], "where 1 rows were asked"),
    ([GOOD, part((1, -1, -2), b"ab")], "where 1 rows were asked"),
    ([GOOD, part((1, 2), b"a")], "has 1 bytes where its shape and datatype have 2"),
    ([GOOD, part((1, 2), b"abc")], "has 3 bytes where its shape and datatype have 2"),
    ([GOOD, part((1, 1), b"ab", "INT16")], "another datatype"),
]


@pytest.mark.parametrize(("own", "said"), BAD)
def test_parts_that_are_not_the_callers(own: Sequence[Tensor], said: str) -> None:
    whole = Tensor("y", "INT8", (2, 2), b"abcd")
    with pytest.raises(BadAnswerError, match=said):
        CODEC.deal([call(1), call(1)], [whole], None, {"y": own})


def test_parts_of_what_there_is_not() -> None:
    whole = Tensor("y", "INT8", (2, 2), b"abcd")
    with pytest.raises(BadAnswerError, match="parts of an output that the answer does not have"):
        CODEC.deal([call(1), call(1)], [whole], None, {"z": [GOOD, GOOD]})


@pytest.mark.parametrize("form", [{}, BINARY])
def test_a_reply_shares_nothing_with_the_buffer(form: dict[str, Any]) -> None:
    """The buffer is another batch's next, or unmapped."""
    calls = [call(1, parameters=form), call(1, parameters=form)]
    buffer = bytearray(b"abcdefgh")
    view = memoryview(buffer)
    texts = bytearray(oip.to_bytes("BYTES", [b"one", b"two"]))
    whole = [
        Tensor("y", "INT8", (2, 2), view[:4]),
        Tensor("z", "INT8", (2, 2), b""),
        Tensor("t", "BYTES", (2,), memoryview(texts)),
    ]
    own = [part((1, 2), view[4:6]), part((1, 2), view[6:])]
    replies = CODEC.deal(calls, whole, None, {"z": own})
    before = [outputs_of(each) for each in replies]
    for each in [*whole, *own]:
        each.data = b""
    view.release()
    buffer.clear()  # Which a bytearray refuses as long as there is a view of it.
    texts.clear()
    for reply, mine in zip(replies, before, strict=True):
        assert type(reply.body) is bytes
        assert outputs_of(reply) == mine
    assert [each[0][2] for each in before] == [[97, 98], [99, 100]]
    assert [each[1][2] for each in before] == [[101, 102], [103, 104]]
    assert [each[2][2] for each in before] == [[b"one"], [b"two"]]


def test_rows_that_do_not_follow_one_another() -> None:
    """Every second element of a buffer, as a slice of an array is."""
    spread = memoryview(array("h", [1, 0, 2, 0, 3, 0]))[::2]
    replies = CODEC.deal([call(1), call(2)], [Tensor("y", "INT16", (3,), spread)])
    assert [outputs_of(each)[0][2] for each in replies] == [[1], [2, 3]]


def test_elements_of_another_machine() -> None:
    numpy = pytest.importorskip("numpy")
    for data in (numpy.array([1, 2], ">i2"), numpy.array([1, 0, 2], ">i2")[::2]):
        with pytest.raises(BadAnswerError, match="foreign format"):
            CODEC.deal([call(2)], [Tensor("y", "INT16", (2,), memoryview(data))])
