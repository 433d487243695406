"""Staging: pieces copied in portions, by one thread or several."""

from __future__ import annotations

import threading
from random import Random
from typing import TYPE_CHECKING

from hypothesis import example, given, settings
from hypothesis import strategies as st

from gpu_batcher import staging
from gpu_batcher.staging import CHUNK, Stager, portions

if TYPE_CHECKING:
    import pytest

sizes = st.lists(st.sampled_from([0, 1, 15, 16, 1000, CHUNK - 1, CHUNK, 3 * CHUNK + 5]), max_size=8)


@settings(max_examples=50)
@example([CHUNK - 1, 1000, 3 * CHUNK + 5], 16, 4)
@given(sizes, st.sampled_from([1, 16]), st.sampled_from([1, 4]))
def test_every_portion_is_there_when_it_is_said_to_be(
    lengths: list[int], align: int, copiers: int
) -> None:
    pieces = [Random(number).randbytes(size) for number, size in enumerate(lengths)]
    wanted = bytearray()
    for piece in pieces:
        wanted += bytes(-len(wanted) % align) + piece
    memory = bytearray(len(wanted) + 64)
    stager, reached = Stager(copiers), 0
    for upto in stager.stage(memoryview(memory), pieces, align):
        assert upto > reached
        assert memory[:upto] == wanted[:upto]
        reached = upto
    assert len(wanted) - reached < align
    assert bytes(memory[reached:]) == bytes(len(memory) - reached)
    stager.close()


def test_portions_are_of_about_a_chunk() -> None:
    work = portions([bytes(10 * CHUNK + 1), b"", bytes(3)], 1)
    ends = [reached for _, reached in work]
    assert ends == [*range(CHUNK, 10 * CHUNK + 1, CHUNK), 10 * CHUNK + 4]


def test_whoever_closes_it_early_has_no_thread_write_on(monkeypatch: pytest.MonkeyPatch) -> None:
    """A copy to the GPU failed after the first portion, while other threads are still at work."""
    begun, go_on, ended = threading.Event(), threading.Event(), []
    real = staging._copy

    def slow(memory: memoryview, parts: list[staging.Part]) -> None:
        if parts[0][0]:
            begun.set()
            assert go_on.wait(60)
        real(memory, parts)
        ended.append(parts[0][0])

    monkeypatch.setattr(staging, "_copy", slow)
    stager = Stager(3)
    work = stager.stage(memoryview(bytearray(4 * CHUNK)), [bytes(4 * CHUNK)], 1)
    assert next(work) == CHUNK
    assert begun.wait(60)
    threading.Timer(0.01, go_on.set).start()
    work.close()
    assert sorted(ended) == [0, CHUNK, 2 * CHUNK, 3 * CHUNK]
    stager.close()
