"""Every codec against hostile answers: a caller gets its own rows, or all get BadAnswerError.

What a server says of a row nobody can check; but whose row it is depends on its place alone. So
whatever is done to an answer, if it is divided at all, the replies put together are the rows of
the answer as a plain reader finds them, as many for each caller as it has.
"""

from __future__ import annotations

import json
import struct
from math import prod
from typing import TYPE_CHECKING, Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from gpu_batcher.api import SIZES, BadAnswerError, Message, Tensor
from gpu_batcher.codecs.kserve_v2 import KserveV2
from gpu_batcher.codecs.tensor_bytes import DataError, ends
from tests.batcher import oip
from tests.batcher.oip import HEADER
from tests.batcher.wires import Infer, Wire, wires

if TYPE_CHECKING:
    from gpu_batcher.api import Call

WIRES = wires()
every_wire = st.sampled_from(WIRES)
crowds = st.lists(st.tuples(st.integers(1, 3), st.integers(0, 15)), min_size=1, max_size=4)
"""Rows and style of each caller."""

SPARKS = [
    b"", b'"', b"[", b"]", b"{", b"}", b",", b"0", b"1", b"-", b"null", b"NaN", b"-Infinity",
    b"\xff", b"1,", b"[],", b'"x",', b"null,", b"1e999", b"9" * 5000, b"\\ud800", b"\0", b"[[",
    b'"index":0,',
    b'"predictions":[1],', b'"data":[],', b'"outputs":[],', b'"shape":[1],', b'"error":"x",',
    b'"id":"x",', b'"datatype":"BYTES",', b'"parameters":{"binary_data_size":0},', b"AAAA",
]  # fmt: skip
spoils = st.lists(
    st.tuples(
        st.integers(0, 600), st.integers(0, 6), st.sampled_from(SPARKS) | st.binary(max_size=3)
    ),
    min_size=1,
    max_size=3,
)


def batch(wire: Wire, crowd: list[tuple[int, int]]) -> list[Call]:
    calls = []
    mark = 1
    for rows, style in crowd:
        calls.append(wire.read(list(range(mark, mark + rows)), style))
        mark += rows
    return calls


def check(wire: Wire, calls: list[Call], answer: Message) -> bool:
    """Whether the answer was divided."""
    try:
        replies = wire.codec.divide(calls, answer)
    except BadAnswerError as error:
        said = str(error)
    else:
        assert len(replies) == len(calls)
        found = []
        for call, reply in zip(calls, replies, strict=True):
            mine = wire.replied(reply)
            assert len(mine) == call.rows
            found += mine
        assert found == wire.rows(answer.head, answer.joined())
        return True
    said.encode()
    assert len(said) < 1000
    return False


def spoiled(body: bytes, spoil: list[tuple[int, int, bytes]]) -> bytes:
    for place, size, piece in spoil:
        at = place % (len(body) + 1)
        body = body[:at] + piece + body[at + size :]
    return body


@given(every_wire, crowds, st.binary(max_size=60), st.none() | st.binary(max_size=3))
def test_any_answer(
    wire: Wire, crowd: list[tuple[int, int]], body: bytes, length: bytes | None
) -> None:
    head = {} if length is None else {HEADER: length}
    assert not check(wire, batch(wire, crowd), Message([body], head))


@settings(max_examples=600)
@given(every_wire, crowds, spoils)
def test_spoiled_answers(
    wire: Wire, crowd: list[tuple[int, int]], spoil: list[tuple[int, int, bytes]]
) -> None:
    calls = batch(wire, crowd)
    answer = wire.serve(wire.codec.join(calls))
    whole = answer.joined()
    assert check(wire, calls, answer)
    check(wire, calls, Message([spoiled(whole, spoil)], answer.head))
    if HEADER in answer.head:
        length = int(answer.head[HEADER])
        text = spoiled(whole[:length], spoil)
        check(wire, calls, Message([text, whole[length:]], {HEADER: b"%d" % len(text)}))


def rows_of(fields: dict[str, Any]) -> list[Any]:
    """The list in a JSON answer that has a row for each."""
    found: list[Any] = fields["data"] if "data" in fields else fields["predictions"]
    return found


@given(st.sampled_from(WIRES[:4]), crowds, st.data())
def test_rows_too_many_or_too_few(
    wire: Wire, crowd: list[tuple[int, int]], data: st.DataObject
) -> None:
    calls = batch(wire, crowd)
    answer = wire.serve(wire.codec.join(calls))
    fields = json.loads(answer.joined())
    rows = rows_of(fields)
    at = data.draw(st.integers(0, len(rows) - 1))
    rows[at : at + 1] = [rows[at]] * data.draw(st.sampled_from([0, 2, 3]))
    assert not check(wire, calls, Message([json.dumps(fields).encode()]))


@given(st.sampled_from(WIRES[-2:]), crowds, st.data())
def test_tensors_with_rows_too_many_or_too_few(
    wire: Infer, crowd: list[tuple[int, int]], data: st.DataObject
) -> None:
    """Also where the rows of one output add up, or its bytes do."""
    calls = batch(wire, crowd)
    answer = wire.serve(wire.codec.join(calls))
    text, tail = oip.parsed(answer.head, answer.joined())
    output = data.draw(st.sampled_from(text["outputs"]))
    rows = output["shape"][0]
    output["shape"][0] = data.draw(st.integers(0, rows + 2).filter(lambda each: each != rows))
    if "data" in output and data.draw(st.booleans()):
        size = len(output["data"]) // rows
        output["data"] = (output["data"] * 3)[: size * output["shape"][0]]
    body = json.dumps(text).encode()
    head = {HEADER: b"%d" % len(body)} if HEADER in answer.head else {}
    assert not check(wire, calls, Message([body, tail], head))


# -- tensors that did not come in an answer --------------------------------------------------------

datatypes = st.sampled_from(["INT8", "INT8", "FP64", "BYTES", "BOOL", "BF16", "STRING", ""])
tails = st.lists(st.integers(0, 2), max_size=2).map(tuple)


@st.composite
def tensors(draw: st.DrawFn, name: str, rows: int, datatype: str) -> Tensor:
    """Mostly right: of as many rows, and bytes for its shape."""
    shape = draw(tails.map(lambda tail: (rows, *tail)))
    count = prod(shape)
    if datatype == "BYTES":
        data = oip.to_bytes(
            "BYTES", draw(st.lists(st.binary(max_size=2), min_size=count, max_size=count))
        )
    else:
        data = draw(
            st.binary(
                min_size=count * SIZES.get(datatype, 1), max_size=count * SIZES.get(datatype, 1)
            )
        )
    match draw(st.integers(0, 15)):
        case 0:
            data = draw(st.binary(max_size=20))
        case 1:
            shape = draw(st.lists(st.integers(-1, 3), max_size=3).map(tuple))
        case 2:
            data += b"\0"
        case 3:
            datatype = draw(datatypes)
        case _:
            pass
    return Tensor(name, datatype, shape, draw(st.sampled_from([bytes, bytearray]))(data))


BINARY = 7
"""A style of ``Infer`` that wants binary data."""


@settings(max_examples=400)
@given(st.lists(st.integers(1, 3), min_size=1, max_size=4), st.data())
def test_any_tensors(rows: list[int], data: st.DataObject) -> None:
    wire = Infer(binary=True)
    codec = wire.codec
    assert isinstance(codec, KserveV2)
    calls = batch(wire, [(each, BINARY) for each in rows])
    outputs = []
    own = {}
    for name in data.draw(st.lists(st.sampled_from("xyz"), min_size=1, max_size=3)):
        datatype = data.draw(datatypes)
        outputs.append(data.draw(tensors(name, sum(rows), datatype)))
        if data.draw(st.booleans()):
            counts = (
                rows if data.draw(st.integers(0, 7)) else data.draw(st.permutations([*rows, 1]))
            )
            own[name] = [data.draw(tensors(name, each, datatype)) for each in counts]
    try:
        replies = codec.deal(calls, outputs, None, own)
    except BadAnswerError:
        return
    assert len({each.name for each in outputs}) == len(outputs)
    for place, (call, reply) in enumerate(zip(calls, replies, strict=True)):
        assert type(reply.body) is bytes
        text, tail = oip.parsed(reply.head, reply.body)
        for told, whole in zip(text["outputs"], outputs, strict=True):
            assert (told["name"], told["datatype"]) == (whole.name, whole.datatype)
            assert told["shape"][0] == call.rows
            size = told["parameters"]["binary_data_size"]
            shape, mine = expected(whole, own.get(whole.name), rows, place)
            assert (tuple(told["shape"]), tail[:size]) == (shape, mine)
            tail = tail[size:]
        assert not tail


def expected(
    whole: Tensor, own: list[Tensor] | None, rows: list[int], place: int
) -> tuple[tuple[int, ...], bytes]:
    """The plain way: an element at a time."""
    if own is not None:
        return own[place].shape, bytes(own[place].data)
    before = sum(rows[:place])
    size = prod(whole.shape[1:])
    data = bytes(whole.data)
    if whole.datatype == "BYTES":
        values = [oip.to_bytes("BYTES", [each]) for each in oip.from_bytes("BYTES", data)]
    else:
        wide = SIZES[whole.datatype]
        values = [data[at : at + wide] for at in range(0, len(data), wide)]
    mine = b"".join(values[before * size : (before + rows[place]) * size])
    return (rows[place], *whole.shape[1:]), mine


@given(st.binary(max_size=20), st.lists(st.integers(0, 3), min_size=1, max_size=4))
def test_where_elements_end(data: bytes, counts: list[int]) -> None:
    """Against the plain reader: all of the bytes, and as many elements."""
    try:
        found = ends(memoryview(data), counts)
    except DataError:
        with pytest.raises((AssertionError, struct.error)):
            assert len(oip.from_bytes("BYTES", data)) == sum(counts)
        return
    starts = [0, *found[:-1]]
    pieces = [data[a:b] for a, b in zip(starts, found, strict=True)]
    assert b"".join(pieces) == data
    assert [len(oip.from_bytes("BYTES", each)) for each in pieces] == counts
