"""What cannot be done in the time left is refused at arrival, on evidence that expires."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from filters.api import Exchange, Kind, Outcome, Reason, Reject
from filters.deadline import HEADER, LEARN, PROBE, SAMPLES, WINDOW, BestCase, Config, Deadline
from tests.filters.doubles import HandClock, exchange

OK = Outcome(Kind.OK, 200)


async def serve(
    filter_: Deadline,
    clock: HandClock,
    seconds: float,
    asked_ms: bytes | None = b"60000",
    outcome: Outcome = OK,
    queued: float = 0.0,
) -> Exchange:
    """One exchange that takes so long, without an event loop's time passing."""
    subject = exchange(headers={} if asked_ms is None else {HEADER: asked_ms}, arrived=clock.now())

    async def service(exchange: Exchange) -> Outcome:
        exchange.queued = queued
        clock.time += seconds
        return outcome

    await filter_(subject, service)
    return subject


async def refused(filter_: Deadline, clock: HandClock, asked_ms: bytes | None) -> bool:
    try:
        await serve(filter_, clock, 0.0, asked_ms, Outcome(Kind.IGNORED, 0))
    except Reject as reject:
        return reject.reason is Reason.DEADLINE_UNREACHABLE
    return False


async def learned(config: Config | None = None, seconds: float = 0.5) -> tuple[Deadline, HandClock]:
    clock = HandClock()
    filter_ = Deadline(config or Config(), clock)
    for _ in range(SAMPLES):
        await serve(filter_, clock, seconds)
    return filter_, clock


async def test_what_the_best_case_took_longer_for_is_refused_but_for_a_probe() -> None:
    filter_, clock = await learned()
    seen = [await refused(filter_, clock, b"499") for _ in range(2 * PROBE)]
    assert seen == ([False] + [True] * (PROBE - 1)) * 2
    assert (filter_.unreachable, filter_.probes) == (2 * (PROBE - 1), 2)
    assert not any([await refused(filter_, clock, b"501") for _ in range(PROBE)])


async def test_only_a_deadline_that_somebody_named_is_judged() -> None:
    filter_, clock = await learned(Config(max=0.8), seconds=0.4)
    clock_of_max = Deadline(Config(max=0.3), clock)
    clock_of_max.take_over(filter_)
    assert not any([await refused(clock_of_max, clock, None) for _ in range(PROBE)])
    by_route = Deadline(Config(default=0.3), clock)
    by_route.take_over(filter_)
    assert any([await refused(by_route, clock, None) for _ in range(PROBE)])


async def test_too_few_samples_say_nothing() -> None:
    clock = HandClock()
    filter_ = Deadline(Config(), clock)
    for _ in range(SAMPLES - 1):
        await serve(filter_, clock, 0.5)
    assert not any([await refused(filter_, clock, b"1") for _ in range(PROBE)])
    await serve(filter_, clock, 0.5)
    assert any([await refused(filter_, clock, b"1") for _ in range(PROBE)])


@pytest.mark.parametrize(
    "outcome",
    [
        Outcome(Kind.OK, 404),
        Outcome(Kind.OK, 429),
        Outcome(Kind.OK, 101),
        Outcome(Kind.FAILED, 200),
        Outcome(Kind.FAILED, 503),
        Outcome(Kind.IGNORED, 200),
    ],
)
async def test_only_a_whole_answer_that_is_no_error_teaches(outcome: Outcome) -> None:
    filter_, clock = await learned()
    await serve(filter_, clock, 0.001, outcome=outcome)
    assert any([await refused(filter_, clock, b"100") for _ in range(PROBE)])
    await serve(filter_, clock, 0.05)
    assert not any([await refused(filter_, clock, b"100") for _ in range(PROBE)])


async def test_time_in_the_queue_is_not_held_against_the_server() -> None:
    clock = HandClock()
    filter_ = Deadline(Config(), clock)
    for _ in range(SAMPLES):
        await serve(filter_, clock, 0.7, queued=0.6)
    assert not any([await refused(filter_, clock, b"150") for _ in range(PROBE)])
    assert any([await refused(filter_, clock, b"50") for _ in range(PROBE)])


async def test_when_all_are_refused_the_reason_for_it_expires() -> None:
    filter_, clock = await learned()
    seen = []
    for _ in range(300):
        clock.time += 2 * WINDOW / 300
        seen.append(await refused(filter_, clock, b"100"))
    assert sum(seen[:100]) == 95
    assert not any(seen[-2:])
    assert sum(seen[-200:]) < 195


async def test_one_probe_that_succeeds_opens_the_way() -> None:
    filter_, clock = await learned()
    assert not await refused(filter_, clock, b"100")
    assert await refused(filter_, clock, b"100")
    while True:
        try:
            await serve(filter_, clock, 0.08, b"100")
        except Reject:
            continue
        break
    assert not any([await refused(filter_, clock, b"100") for _ in range(2 * PROBE)])


async def test_a_dry_run_only_counts() -> None:
    filter_, clock = await learned(Config(dry_run=True))
    subjects = [
        await serve(filter_, clock, 0.0, b"100", Outcome(Kind.IGNORED)) for _ in range(PROBE)
    ]
    marks = [subject.shadowed for subject in subjects]
    assert marks == [None, *[Reason.DEADLINE_UNREACHABLE] * (PROBE - 1)]
    assert filter_.describe(clock.now()) == {
        "best_case_ms": pytest.approx(500),
        "expired": 0,
        "unreachable": 0,
        "probes": 1,
        "would_refuse": PROBE - 1,
    }


async def test_it_can_be_turned_off_and_what_was_learned_is_kept() -> None:
    filter_, clock = await learned()
    off = Deadline(Config(unreachable=False), clock)
    off.take_over(filter_)
    assert not any([await refused(off, clock, b"100") for _ in range(PROBE)])
    on = Deadline(Config(), clock)
    on.take_over(off)
    assert any([await refused(on, clock, b"100") for _ in range(PROBE)])


async def test_a_route_where_nobody_names_a_deadline_learns_nothing() -> None:
    clock = HandClock()
    filter_ = Deadline(Config(), clock)
    for _ in range(SAMPLES):
        await serve(filter_, clock, 0.5, None)
    assert filter_.describe(clock.now())["best_case_ms"] is None
    await serve(filter_, clock, 0.4)  # from here on it does
    for _ in range(SAMPLES - 1):
        await serve(filter_, clock, 0.5, None)
    assert filter_.describe(clock.now())["best_case_ms"] == pytest.approx(400)
    clock.time += LEARN
    for _ in range(SAMPLES):
        await serve(filter_, clock, 0.5, None)
    assert filter_.describe(clock.now())["best_case_ms"] is None


@given(st.lists(st.tuples(st.floats(0, 20), st.floats(0, 100)), max_size=120))
def test_the_best_case_is_of_the_last_two_windows(steps: list[tuple[float, float]]) -> None:
    best, now = BestCase(), 1000.0
    seen: list[tuple[float, float]] = []
    for gap, seconds in steps:
        now += gap
        best.add(seconds, now)
        seen.append((now, seconds))
        least = best.seconds(now)
        recent = [value for when, value in seen if when > now - WINDOW]
        possible = [value for when, value in seen if when > now - 2 * WINDOW - 1e-6]
        if least:
            assert min(possible) <= least <= min(recent)
            assert len(possible) >= SAMPLES
        else:
            assert len(recent) < SAMPLES or min(possible) == 0
    assert best.seconds(now + 2 * WINDOW) == 0
