"""The simulated servers are judged: whom they serve, when, and what they count."""

import asyncio
from collections.abc import Callable
from dataclasses import replace
from random import Random
from types import SimpleNamespace
from typing import Any

import pytest

from gateway.sim.batching import BatchingServer
from gateway.sim.loop import START, VirtualLoop, run
from gateway.sim.models import Batching, Condition, Model
from gateway.sim.servers import ModelServer


class Listener:
    """A Waiter that writes down what it hears, and when."""

    def __init__(self, loop: VirtualLoop) -> None:
        self._loop = loop
        self.heard: list[tuple[float, str]] = []

    def _hear(self, word: str) -> None:
        self.heard.append((round(self._loop.time() - START, 6), word))

    def began(self, status: int, retry_after: int | None) -> None:
        self._hear(f"head {status}")

    def piece(self, data: bytes) -> None:
        self._hear("piece")

    def ended(self, data: bytes) -> None:
        self._hear("end")

    def reset(self) -> None:
        self._hear("reset")


def _play(model: Model, story: Callable[[ModelServer, VirtualLoop], list[Listener]]) -> Any:
    """Run ``story`` against one server for 10 s; what the listeners heard, and the server."""
    loop = VirtualLoop()

    async def main() -> Any:
        rng = Random(1)
        server = (
            ModelServer("one", model, loop, rng)
            if model.batching is None
            else BatchingServer("one", model, model.batching, loop, rng)
        )
        listeners = story(server, loop)
        await asyncio.sleep(10)
        return SimpleNamespace(server=server, heard=[each.heard for each in listeners])

    return run(main(), loop)


EXACT = Model(slots=1, mean=1.0, sigma=0)


def test_a_server_works_in_the_order_of_arrival() -> None:
    def story(server: ModelServer, loop: VirtualLoop) -> list[Listener]:
        listeners = [Listener(loop) for _ in range(3)]
        for each in listeners:
            server.accept(each, None)
        return listeners

    played = _play(EXACT, story)
    assert played.heard == [[(float(n), "head 200"), (float(n), "end")] for n in (1, 2, 3)]
    assert (played.server.served, played.server.in_flight, played.server.busy) == (3, 0, 0)


def test_who_leaves_the_queue_or_a_slot_makes_room() -> None:
    def story(server: ModelServer, loop: VirtualLoop) -> list[Listener]:
        listeners = [Listener(loop) for _ in range(3)]
        jobs = [server.accept(each, None) for each in listeners]
        loop.call_later(0.5, server.abandon, jobs[0])
        loop.call_later(0.6, server.abandon, jobs[1])
        loop.call_later(0.7, server.abandon, jobs[1])
        return listeners

    played = _play(EXACT, story)
    assert played.heard == [[], [], [(1.6, "head 200"), (1.6, "end")]]
    assert (played.server.served, played.server.cancelled, played.server.busy) == (1, 2, 0)


def test_a_server_that_does_not_notice_works_for_nobody() -> None:
    def story(server: ModelServer, loop: VirtualLoop) -> list[Listener]:
        first, second = Listener(loop), Listener(loop)
        loop.call_later(0.5, server.abandon, server.accept(first, None))
        server.accept(second, None)
        return [first, second]

    played = _play(replace(EXACT, aborts=False), story)
    assert played.heard == [[], [(2.0, "head 200"), (2.0, "end")]]
    assert (played.server.served, played.server.wasted) == (1, 1)


def test_a_stream_has_its_head_at_once_and_its_tokens_at_their_pace() -> None:
    def story(server: ModelServer, loop: VirtualLoop) -> list[Listener]:
        listener = Listener(loop)
        server.accept(listener, None)
        return [listener]

    played = _play(replace(EXACT, tokens=3, pace=0.25, head_first=True), story)
    heard = [(0.0, "head 200"), (1.0, "piece"), (1.25, "piece"), (1.5, "end")]
    assert played.heard == [heard]


def test_death_breaks_what_is_there() -> None:
    def story(server: ModelServer, loop: VirtualLoop) -> list[Listener]:
        listeners = [Listener(loop) for _ in range(2)]
        for each in listeners:
            server.accept(each, None)
        loop.call_later(0.5, server.become, Condition(refuses=True))
        return listeners

    played = _play(EXACT, story)
    assert played.heard == [[(0.5, "reset")], [(0.5, "reset")]]
    assert (played.server.refuses, played.server.in_flight, played.server.busy) == (True, 0, 0)


def test_more_slots_take_what_waits() -> None:
    def story(server: ModelServer, loop: VirtualLoop) -> list[Listener]:
        listeners = [Listener(loop) for _ in range(2)]
        for each in listeners:
            server.accept(each, None)
        loop.call_later(0.5, server.become, Condition(slots=2, slow=2.0))
        return listeners

    played = _play(EXACT, story)
    assert [heard[-1] for heard in played.heard] == [(1.0, "end"), (2.5, "end")]


def test_service_times_have_the_mean_that_they_say() -> None:
    rng = Random(3)
    model = Model(mean=0.02, sigma=0.5)
    mean = sum(model.seconds(rng) for _ in range(20_000)) / 20_000
    assert mean == pytest.approx(0.02, rel=0.02)


def test_sizes_take_the_place_of_the_lognormal() -> None:
    rng = Random(3)
    model = Model(sizes=(0.005, 0.5))
    drawn = [model.seconds(rng) for _ in range(1000)]
    assert set(drawn) == {0.005, 0.5}
    assert drawn.count(0.5) == pytest.approx(500, abs=5 * 250**0.5)


def test_a_server_with_a_limit_turns_the_rest_away() -> None:
    def story(server: ModelServer, loop: VirtualLoop) -> list[Listener]:
        listeners = [Listener(loop) for _ in range(4)]
        for each in listeners:
            server.accept(each, None)
        return listeners

    played = _play(replace(EXACT, limit=2), story)
    refused = [(0.0, "head 429"), (0.0, "end")]
    assert played.heard[2:] == [refused, refused]
    assert (played.server.served, played.server.refused) == (2, 2)


def test_a_head_can_come_without_anything_behind_it() -> None:
    def story(server: ModelServer, loop: VirtualLoop) -> list[Listener]:
        server.become(Condition(hangs=True, heads=True))
        listener = Listener(loop)
        server.accept(listener, None)
        return [listener]

    played = _play(EXACT, story)
    assert played.heard == [[(0.0, "head 200")]]
    assert played.server.in_flight == 1


def test_how_long_the_work_took_is_known() -> None:
    seconds: list[float] = []

    def story(server: ModelServer, loop: VirtualLoop) -> list[Listener]:
        listeners = [Listener(loop) for _ in range(2)]
        jobs = [server.accept(each, None) for each in listeners]
        loop.call_later(5, lambda: seconds.extend(job.service for job in jobs))
        return listeners

    _play(replace(EXACT, tokens=3, pace=0.25), story)
    assert seconds == [1.5, 1.5]


# Two streams of 10 tokens: a token takes 0.1 s alone, 0.15 s when two run, so the batch is full.
BATCHING = Batching(streams=2, pace=0.1, slowdown=1.5, tokens=(10, 10), piece=5)
BATCH = Model(batching=BATCHING)


def _batched(server: ModelServer, loop: VirtualLoop, arrivals: list[float]) -> list[Listener]:
    listeners = [Listener(loop) for _ in arrivals]
    for at, each in zip(arrivals, listeners, strict=True):
        loop.call_later(at, server.accept, each, None)
    return listeners


def test_a_batch_is_slower_the_more_streams_are_in_it() -> None:
    alone = Model(batching=replace(BATCHING, slowdown=2.0))
    played = _play(alone, lambda server, loop: _batched(server, loop, [0.0]))
    # One of two places taken: half of the slowdown.
    heard = [(0.15, "head 200"), (0.15, "piece"), (0.9, "piece"), (1.5, "end")]
    assert played.heard == [heard]
    both = _play(alone, lambda server, loop: _batched(server, loop, [0.0, 0.0]))
    assert [heard[-1] for heard in both.heard] == [(2.0, "end"), (2.0, "end")]


def test_a_batch_speeds_up_when_one_leaves_it() -> None:
    model = Model(batching=replace(BATCHING, slowdown=3.0))
    played = _play(model, lambda server, loop: _batched(server, loop, [0.0, 1.0]))
    # 5 tokens alone at 0.2 s, then both at 0.3 s; the second makes its last 5 alone again.
    assert [heard[-1] for heard in played.heard] == [(2.5, "end"), (3.5, "end")]
    assert played.server.busy == 0


def test_a_full_batch_lets_others_wait() -> None:
    played = _play(BATCH, lambda server, loop: _batched(server, loop, [0.0, 0.0, 0.0]))
    assert [heard[-1][1] for heard in played.heard] == ["end"] * 3
    assert [heard[0][0] for heard in played.heard] == [0.15, 0.15, 1.625]


def test_who_leaves_a_batch_is_forgotten() -> None:
    def story(server: ModelServer, loop: VirtualLoop) -> list[Listener]:
        listeners = [Listener(loop) for _ in range(2)]
        jobs = [server.accept(each, None) for each in listeners]
        loop.call_later(0.5, server.abandon, jobs[0])
        return listeners

    played = _play(BATCH, story)
    assert [word for _, word in played.heard[0]] == ["head 200", "piece"]
    assert played.heard[1][-1][1] == "end"
    assert (played.server.served, played.server.cancelled, played.server.in_flight) == (1, 1, 0)
