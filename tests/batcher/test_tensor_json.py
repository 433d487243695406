"""JSON data to bytes and back: exact for every datatype, and nothing else gets through."""

from __future__ import annotations

import json
import math
import struct
import tracemalloc
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gpu_batcher.api import SIZES
from gpu_batcher.codecs import tensor_bytes, tensor_json
from gpu_batcher.codecs.tensor_bytes import DataError
from tests.batcher.oip import CODES, ELEMENTS, NOT_JSON, from_bytes, nested, to_bytes, to_json

IN_JSON = sorted(set(SIZES).difference(NOT_JSON))


@st.composite
def tensors(draw: st.DrawFn, datatypes: list[str]) -> tuple[str, tuple[int, ...], list[Any]]:
    datatype = draw(st.sampled_from(datatypes))
    shape = tuple(draw(st.lists(st.integers(0, 3), min_size=1, max_size=3)))
    count = math.prod(shape)
    return datatype, shape, draw(st.lists(ELEMENTS[datatype], min_size=count, max_size=count))


@given(tensors(IN_JSON), st.booleans())
def test_there_and_back(tensor: tuple[str, tuple[int, ...], list[Any]], flat: bool) -> None:
    datatype, shape, values = tensor
    plain = to_json(datatype, values)
    text = json.dumps(plain if flat else nested(plain, shape)).encode()
    data = tensor_json.decode(datatype, text, math.prod(shape))
    assert data == to_bytes(datatype, values)
    back = json.loads(tensor_json.encode(datatype, memoryview(data)))
    assert [type(each) for each in back] == [type(each) for each in plain]
    assert back == plain


@given(st.lists(st.floats(width=16, allow_nan=False, allow_infinity=False)))
def test_half_precision_there_and_back(values: list[float]) -> None:
    data = tensor_json.decode("FP16", json.dumps(values).encode(), len(values))
    assert data == struct.pack(f"<{len(values)}e", *values)
    assert json.loads(tensor_json.encode("FP16", memoryview(data))) == values


ANY_JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=3),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=2), inner),
    max_leaves=8,
)


@given(
    st.sampled_from([*SIZES, "STRING"]),
    ANY_JSON.map(json.dumps).map(str.encode) | st.binary(max_size=20),
    st.integers(0, 8),
    st.booleans(),
)
def test_whatever_comes_is_a_tensor_or_refused(
    datatype: str, text: bytes, count: int, nulls: bool
) -> None:
    try:
        data = tensor_json.decode(datatype, text, count, nulls=nulls)
    except DataError:
        return
    assert len(from_bytes(datatype, data)) == count


REFUSED = [
    ("INT32", b"[1, 2", "no array of INT32"),
    ("INT32", b"[1, 2]x", "no array of INT32"),
    ("INT32", b"[1, 2, 3]", "has 3 elements where its shape has 2"),
    ("INT32", b"[1]", "has 1 elements where its shape has 2"),
    ("INT32", b"[[1], 2]", "no array of INT32"),
    ("INT32", b"[1, [2]]", "no array of INT32"),
    ("INT32", b"12", "an array"),
    ("INT32", b"null", "an array"),
    ("INT32", b'{"0": 1}', "an array"),
    ("INT32", b'["1", "2"]', "no array of INT32"),
    ("INT32", b"[1, 2.5]", "no array of INT32"),
    ("INT32", b"[1, true]", "no array of INT32"),
    ("INT32", b"[1, null]", "no array of INT32"),
    ("INT32", b"[1, 2147483648]", "INT32 has no room for"),
    ("INT32", b"[1, -2147483649]", "INT32 has no room for"),
    ("INT64", b"[1, 9223372036854775808]", "INT64 has no room for"),
    ("UINT8", b"[1, 256]", "UINT8 has no room for"),
    ("UINT8", b"[1, -1]", "UINT8 has no room for"),
    ("UINT64", b"[1, 18446744073709551616]", "UINT64"),
    ("UINT64", b"[1, " + b"9" * 5000 + b"]", "UINT64"),
    ("BOOL", b"[true, 1]", "no array of BOOL"),
    ("FP32", b"[1, NaN]", "no array of FP32"),
    ("FP32", b"[1, Infinity]", "no array of FP32"),
    ("FP32", b"[1, null]", "no array of FP32"),
    ("FP32", b"[1, 1e39]", "FP32 has no room for"),
    ("FP64", b"[1, 1e999]", "FP64"),
    ("FP16", b"[1, 65536]", "FP16 has no room for"),
    ("BF16", b"[1, 2]", "JSON cannot carry"),
    ("BYTES", b'["a", 2]', "no array of BYTES"),
    ("BYTES", b'["a", "\xff"]', "BYTES"),
    ("BYTES", b'["a", "\\ud800"]', "."),
    ("BYTES", b'["a", "\\udc00"]', "."),
    ("INT32", b"[" * 33 + b"]" * 33, "nested at most 32"),
    ("INT32", b"[" * 200_000, "nested at most 32"),
]


@pytest.mark.parametrize(("datatype", "text", "said"), REFUSED)
def test_refused(datatype: str, text: bytes, said: str) -> None:
    with pytest.raises(DataError, match=said):
        tensor_json.decode(datatype, text, 2)


def test_integers_beyond_2_to_the_53() -> None:
    for datatype, value in (("INT64", -(2**63)), ("INT64", 2**53 + 1), ("UINT64", 2**64 - 1)):
        data = tensor_json.decode(datatype, b"[%d]" % value, 1)
        assert tensor_json.encode(datatype, memoryview(data)) == b"[%d]" % value


def test_an_integer_is_a_float_where_one_is_asked_for() -> None:
    assert tensor_json.decode("FP64", b"[1, 36893488147419103232]", 2) == struct.pack(
        "<2d", 1, 2**65
    )


def test_a_server_may_write_null_for_what_is_no_number() -> None:
    data = tensor_json.decode("FP32", b"[1.5, null]", 2, nulls=True)
    first, second = struct.unpack("<2f", data)
    assert first == 1.5
    assert math.isnan(second)
    with pytest.raises(DataError):
        tensor_json.decode("INT32", b"[1, null]", 2, nulls=True)
    everything = struct.pack("<4d", 1.5, math.nan, math.inf, -math.inf)
    assert json.loads(tensor_json.encode("FP64", memoryview(everything))) == [1.5, None, None, None]


def test_any_byte_but_0_is_true() -> None:
    assert tensor_json.encode("BOOL", memoryview(b"\0\1\2")) == b"[false,true,true]"


@pytest.mark.parametrize(
    ("datatype", "data"), [("BF16", b"\0\0"), ("BYTES", to_bytes("BYTES", [b"\xff"])), ("X", b"")]
)
def test_what_json_cannot_carry(datatype: str, data: bytes) -> None:
    with pytest.raises(DataError, match="JSON cannot carry"):
        tensor_json.encode(datatype, memoryview(data))


def test_every_datatype_is_known() -> None:
    for datatype, code in tensor_json.FORMATS.items():
        assert struct.calcsize("<" + code) == SIZES[datatype]
        assert struct.calcsize("<" + CODES[datatype]) == SIZES[datatype]
    assert set(SIZES) - set(tensor_json.FORMATS) == {"BF16", "BYTES"}


# -- elements of BYTES ------------------------------------------------------------------------


@given(st.lists(st.lists(st.binary(max_size=4), max_size=4), max_size=5))
def test_runs_of_elements_end_where_they_end(runs: list[list[bytes]]) -> None:
    data = tensor_bytes.pack(each for run in runs for each in run)
    stops = tensor_bytes.ends(memoryview(data), [len(run) for run in runs])
    starts = [0, *stops]
    for run, start, stop in zip(runs, starts, stops, strict=False):
        assert [bytes(each) for each in tensor_bytes.elements(memoryview(data)[start:stop])] == run
    assert (stops or [0])[-1] == len(data)


@given(st.binary(max_size=24), st.lists(st.integers(0, 4), max_size=3))
def test_any_bytes_are_whole_elements_or_refused(data: bytes, counts: list[int]) -> None:
    try:
        tensor_bytes.ends(memoryview(data), counts)
    except DataError:
        return
    assert len(tensor_bytes.elements(memoryview(data))) == sum(counts)


@pytest.mark.parametrize(
    ("data", "counts"),
    [
        (b"\1\0\0\0a", [2]),
        (b"\1\0\0\0a", [0]),
        (b"\1\0\0\0a\0", [1]),
        (b"\2\0\0\0a", [1]),
        (b"\xff\xff\xff\xffa", [1]),
        (b"\xff\xff\xff\xff" * 4, [1, 1]),
        (b"\1\0\0\0a\1\0\0", [1, 1]),
        (b"", [2**62]),
        (b"\0\0\0\0", [0, 10**50]),
    ],
)
def test_elements_that_are_not_whole(data: bytes, counts: list[int]) -> None:
    with pytest.raises(DataError):
        tensor_bytes.ends(memoryview(data), counts)


def test_nothing_is_allocated_by_a_claim() -> None:
    tracemalloc.start()
    try:
        with pytest.raises(DataError):
            tensor_json.decode("FP64", b"[1]", 2**62)
        with pytest.raises(DataError):
            tensor_bytes.ends(memoryview(b"\xff\xff\xff\xff"), (2**62,))
        assert tracemalloc.get_traced_memory()[1] < 1 << 20
    finally:
        tracemalloc.stop()
