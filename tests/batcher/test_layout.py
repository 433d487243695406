"""Layouts against a model in plain Python: every element of every caller in its own place."""

from __future__ import annotations

import itertools
import struct
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gpu_batcher import hostcopy
from gpu_batcher.api import Call, Tensor
from gpu_batcher.grid import (
    ALIGN,
    BOX,
    STAGE,
    DoesNotFitError,
    Layout,
    LayoutError,
    aligned,
    following,
    regions,
)
from gpu_batcher.layout import make
from gpu_batcher.packing import Extra, Packing, Rule
from tests.batcher.batches import call, calls_of, expected, padded_batches, target_of

ROOM = 1 << 20
SEQUENCE = Packing(rules={"x": Rule(axes=(1,))})


def written(layout: Layout) -> dict[str, bytes]:
    """The inputs of a layout, in a buffer that was full of something else."""
    memory = memoryview(bytearray(b"\xee" * aligned(layout.size)))
    for entry in layout.entries:
        hostcopy.write(memory, entry)
    return {e.name: bytes(memory[e.offset : e.offset + e.size]) for e in layout.entries}


def ints(data: bytes) -> list[int]:
    return list(struct.unpack(f"<{len(data) // 4}i", data))


# -- properties --------------------------------------------------------------------------------


@given(padded_batches())
def test_every_element_is_where_its_caller_expects_it(batch: tuple[list[Call], Packing]) -> None:
    calls, packing = batch
    for each in calls:
        packing.check(each)
    layout = make(calls, packing, ROOM)
    wanted = expected(calls, packing)
    assert layout.padding == wanted.pop("padding")
    assert written(layout) == wanted
    entries = {entry.name: entry for entry in layout.entries}
    assert entries["x"].shape == target_of(calls, packing)
    assert 0.0 <= layout.padding_share <= 1.0


@given(padded_batches())
def test_places_are_aligned_and_apart(batch: tuple[list[Call], Packing]) -> None:
    layout = make(*batch, ROOM)
    end = staged = 0
    for entry in layout.entries:
        assert entry.offset % ALIGN == entry.staged % ALIGN == 0
        assert entry.offset >= end
        assert entry.staged >= staged
        end = entry.offset + entry.size
        staged = entry.staged + sum(map(len, entry.pieces))
    assert layout.size == end
    assert layout.staged >= staged


@given(padded_batches(), st.integers(0, 4000))
def test_what_does_not_fit_is_refused(batch: tuple[list[Call], Packing], capacity: int) -> None:
    size = make(*batch, ROOM).size
    if capacity >= size:
        assert make(*batch, capacity).size == size
    else:
        with pytest.raises(DoesNotFitError):
            make(*batch, capacity)


@given(padded_batches())
def test_an_output_padded_alike_is_taken_apart(batch: tuple[list[Call], Packing]) -> None:
    """An output that is the input itself gives each caller its own back."""
    calls, packing = batch
    layout = make(calls, packing, ROOM)
    entry = layout.entries[0]
    if entry.datatype == "BYTES" or not entry.axes:
        return
    taken = following(entry, layout.counts, entry.datatype, entry.shape)
    assert taken is not None
    grid, shapes = taken
    found = hostcopy.read(memoryview(written(layout)["x"]), grid)
    assert [bytes(each) for each in found] == [bytes(each.inputs[0].data) for each in calls]
    assert shapes == [each.inputs[0].shape for each in calls]


@given(st.lists(st.tuples(st.integers(1, 3), st.integers(0, 4)), min_size=1, max_size=6))
def test_ragged_rows_lie_between_their_offsets(shapes: list[tuple[int, int]]) -> None:
    rule = Rule(axes=(1,), offsets=Extra("offsets", "INT32"), lengths=Extra("lengths", "INT32"))
    packing = Packing("ragged", rules={"x": rule})
    calls = calls_of(shapes)
    layout = make(calls, packing, ROOM)
    data = written(layout)
    values, offsets, lengths = (ints(data[name]) for name in ("x", "offsets", "lengths"))
    rows = [values[begin:end] for begin, end in itertools.pairwise(offsets)]
    wanted = []
    for (count, length), each in zip(shapes, calls, strict=True):
        own = ints(bytes(each.inputs[0].data))
        wanted += [own[row * length : (row + 1) * length] for row in range(count)]
    assert rows == wanted
    assert lengths == list(map(len, wanted))
    assert layout.padding == 0
    spans = layout.entries[0].spans
    assert [values[a:b] for a, b in itertools.pairwise(spans)] == [
        ints(bytes(each.inputs[0].data)) for each in calls
    ]


# -- examples ----------------------------------------------------------------------------------


def test_what_varies_nowhere_is_concatenated() -> None:
    layout = make(calls_of([(1, 2), (2, 2)]), Packing(), ROOM)
    (entry,) = layout.entries
    assert entry.grid is None
    assert (entry.shape, layout.counts, layout.starts) == ((3, 2), [1, 2], [0, 1])
    assert ints(written(layout)["x"]) == [1, 2, 3, 4, 5, 6]
    assert layout.padding_share == 0.0


@pytest.mark.parametrize(
    ("side", "values"),
    [("right", [1, 9, 9, 2, 3, 4, 5, 6, 9]), ("left", [9, 9, 1, 2, 3, 4, 9, 5, 6])],
)
def test_padding_goes_to_its_side(side: Any, values: list[int]) -> None:
    packing = Packing(rules={"x": Rule(axes=(1,), value=9, side=side)})
    layout = make(calls_of([(1, 1), (1, 3), (1, 2)]), packing, ROOM)
    assert ints(written(layout)["x"]) == values
    assert layout.padding_share == 3 / 9


def test_without_axes_whatever_differs_is_padded() -> None:
    layout = make(calls_of([(1, 1, 2), (1, 2, 2)]), Packing(), ROOM)
    assert layout.entries[0].shape == (2, 2, 2)
    assert ints(written(layout)["x"]) == [1, 2, 0, 0, 3, 4, 5, 6]


def test_a_lone_call_is_padded_by_its_bucket_only() -> None:
    calls = calls_of([(1, 3)])
    assert make(calls, SEQUENCE, ROOM).padding == 0
    layout = make(calls, Packing("bucket", (2, 4), {"x": Rule(axes=(1,))}), ROOM)
    assert ints(written(layout)["x"]) == [1, 2, 3, 0]


def test_inputs_in_another_order_are_found_by_name() -> None:
    first = call(Tensor("a", "INT32", (1, 1), b"aaaa"), Tensor("b", "INT32", (1, 1), b"bbbb"))
    second = call(Tensor("b", "INT32", (1, 1), b"BBBB"), Tensor("a", "INT32", (1, 1), b"AAAA"))
    assert written(make([first, second], Packing(), ROOM)) == {"a": b"aaaaAAAA", "b": b"bbbbBBBB"}


def test_texts_are_padded_with_empty_ones() -> None:
    def texts(*each: bytes) -> bytes:
        return b"".join(struct.pack("<I", len(text)) + text for text in each)

    calls = [
        call(Tensor("x", "BYTES", (1, 1), texts(b"one"))),
        call(Tensor("x", "BYTES", (2, 2), texts(b"", b"b", b"cc", b"d"))),
    ]
    layout = make(calls, SEQUENCE, ROOM)
    assert written(layout)["x"] == texts(b"one", b"", b"", b"b", b"cc", b"d")


def test_two_inputs_may_share_a_mask_if_they_agree() -> None:
    rule = Rule(axes=(1,), mask=Extra("mask"))
    packing = Packing(rules={"a": rule, "b": rule})

    def pair(first: int, second: int) -> Call:
        tensors = (("a", first), ("b", second))
        return call(*(Tensor(n, "UINT8", (1, size), bytes(size)) for n, size in tensors))

    layout = make([pair(1, 1), pair(3, 3)], packing, ROOM)
    assert [entry.name for entry in layout.entries] == ["a", "mask", "b"]
    with pytest.raises(LayoutError, match="disagree"):
        make([pair(1, 2), pair(3, 3)], packing, ROOM)


def test_views_of_other_formats_are_taken_as_bytes() -> None:
    numbers = memoryview(bytes(range(8))).cast("i")
    assert written(make([call(Tensor("x", "INT32", (2,), numbers))], Packing(), ROOM)) == {
        "x": bytes(range(8))
    }


def test_the_staging_buffer_has_a_limit_of_its_own() -> None:
    calls = calls_of([(1, n) for n in (1, 2, 3)], "UINT8")
    layout = make(calls, SEQUENCE, ROOM)
    assert layout.size == 9
    assert layout.staged == aligned(3 * BOX, STAGE) + 3 * STAGE
    make(calls, SEQUENCE, ROOM, layout.staged)
    with pytest.raises(DoesNotFitError):
        make(calls, SEQUENCE, ROOM, layout.staged - 1)


def test_outputs_get_places_behind_the_inputs() -> None:
    placed = regions([("a", 10), ("b", 0), ("c", 300)], 2048, start=5)
    assert [(each.offset, each.size) for each in placed] == [(256, 10), (512, 0), (512, 300)]
    with pytest.raises(DoesNotFitError):
        regions([("a", 10)], 265, start=5)
    with pytest.raises(DoesNotFitError):
        regions([("a", -1)], 2048)


def test_an_output_of_another_shape_does_not_follow() -> None:
    layout = make(calls_of([(1, 1), (1, 2)]), SEQUENCE, ROOM)
    (entry,) = layout.entries
    for shape in ((2, 3, 8), (2,), (3, 2, 8), (-2, 2)):
        with pytest.raises(LayoutError):
            following(entry, layout.counts, "FP32", shape)
    with pytest.raises(LayoutError):
        following(entry, layout.counts, "BYTES", (2, 2))
    even = make(calls_of([(1, 2), (1, 2)]), SEQUENCE, ROOM)
    assert following(even.entries[0], even.counts, "FP32", (2, 99)) is None


# -- hostile and contradictory -----------------------------------------------------------------


def one(shape: tuple[int, ...], data: bytes = b"", datatype: str = "INT32", rows: int = 1) -> Call:
    return Call("key", rows, len(data), inputs=(Tensor("x", datatype, shape, data),))


HUGE = 10**12


@pytest.mark.parametrize(
    ("calls", "packing"),
    [
        ([one((1, 0, HUGE)), one((1, 1, 1), b"....")], Packing()),
        ([one((1, 0), datatype="BYTES"), one((1, HUGE), b"....", "BYTES")], SEQUENCE),
        ([one((HUGE, 0), rows=HUGE), one((1, 1), b"....")], SEQUENCE),
        (
            [one((HUGE, 0), rows=HUGE)],
            Packing("ragged", rules={"x": Rule((1,), offsets=Extra("offsets"))}),
        ),
        ([one((HUGE, 0), rows=HUGE)], Packing(rules={"x": Rule((1,), lengths=Extra("lengths"))})),
        (
            [one((1, HUGE, 0)), one((1, HUGE + 1, 0))],
            Packing(rules={"x": Rule((1,), mask=Extra("mask"))}),
        ),
    ],
)
def test_nothing_is_made_by_a_size_that_is_only_claimed(
    calls: list[Call], packing: Packing
) -> None:
    with pytest.raises(DoesNotFitError):
        make(calls, packing, ROOM)


def test_claimed_rows_without_bytes_take_no_time() -> None:
    layout = make([one((HUGE, 0), rows=HUGE), one((1, 0))], SEQUENCE, ROOM)
    assert written(layout) == {"x": b""}
    layout = make([one((1, HUGE, 0)), one((1, HUGE + 1, 0))], SEQUENCE, ROOM)
    assert written(layout) == {"x": b""}


@pytest.mark.parametrize(
    "calls",
    [
        [],
        [one((1, 2), bytes(4))],  # half of its bytes
        [one((1, 1), bytes(8))],  # twice its bytes
        [one((2, 1), bytes(8))],  # two rows in one
        [one((), bytes(4))],
        [one((1, -1), b"")],
        [one((1, 1), bytes(4), "INT33")],
        [one((1, 1), bytes(4)), one((1, 1), bytes(4), "UINT32")],
        [one((1, 1), bytes(4)), one((1, 1, 1), bytes(4))],
        [one((1, 1, 1), bytes(4)), one((1, 1, 2), bytes(8))],  # axis 2 is not variable
        [one((1, 1), bytes(4)), call(Tensor("y", "INT32", (1, 1), bytes(4)))],
        [one((1, 1), bytes(4), "BYTES"), one((1, 2), bytes(4), "BYTES")],  # one text for two
        [one((1, 1), bytes(4), "BYTES"), one((1, 2), bytes(12), "BYTES")],  # three for two
        [one((1, 1), bytes(4), "BYTES"), one((1, 2), b"\0\0\0\0\1\0\0\0", "BYTES")],
    ],
)
def test_calls_that_contradict_each_other_are_refused(calls: list[Call]) -> None:
    with pytest.raises(LayoutError):
        make(calls, SEQUENCE, ROOM)


def test_more_axes_than_the_kernels_know() -> None:
    calls = calls_of([(1, 1, 1, 1, 1), (1, 2, 2, 2, 2)])
    with pytest.raises(LayoutError, match="4 axes"):
        make(calls, Packing(), ROOM)


def test_a_ragged_batch_pads_nothing_else() -> None:
    packing = Packing("ragged", rules={"y": Rule(axes=(1,))})
    with pytest.raises(LayoutError, match="not ragged"):
        make(calls_of([(1, 1), (1, 2)]), packing, ROOM)


def test_offsets_that_do_not_fit_their_datatype() -> None:
    packing = Packing("ragged", rules={"x": Rule((1,), offsets=Extra("offsets", "INT32"))})
    with pytest.raises(LayoutError, match="too large"):
        make([one((1, 1 << 31, 0))], packing, ROOM)
