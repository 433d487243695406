"""Every codec against hostile requests: whatever a caller sends, nobody else ever notices.

``read`` gives a call, None or BadRequestError, from memory in proportion to the body; and a call
that it gave is joined with another's, and both get their own.
"""

from __future__ import annotations

import json
import tracemalloc
from typing import Any

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from gpu_batcher.api import BadRequestError, Call
from tests.batcher.oip import HEADER, TARGET
from tests.batcher.wires import Wire, wires

WIRES = wires()
every_wire = st.sampled_from(WIRES)

MOST_PER_BYTE = 64
"""Bytes of memory for one of a body: what Python makes of ``[[]],`` or of ``1,``."""
MOST_BESIDES = 1 << 16


def read(wire: Wire, head: dict[bytes, bytes], body: bytes) -> Call | None:
    """A call, or None where it is alone or bad. Watches the memory."""
    said = ""
    tracemalloc.start()
    try:
        return wire.codec.read(wire.target, head, memoryview(body))
    except BadRequestError as error:
        said = str(error)
        return None
    finally:
        peak = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        assert peak <= MOST_PER_BYTE * len(body) + MOST_BESIDES
        # It goes to the caller, so it is to be text that can be sent.
        assert len(said.encode()) < 1000


def attack(wire: Wire, head: dict[bytes, bytes], body: bytes) -> Call | None:
    """Read a body and, if it is taken for a call, join it with a good one."""
    call = read(wire, head, body)
    if call is None:
        return None
    assert call.rows >= 1
    assert call.size >= 0
    good = wire.read([77, 78], 1)
    batch = [good, call, good] if call.key == good.key else [call, call]
    joined = wire.codec.join(batch)
    if call.key == good.key:
        replies = wire.codec.divide(batch, wire.serve(joined))
        assert [wire.replied(each) for each in replies] == [wire.own(each) for each in batch]
    return call


@pytest.fixture(scope="module", autouse=True)
def warm() -> None:
    """What is made once for all is no part of any request's memory."""
    for wire in WIRES:
        for style in range(16):
            head, body = wire.request([1], style)
            assert attack(wire, head, body) is not None


# -- any bytes, and spoiled ones -------------------------------------------------------------------

heads = st.dictionaries(
    st.sampled_from([b"content-type", b"content-encoding", HEADER]),
    st.sampled_from([b"application/json", b"identity", b"gzip", b"0", b"5", b"-1", b"9" * 30])
    | st.binary(max_size=8),
    max_size=2,
)


@given(every_wire, heads, st.binary(max_size=80))
def test_any_bytes(wire: Wire, head: dict[bytes, bytes], body: bytes) -> None:
    assert attack(wire, head, body) is None


SPARKS = [
    b'"', b"[", b"]", b"{", b"}", b",", b":", b"\\", b"0", b"-", b".5", b"e9", b"1e999", b"true",
    b"null", b"NaN", b"-Infinity", b"9" * 30, b"9" * 5000, b"\\ud800", b'"\\udc00"',
    b"\xef\xbb\xbf", b"\0", b"\xff", b"\xc0\x80", b"\xed\xa0\x80", b"[[[[[[[[", b" " * 9, b"\n",
    b"[],", b"{},", b'"data":[1],', b'"name":"",', b'"name":"n",', b'"id":"x",', b'"shape":[1],',
    b"2147483648",
    b'"inputs":[],', b'"input":["a"],', b'"instances":[1],', b'"encoding_format":"base64",',
    b'"datatype":"FP64",', b'"binary_data_size":4,', b'"parameters":{},', b"-1,", b"1.0", b"[1]",
]  # fmt: skip
spoils = st.lists(
    st.tuples(
        st.integers(0, 400),
        st.integers(0, 6),
        st.sampled_from([b"", *SPARKS]) | st.binary(max_size=3) | st.none(),
    ),
    min_size=1,
    max_size=3,
)


def spoiled(body: bytes, spoil: list[tuple[int, int, bytes | None]]) -> bytes:
    """With pieces cut out, put in, replaced or (None) doubled, and at 400 cut off."""
    for place, size, piece in spoil:
        at = place % (len(body) + 1)
        end = at + size
        body = body[:at] + (body[at:end] * 2 if piece is None else piece) + body[end:]
        body = body[:at] if place == 400 else body
    return body


@settings(max_examples=1000)
@given(every_wire, st.integers(0, 15), st.lists(st.integers(1, 99), min_size=1, max_size=3), spoils)
def test_spoiled_requests(
    wire: Wire, style: int, marks: list[int], spoil: list[tuple[int, int, bytes | None]]
) -> None:
    head, body = wire.request(marks, style)
    attack(wire, head, spoiled(body, spoil))
    if HEADER in head:
        text = spoiled(body[: int(head[HEADER])], spoil)
        attack(wire, {HEADER: b"%d" % len(text)}, text + body[int(head[HEADER]) :])
        attack(wire, {HEADER: b"%d" % (int(head[HEADER]) + spoil[0][1] - 3)}, body)


# -- requests of the Open Inference Protocol that lie ----------------------------------------------

sizes: st.SearchStrategy[Any] = st.sampled_from(
    [
        0,
        1,
        1,
        2,
        2,
        4,
        8,
        -1,
        2**31,
        2**32,
        2**62,
        2**63,
        2**64,
        10**30,
        1.0,
        1.5,
        True,
        None,
        "1",
        [],
    ]
)
scalars: st.SearchStrategy[Any] = st.sampled_from(
    [0, 1, -1, 1.5, True, None, "", "é", "\0", 2**53 + 1, 2**70, [], {}, [[1]]]
)
GOOD: list[dict[str, Any]] = [
    {"name": "n", "shape": [1], "datatype": "INT32", "data": [1]},
    {"name": "t", "shape": [1, 1], "datatype": "BYTES", "data": [["a"]]},
    {"name": "b", "shape": [1], "datatype": "BOOL", "parameters": {"binary_data_size": 1}},
    {"name": "u", "shape": [1], "datatype": "BYTES", "parameters": {"binary_data_size": 4}},
]
parameters = st.dictionaries(
    st.sampled_from(["binary_data_size", "shared_memory_region", "binary_data_output", "k", ""]),
    sizes | scalars,
    max_size=2,
)
lies = st.one_of(
    st.tuples(st.just("name"), st.sampled_from(["n", "t", "", "\0", "é" * 90, 1, None])),
    st.tuples(st.just("shape"), st.lists(sizes, max_size=4) | scalars),
    st.tuples(st.just("datatype"), st.sampled_from(["INT32", "UINT32", "BYTES", "FP16", "", 1])),
    st.tuples(st.just("data"), st.lists(scalars, max_size=3) | scalars),
    st.tuples(st.just("parameters"), parameters | scalars),
    st.tuples(st.just("unknown"), scalars),
)
entries = st.builds(
    lambda good, lies: {**good, **dict(lies)}, st.sampled_from(GOOD), st.lists(lies, max_size=1)
)
requests = st.fixed_dictionaries(
    {"inputs": st.lists(entries, max_size=2)},
    optional={
        "id": st.sampled_from(["", "1", "é", 1]),
        "outputs": st.lists(
            st.fixed_dictionaries({"name": st.just("y")}, optional={"parameters": parameters}),
            max_size=1,
        ),
        "parameters": parameters,
    },
)


@settings(max_examples=600)
@given(
    st.sampled_from(WIRES[-2:]),
    requests,
    st.none() | st.sampled_from([b"\1", b"\0" * 4, b"\0" * 5]),
)
def test_any_request_for_inference(wire: Wire, request: dict[str, Any], tail: bytes | None) -> None:
    text = json.dumps(request).encode()
    head = {} if tail is None else {HEADER: b"%d" % len(text)}
    call = attack(wire, head, text + (tail or b""))
    for each in call.inputs if call else ():
        assert len(each.data) <= len(text) + len(tail or b"")


# -- one by one ------------------------------------------------------------------------------------

MANY = 10_000


def tensor(**fields: Any) -> str:
    return json.dumps({"name": "x", "shape": [1], "datatype": "INT8", "data": [1], **fields})


def inputs(*entries: str, more: str = "") -> str:
    return '{"inputs":[' + ",".join(entries) + "]" + more + "}"


BOMB = "[" * 100_000
BALANCED = BOMB + "]" * 100_000
OBJECTS = '{"a":' * 100_000
LISTS = "[" + ",".join(["[[]]"] * MANY) + "]"
INFERS = [
    inputs(*[tensor(name=str(number)) for number in range(MANY)]),
    inputs(*[tensor()] * MANY),
    inputs(*["{}"] * MANY),
    inputs(*[tensor(name="")] * 2),
    inputs(tensor(name="")),
    inputs(tensor(shape=[MANY], data=[1] * MANY)),
    inputs(tensor(shape=[MANY], data=[""] * MANY, datatype="BYTES")),
    inputs(tensor(shape=[1] * MANY)),
    inputs(tensor(shape=[2**31])),
    inputs(tensor(shape=[2**62, 2**62, 2**62])),
    inputs(tensor(shape=[1, 0, 2**62], data=[])),
    inputs(tensor(shape=[-1])),
    inputs(tensor(shape=[1.0])),
    inputs(tensor(shape=[True])),
    inputs(tensor(name="\ud800")),
    inputs(tensor(data=float("nan"), datatype="FP32")),
    inputs(tensor(data=[float("inf")], datatype="FP32")),
    inputs(tensor().replace("[1]}", LISTS + "}")),
    inputs(tensor().replace("[1]}", BOMB)),
    inputs(tensor().replace("[1]}", BALANCED + "}")),
    inputs(tensor(), more=',"parameters":{"k":' + BALANCED + "}"),
    inputs(tensor(), more=',"parameters":{"k":' + LISTS + "}"),
    inputs(tensor(), more=',"parameters":' + OBJECTS),
    inputs(tensor(), more=',"parameters":{"k":1,"k":2}'),
    inputs(tensor(), more=',"parameters":{"k":1' + "0" * 5000 + "}"),
    inputs(tensor(), more=',"id":"' + "\\u0000" * MANY + '"'),
    inputs(tensor(), more=',"inputs":[]'),
    "\ufeff" + inputs(tensor()),
    inputs(tensor()) + "\0",
    '{"id":"' + "a" * MANY,
    '{"id" :' + " " * MANY,
    BOMB,
    OBJECTS,
]
PREDICTS = [
    *[
        f'{{"instances":{each}}}'
        for each in (BOMB, BALANCED, LISTS, str([1] * MANY), str([{}] * MANY))
    ],
    *[
        f'{{"instances":{each}}}'
        for each in ("[1,]", "[NaN]", '["\\ud800"]', "[1" + "0" * MANY + "]")
    ],
    '{"instances":[1],"a":' + BALANCED + "}",
    '{"instances":[1],"instances":[2],"":1,"":2}',
    '{"instances":[1],' + ",".join(f'"{number}":1' for number in range(MANY)) + "}",
    '{"instances":["' + '\\"' * MANY,
    '{"instances":[NaN,"' + '\\"' * MANY,
    '\ufeff{"instances":[1]}',
    '{"instances":[1]}\0',
    OBJECTS,
]
EMBEDS = [
    *[
        f'{{"input":{each}}}'
        for each in (BOMB, BALANCED, LISTS, str([1] * MANY), str([[1]] * MANY))
    ],
    *[json.dumps({"input": each}) for each in ([""] * MANY, ["a"] * 2048, "", "\0", "\ud800")],
    '{"input":[' + "9" * 9000 + "]}",
    '{"input":"a","x":' + BALANCED + "}",
    '{"input":"a","input":"b","":1,"":2}',
    '{"input":"a","model":NaN}',
    '\ufeff{"input":"a"}',
    '{"input":"a"}\0',
    OBJECTS,
]
HOSTILE = [
    *[(wire, each.encode(errors="surrogatepass")) for wire in WIRES[-2:] for each in INFERS],
    *[(WIRES[0], each.encode(errors="surrogatepass")) for each in PREDICTS],
    *[(wire, each.encode(errors="surrogatepass")) for wire in WIRES[1:4] for each in EMBEDS],
]


@pytest.mark.parametrize(("wire", "body"), HOSTILE, ids=lambda each: repr(each)[:40])
def test_hostile_bodies(wire: Wire, body: bytes) -> None:
    attack(wire, {}, body)
    if wire.target == TARGET:
        attack(wire, {HEADER: b"%d" % len(body)}, body + b"\0" * 10)


@pytest.mark.parametrize("wire", WIRES[-2:], ids=repr)
def test_two_gigabytes_in_ten_bytes(wire: Wire) -> None:
    for size, shape in ((2**31, 2**29), (10, 2**29), (2**31, 1)):
        for datatype in ("INT32", "BYTES"):
            entry = {
                "name": "x",
                "shape": [1, shape],
                "datatype": datatype,
                "parameters": {"binary_data_size": size},
            }
            text = json.dumps({"inputs": [entry]}).encode()
            assert read(wire, {HEADER: b"%d" % len(text)}, text + b"0123456789") is None


# -- what one caller sends is never told another ---------------------------------------------------


@given(every_wire, st.integers(0, 15), spoils)
@example(WIRES[4], 1, [(60, 0, b"\xff")])
def test_an_error_tells_nothing_of_the_call_before(
    wire: Wire, style: int, spoil: list[tuple[int, int, bytes | None]]
) -> None:
    """What a codec keeps between requests is never seen by another: it says the same as one that
    has never read anything."""
    fresh = next(each for each in wires() if repr(each) == repr(wire))
    head, body = wire.request([5], style)
    wire.codec.read(wire.target, head, memoryview(body))
    body = spoiled(body, spoil)
    assert outcome(wire, head, body) == outcome(fresh, head, body)


def outcome(wire: Wire, head: dict[bytes, bytes], body: bytes) -> object:
    try:
        call = wire.codec.read(wire.target, head, memoryview(body))
    except BadRequestError as error:
        return str(error)
    return call and (call.key, call.rows, call.size, call.length, repr(wire.own(call)), call.notes)
