"""The smallest bound wins, nonsense is ignored, and only our own cancellation becomes a Reject."""

from __future__ import annotations

import asyncio

import pytest
from hypothesis import given
from hypothesis import strategies as st

from filters.api import Exchange, Kind, Outcome, Reason, Reject
from filters.deadline import HEADER, Config, Deadline, asked_seconds, bound
from tests.filters.doubles import HandClock, exchange

OK = Outcome(Kind.OK, 200)


@pytest.mark.parametrize(
    ("default", "asked", "seconds"),
    [
        (None, None, 60.0),
        (5.0, None, 5.0),
        (500.0, None, 60.0),
        (None, b"1500", 1.5),
        (5.0, b"1500", 1.5),
        (5.0, b"10000", 10.0),
        (None, b"61000", 60.0),
        (None, b"0", 0.0),
        (None, b"000250", 0.25),
        (None, b"999999999999", 60.0),
    ],
)
def test_the_smaller_wins(default: float | None, asked: bytes | None, seconds: float) -> None:
    config = Config(default=default, max=60.0)
    asked_s = None if asked is None else asked_seconds(asked)
    assert bound(config, 100.0, asked_s) == pytest.approx(100.0 + seconds)


@given(st.none() | st.floats(0, 100), st.none() | st.floats(0, 100), st.floats(0, 100))
def test_a_client_outside_trust_only_shortens(
    default: float | None, asked: float | None, most: float
) -> None:
    config = Config(default=default, max=most)
    own = bound(config, 0.0, None)
    assert bound(config, 0.0, asked, trusted=False) <= own
    assert own == (most if default is None else min(default, most))


@pytest.mark.parametrize(
    "asked",
    [
        *(b"", b"-1", b"+1", b"1.5", b"1e3", b"nan", b"inf", b"0x10", b"1 ", b"1_000", b"5s"),
        *(b"\xb2", b"9" * 13, b"9" * 100_000),
    ],
)
def test_nonsense_is_as_if_nothing_had_been_asked(asked: bytes) -> None:
    assert asked_seconds(asked) is None


@given(st.binary(max_size=30), st.floats(0, 1e5), st.floats(0, 1e9))
def test_the_bound_always_holds(asked: bytes, maximum: float, arrived: float) -> None:
    deadline = bound(Config(max=maximum), arrived, asked_seconds(asked))
    assert arrived <= deadline <= arrived + maximum


class Slow:
    """A service that the test lets go on, and that says whether it was cancelled."""

    def __init__(self) -> None:
        self.entered = asyncio.Event()
        self.leave = asyncio.Event()
        self.cancelled = False

    async def __call__(self, exchange: Exchange) -> Outcome:
        self.entered.set()
        try:
            await self.leave.wait()
        except asyncio.CancelledError:
            self.cancelled = True
            raise
        return OK


async def test_an_exchange_past_its_deadline_is_refused_on_arrival() -> None:
    subject = exchange(headers={HEADER: b"0"})
    filter_ = Deadline(Config(), HandClock())
    slow = Slow()
    with pytest.raises(Reject) as refused:
        await filter_(subject, slow)
    assert refused.value.reason is subject.reason is Reason.DEADLINE
    assert not slow.entered.is_set()
    assert filter_.expired == 1


async def test_an_answer_in_time_leaves_no_timer() -> None:
    clock = HandClock()
    subject = exchange(headers={HEADER: b"250"})
    slow = Slow()
    slow.leave.set()
    assert await Deadline(Config(), clock)(subject, slow) is OK
    assert subject.deadline == 1000.25
    assert [timer.cancelled for timer in clock.timers] == [True]
    assert subject.reason is None


async def test_running_into_the_deadline_cancels_what_runs_and_rejects() -> None:
    clock = HandClock()
    slow = Slow()
    subject = exchange(headers={HEADER: b"250"})
    filter_ = Deadline(Config(), clock)
    task = asyncio.create_task(filter_(subject, slow))
    await slow.entered.wait()
    clock.advance(0.3)
    with pytest.raises(Reject) as refused:
        await task
    assert slow.cancelled
    assert refused.value.reason is subject.reason is Reason.DEADLINE
    assert (task.cancelling(), task.cancelled(), filter_.expired) == (0, False, 1)


async def test_a_cancellation_from_outside_stays_one() -> None:
    clock = HandClock()
    slow = Slow()
    subject = exchange()
    filter_ = Deadline(Config(), clock)
    task = asyncio.create_task(filter_(subject, slow))
    await slow.entered.wait()
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert slow.cancelled
    assert subject.reason is None
    clock.advance(10_000)  # the line's alarm finds nobody, and is not set again
    assert (clock.timers, filter_.expired) == ([], 0)


@pytest.mark.parametrize("first", ["client", "deadline"])
async def test_when_both_happen_at_once_the_cancellation_wins(first: str) -> None:
    clock = HandClock()
    slow = Slow()
    task = asyncio.create_task(Deadline(Config(default=1.0), clock)(exchange(), slow))
    await slow.entered.wait()
    if first == "client":
        task.cancel()
        clock.advance(2)
    else:
        clock.advance(2)
        task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task


async def test_an_outcome_that_outlives_the_cancellation_is_kept() -> None:
    clock = HandClock()
    entered = asyncio.Event()

    async def stubborn(exchange: Exchange) -> Outcome:
        entered.set()
        try:
            await asyncio.Event().wait()
        except asyncio.CancelledError:
            return OK
        raise AssertionError

    async def run() -> tuple[Outcome, int]:
        outcome = await Deadline(Config(default=1.0), clock)(exchange(), stubborn)
        await asyncio.sleep(0)
        task = asyncio.current_task()
        assert task is not None
        return outcome, task.cancelling()

    task = asyncio.create_task(run())
    await entered.wait()
    clock.advance(2)
    assert await task == (OK, 0)


async def test_an_inner_deadline_does_not_end_an_outer_timeout() -> None:
    clock = HandClock()
    slow = Slow()

    async def run() -> str:
        async with asyncio.timeout(60):
            try:
                await Deadline(Config(default=1.0), clock)(exchange(), slow)
            except Reject:
                await asyncio.sleep(0)
                return "rejected"
        return "not rejected"

    task = asyncio.create_task(run())
    await slow.entered.wait()
    clock.advance(2)
    assert await task == "rejected"


# -- the line of those that named no deadline --------------------------------------------------


async def test_those_in_line_share_one_alarm_and_end_each_at_its_time() -> None:
    clock = HandClock()
    filter_ = Deadline(Config(max=10.0), clock)
    tasks: list[asyncio.Task[Outcome]] = []
    slows = [Slow() for _ in range(4)]
    for slow in slows:
        subject = exchange(arrived=clock.now())
        tasks.append(asyncio.create_task(filter_(subject, slow)))
        await slow.entered.wait()
        clock.advance(1)
    assert len(clock.timers) == 1
    slows[0].leave.set()  # who the alarm was set for is gone before it rings
    assert await tasks[0] is OK
    ended = []
    for _ in range(10):
        clock.advance(1)
        await asyncio.gather(*(asyncio.sleep(0) for _ in range(3)))
        ended.append(sum(task.done() for task in tasks))
    assert ended == [1, 1, 1, 1, 1, 1, 2, 3, 4, 4]
    for task in tasks[1:]:
        with pytest.raises(Reject):
            task.result()
    assert (clock.timers, filter_.expired) == ([], 3)


async def test_a_tunnel_is_not_ended_by_its_age() -> None:
    clock = HandClock()
    for headers in ({}, {HEADER: b"1000"}):
        filter_ = Deadline(Config(max=10.0), clock)
        subject, other = (
            exchange(headers=headers, arrived=clock.now()),
            exchange(arrived=clock.now()),
        )
        subject.upgrade = True
        subject.downstream.committed = True  # type: ignore[misc]
        slow, behind = Slow(), Slow()
        task = asyncio.create_task(filter_(subject, slow))
        task_behind = asyncio.create_task(filter_(other, behind))
        await behind.entered.wait()
        clock.advance(20)
        with pytest.raises(Reject):
            await task_behind
        assert not slow.cancelled
        slow.leave.set()
        assert await task is OK
