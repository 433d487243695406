"""The rules of packing: what they refuse, and what padding is made of."""

from __future__ import annotations

import struct
from typing import Any

import pytest

from gpu_batcher.api import BadRequestError, Call, Tensor
from gpu_batcher.packing import Extra, Packing, Rule, element

SEQUENCE = Packing(rules={"x": Rule(axes=(1,))})


@pytest.mark.parametrize(
    ("packing", "shape", "datatype", "said"),
    [
        (SEQUENCE, (), "INT32", "first dimension"),
        (SEQUENCE, (2, 1), "INT32", "expected 1 as its first"),
        (SEQUENCE, (1,), "INT32", "at least 2"),
        (Packing("bucket", (4,), {"x": Rule((1,))}), (1, 5), "INT32", "at most 4"),
        (Packing(rules={"x": Rule((1,), value=-1)}), (1, 1), "UINT8", "cannot express"),
        (Packing(rules={"x": Rule((1,), value=0.5)}), (1, 1), "INT8", "cannot express"),
        (Packing(rules={"y": Rule((1,), mask=Extra("x"))}), (1, 1), "INT8", "made here"),
    ],
)
def test_a_call_that_cannot_be_packed_is_told_why(
    packing: Packing, shape: tuple[int, ...], datatype: str, said: str
) -> None:
    with pytest.raises(BadRequestError, match=said):
        packing.check(Call("key", 1, 0, inputs=(Tensor("x", datatype, shape, b""),)))


def test_rules_that_contradict_themselves() -> None:
    bad: list[Any] = [
        lambda: Rule(axes=(0,)),
        lambda: Rule(axes=(2, 1)),
        lambda: Rule(axes=(1, 1)),
        lambda: Rule(axes=(1, 2, 3, 4)),
        lambda: Rule(axes=(1,), side="middle"),  # type: ignore[arg-type]
        lambda: Rule(mask=Extra("mask")),
        lambda: Rule(axes=(1,), mask=Extra("mask", "BYTES")),
        lambda: Rule(axes=(1,), lengths=Extra("lengths", "FP32")),
        lambda: Packing("zip"),  # type: ignore[arg-type]
        lambda: Packing("bucket"),
        lambda: Packing("pad", (1, 2)),
        lambda: Packing("bucket", (2, 1)),
        lambda: Packing("bucket", (0, 1)),
        lambda: Packing("pad", rules={"x": Rule((1,), offsets=Extra("o"))}),
        lambda: Packing("ragged", rules={"x": Rule((2,))}),
        lambda: Packing("ragged", rules={"x": Rule((1,), mask=Extra("m"))}),
        lambda: Packing(default=Rule((1,), mask=Extra("m"))),
        lambda: Packing(rules={"x": Rule((1,), mask=Extra("x"))}),
    ]
    for make_it in bad:
        with pytest.raises(ValueError, match=":"):
            make_it()


@pytest.mark.parametrize(
    ("datatype", "value", "wanted"),
    [
        ("BOOL", 1, b"\x01"),
        ("INT64", -1, b"\xff" * 8),
        ("UINT64", 2**64 - 1, b"\xff" * 8),
        ("FP16", 1.0, b"\x00\x3c"),
        ("BF16", 1.0, b"\x80\x3f"),
        ("BF16", float("-inf"), b"\x80\xff"),
        ("BF16", 1.0 + 2**-8, b"\x80\x3f"),  # a tie, to even
        ("BF16", 1.0 + 3 * 2**-8, b"\x82\x3f"),  # a tie, to even
        ("FP32", -1.5, struct.pack("<f", -1.5)),
        ("BYTES", 7, bytes(4)),
    ],
)
def test_an_element_as_on_the_wire(datatype: str, value: float, wanted: bytes) -> None:
    assert element(datatype, value) == wanted


@pytest.mark.parametrize(
    ("datatype", "value"),
    [
        ("BOOL", 2),
        ("INT8", 128),
        ("UINT64", -1),
        ("INT32", float("nan")),
        ("INT32", float("inf")),
        ("FP16", 1e6),
        ("FP32", 1e39),
        ("BF16", 1e39),
        ("INT33", 0),
    ],
)
def test_what_a_datatype_cannot_express(datatype: str, value: float) -> None:
    with pytest.raises(ValueError, match=r"cannot express|unknown"):
        element(datatype, value)


def test_not_a_number_in_half_the_bits() -> None:
    assert element("BF16", float("nan")) == b"\xc0\x7f"
