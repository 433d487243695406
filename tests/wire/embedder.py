"""A model for ``runner: python`` that costs nothing: an embedding is made of its input's hash, so
one in the wrong hands shows."""

from __future__ import annotations

import threading
from collections.abc import Sequence
from hashlib import blake2b
from typing import Any

import numpy as np

from gpu_batcher.api import BadRequestError

WIDTH = 8
NAME = f"{__name__}:Embedder"
POISON = "poison"
UNWANTED = "unwanted"

Item = str | list[int]


def expected(item: Item, dimensions: int = WIDTH) -> list[float]:
    """The embedding of an input, as its caller is to get it."""
    digest = blake2b(repr(item).encode(), digest_size=WIDTH).digest()
    vector = np.frombuffer(digest, np.uint8).astype(np.float32) / np.float32(256) + np.float32(1)
    if dimensions < WIDTH:
        cut = vector[:dimensions].astype(np.float64)
        vector = (cut / np.sqrt((cut * cut).sum())).astype(np.float32)
    found: list[float] = vector.tolist()
    return found


def tokens(item: Item) -> int:
    return len(item.split()) if isinstance(item, str) else len(item)


class Embedder:
    """``made``: all there are, in order. ``calls``: what each call got. While ``gate`` is shut,
    calls do not return."""

    made: list[Embedder] = []  # noqa: RUF012

    def __init__(self) -> None:
        self.calls: list[list[Item]] = []
        self.gate = threading.Event()
        self.gate.set()
        self.made.append(self)

    def __call__(self, items: Sequence[Item]) -> dict[str, Any]:
        self.calls.append(list(items))
        self.gate.wait()
        if POISON in items:
            raise RuntimeError(f"secret of {items}")
        if UNWANTED in items:
            raise BadRequestError(f"unwanted, among {len(items)}")
        counts = np.array([tokens(item) for item in items])
        return {"embedding": [expected(item) for item in items], "prompt_tokens": counts}
