"""Whatever happens, no caller gets another caller's rows, and nobody is left waiting."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass

from hypothesis import given, settings
from hypothesis import strategies as st

from gpu_batcher.api import Reply
from gpu_batcher.contain import Containment
from gpu_batcher.flight import Member, RefusedError, Why
from gpu_batcher.pacing import Bounds
from gpu_batcher.quarantine import Quarantine
from tests.batcher.flown import Server, call, coalescer, fly, own, terms

SECONDS = st.sampled_from([0.0, 0.0, 0.0005, 0.001, 0.002, 0.003, 0.01, 0.1])
MOODS = st.sampled_from(
    ["", "", "", "", "400", "500", "422", "503", "429", "404", "broken", "bad", "short", "bug"]
)


@dataclass
class Caller:
    comes: float
    rows: int
    key: str
    tenant: int
    priority: int
    stays: float | None
    deadline: float | None


CALLERS = st.builds(
    Caller,
    SECONDS,
    st.integers(1, 5),
    st.sampled_from("ab"),
    st.integers(0, 2),
    st.integers(0, 3),
    st.none() | SECONDS,
    st.none() | SECONDS,
)
BOUNDS = st.builds(
    Bounds,
    max_rows=st.integers(1, 16),
    max_in_flight=st.integers(1, 3),
    max_waiting=st.integers(1, 40),
    max_delay=st.sampled_from([0.0, 0.005]),
    target=st.sampled_from([0.001, 0.05]),
)


@settings(max_examples=300, deadline=None)
@given(
    callers=st.lists(CALLERS, min_size=1, max_size=40),
    bounds=BOUNDS,
    poison=st.sets(st.integers(0, 39), max_size=5),
    moods=st.lists(MOODS, max_size=20),
    burst=st.sampled_from([0, 3, 64]),
    refuse=st.booleans(),
    most=st.sampled_from([3, 1 << 30]),
    closes=st.none() | SECONDS,
)
def test_everybody_gets_their_own_or_a_reason(
    callers: list[Caller],
    bounds: Bounds,
    poison: set[int],
    moods: list[str],
    burst: int,
    refuse: bool,
    most: int,
    closes: float | None,
) -> None:
    server = Server(poison=poison, moods=list(moods), most=most)
    containment: Containment[Member] = Containment(burst=burst)
    got: dict[int, Reply | BaseException] = {}

    async def visit(mark: int, caller: Caller) -> None:
        await asyncio.sleep(caller.comes)
        loop = asyncio.get_running_loop()
        deadline = None if caller.deadline is None else loop.time() + caller.deadline
        about = terms(mark, tenant=caller.tenant, priority=caller.priority, deadline=deadline)
        try:
            async with asyncio.timeout(caller.stays):
                got[mark] = await batcher.submit(call(mark, caller.rows, caller.key), about)
        except (RefusedError, TimeoutError) as error:
            got[mark] = error

    async def work() -> None:
        nonlocal batcher
        batcher = coalescer(server, bounds, containment=containment, quarantine=Quarantine(refuse))
        visits = [asyncio.create_task(visit(*each)) for each in enumerate(callers)]
        if closes is not None:
            await asyncio.sleep(closes)
            await batcher.close()
        await asyncio.wait(visits)
        for each in visits:
            each.result()
        await asyncio.sleep(0.1)  # what was given up has ended

    batcher = None  # type: ignore[assignment]
    fly(work())

    assert len(got) == len(callers)
    for mark, answer in got.items():
        if isinstance(answer, Reply) and answer.status == 200:
            assert answer.body == own(mark)
        elif isinstance(answer, Reply):
            told = b"of %d" % mark if answer.body.startswith(b"of") else b"row %d is poison" % mark
            assert answer.body == told
    assert batcher.idle
    assert batcher._plan.in_flight == 0
    assert server.running == 0
    assert server.peak <= bounds.max_in_flight
    assert batcher._timer is None or closes is None
    for marks in server.inferences:
        assert len({callers[mark].key for mark in marks}) == 1
    if not moods and not poison and closes is None and most > 3:
        refused = {each.why for each in got.values() if isinstance(each, RefusedError)}
        assert refused <= {Why.QUEUE_FULL, Why.EXPIRED}
