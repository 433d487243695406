"""Batches for the tests of packing, and what has to come out of it, in plain Python.

The model looks at every element of the padded array by its indices and asks whether a caller has
one there. It is slow and shares no thought with the code under test.
"""

from __future__ import annotations

import itertools
import struct
from collections.abc import Sequence
from math import prod
from random import Random
from typing import Any

from hypothesis import strategies as st

from gpu_batcher.api import SIZES, Call, Tensor
from gpu_batcher.packing import Extra, Mode, Packing, Rule, element

BUCKETS = (2, 5, 9)


def tensor(rng: Random, name: str, datatype: str, shape: tuple[int, ...]) -> Tensor:
    """Random bytes; BYTES: elements of up to three bytes."""
    if SIZES[datatype]:
        return Tensor(name, datatype, shape, rng.randbytes(prod(shape) * SIZES[datatype]))
    texts = [rng.randbytes(rng.randint(0, 3)) for _ in range(prod(shape))]
    data = b"".join(struct.pack("<I", len(each)) + each for each in texts)
    return Tensor(name, datatype, shape, memoryview(data))


def call(*inputs: Tensor) -> Call:
    return Call("key", inputs[0].rows, sum(len(each.data) for each in inputs), inputs=inputs)


def calls_of(shapes: Sequence[tuple[int, ...]], datatype: str = "INT32") -> list[Call]:
    """One input "x"; every element a number that no other one of the batch has."""
    numbers = itertools.count(1)
    made = []
    for shape in shapes:
        values = list(itertools.islice(numbers, prod(shape)))
        data = b"".join(value.to_bytes(SIZES[datatype], "little") for value in values)
        made.append(call(Tensor("x", datatype, shape, data)))
    return made


@st.composite
def padded_batches(draw: st.DrawFn) -> tuple[list[Call], Packing]:
    """One input "x" with one to three variable axes, mask and lengths; a plain input beside it."""
    rank = draw(st.integers(1, 4))
    axes = tuple(sorted(draw(st.sets(st.integers(1, rank), min_size=1, max_size=min(rank, 3)))))
    fixed = draw(st.lists(st.integers(1, 3), min_size=rank, max_size=rank))
    mode: Mode = draw(st.sampled_from(["pad", "bucket"]))
    datatype = draw(st.sampled_from(sorted(SIZES)))
    rng = Random(draw(st.integers(0, 2**32)))
    calls = []
    for _ in range(draw(st.integers(1, 5))):
        rows = draw(st.integers(1, 3))
        tail = [
            draw(st.integers(0, 4)) if axis in axes else fixed[axis - 1]
            for axis in range(1, rank + 1)
        ]
        own = tensor(rng, "x", datatype, (rows, *tail))
        calls.append(call(own, tensor(rng, "plain", "FP64", (rows, 3))))
    rule = Rule(
        axes,
        draw(st.sampled_from([0, 1])),
        draw(st.sampled_from(["right", "left"])),
        Extra("mask", draw(st.sampled_from(["BOOL", "INT32", "INT64", "FP32"]))),
        Extra("lengths", draw(st.sampled_from(["INT32", "INT64"]))),
    )
    buckets = BUCKETS if mode == "bucket" else ()
    return calls, Packing(mode, buckets, {"x": rule}, Rule(axes=()))


def elements(each: Tensor) -> list[bytes]:
    """The elements of a tensor in wire form."""
    data, size = bytes(each.data), SIZES[each.datatype]
    if size:
        return [data[at : at + size] for at in range(0, len(data), size)]
    found, at = [], 0
    while at < len(data):
        end = at + 4 + int.from_bytes(data[at : at + 4], "little")
        found.append(data[at:end])
        at = end
    return found


def target_of(calls: list[Call], packing: Packing) -> tuple[int, ...]:
    """The shape that the padded input "x" should have."""
    shapes = [each.inputs[0].shape for each in calls]
    target = [max(lengths) for lengths in zip(*shapes, strict=True)]
    target[0] = sum(shape[0] for shape in shapes)
    if packing.mode == "bucket":
        for axis in packing.rules["x"].axes or ():
            target[axis] = min(size for size in packing.buckets if size >= target[axis])
    return tuple(target)


def expected(calls: list[Call], packing: Packing) -> dict[str, Any]:
    """Bytes of "x", of its mask and of its lengths, and how many elements are padding."""
    rule, target = packing.rules["x"], target_of(calls, packing)
    assert rule.axes is not None
    assert rule.mask is not None
    assert rule.lengths is not None
    blank = element(calls[0].inputs[0].datatype, rule.value)
    one = element(rule.mask.datatype, 1)
    places = [(each, row) for each in calls for row in range(each.rows)]
    held = {id(each): elements(each.inputs[0]) for each in calls}
    found, mask = [], {}
    padding = 0
    for row, *index in itertools.product(*map(range, target)):
        owner, own_row = places[row]
        shape = owner.inputs[0].shape
        gaps = [t - s if rule.side == "left" else 0 for t, s in zip(target, shape, strict=True)]
        own = [i - gap for i, gap in zip(index, gaps[1:], strict=True)]
        inside = all(0 <= i < s for i, s in zip(own, shape[1:], strict=True))
        padding += not inside
        position = own_row
        for i, s in zip(own, shape[1:], strict=True):
            position = position * s + i
        found.append(held[id(owner)][position] if inside else blank)
    for row, *index in itertools.product(
        range(target[0]), *(range(target[axis]) for axis in rule.axes)
    ):
        shape = places[row][0].inputs[0].shape
        gaps = [target[a] - shape[a] if rule.side == "left" else 0 for a in rule.axes]
        real = all(
            0 <= i - gap < shape[a] for i, gap, a in zip(index, gaps, rule.axes, strict=True)
        )
        mask[(row, *index)] = one if real else bytes(len(one))
    lengths = [owner.inputs[0].shape[axis] for owner, _ in places for axis in rule.axes]
    size = SIZES[rule.lengths.datatype]
    return {
        "x": b"".join(found),
        "mask": b"".join(mask.values()),
        "lengths": b"".join(length.to_bytes(size, "little") for length in lengths),
        "plain": b"".join(bytes(each.inputs[1].data) for each in calls),
        "padding": padding,
    }
