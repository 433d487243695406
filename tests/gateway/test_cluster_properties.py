"""Whatever happens to a cluster: who is chosen, one probe at a time, permits come back."""

from __future__ import annotations

import asyncio
from collections import Counter
from typing import Any

from hypothesis import given
from hypothesis import strategies as st

from filters.api import Attempt, Kind, Outcome, Reason
from filters.standing import Phase
from tests.gateway.fake_cluster import World, retry_after


@given(
    st.integers(2, 5),
    st.lists(
        st.tuples(
            st.integers(0, 4),
            st.sampled_from(("good", "fail", "slow", "hang", "leave", "push")),
            st.integers(1, 8),
            st.floats(0, 6),
        ),
        max_size=25,
    ),
    st.sampled_from(("round_robin", "least_request", "peak_ewma", "consistent_hash")),
)
def test_whatever_happens(n: int, steps: list[tuple[int, str, int, float]], policy: str) -> None:
    """A healthy endpoint is preferred, one probe at a time, every permit comes back."""
    asyncio.run(_whatever_happens(n, steps, policy))


async def _whatever_happens(n: int, steps: list[tuple[int, str, int, float]], policy: str) -> None:
    world = World(n, policy=policy)
    hanging: list[asyncio.Task[Outcome]] = []
    gate = asyncio.Event()
    for k, what, times, seconds in steps:
        pool = world.pools[k % n]
        pool.gate = gate if what == "hang" else None
        pool.script = {
            "fail": lambda: Outcome(Kind.FAILED, 0, Reason.UPSTREAM_RESET),
            "push": lambda: pool.answer(429, retry_after(b"2")),  # noqa: B023
        }.get(what, lambda: pool.answer(200))  # noqa: B023
        for _ in range(times):
            before = [(e, e.standing.phase, e.standing.probe) for e in world.endpoints]
            attempt = Attempt(world.exchange(), 1, ())
            task = asyncio.create_task(world.cluster.attempt(attempt))
            await asyncio.sleep(0)
            _check_choice(world, attempt, before)
            if what == "slow":
                world.clock.advance(0.3)
            if what == "leave":
                task.cancel()
                await asyncio.sleep(0)
            hanging.append(task)
        world.clock.advance(seconds)
    gate.set()
    for ended in await asyncio.gather(*hanging, return_exceptions=True):
        if isinstance(ended, Outcome):
            ended.discard()
        else:
            assert isinstance(ended, asyncio.CancelledError)
    assert [each.active for each in world.endpoints] == [0] * n
    assert world.cluster.faults == 0


def _check_choice(world: World, attempt: Attempt, before: list[Any]) -> None:
    """It went to a healthy endpoint, or is the one probe of an endpoint that has none."""
    probes = Counter(id(e.standing.probe) for e in world.endpoints if e.standing.probe is not None)
    assert all(count == 1 for count in probes.values())
    out = [e for e in world.endpoints if e.standing.phase is not Phase.HEALTHY]
    assert len(out) < len(world.endpoints)
    for endpoint, phase, probe in before:
        if endpoint.name == attempt.endpoint and phase is not Phase.HEALTHY:
            # It may have come back, or begun to be probed, in this very attempt; or the probe that
            # it had was found to be late.
            after = endpoint.standing
            begun = probe is None or phase is Phase.EJECTED
            # Asked a second time because the probe is late, it may have failed at once: only what
            # is asked as a probe ends in an ejection.
            again = after.phase is Phase.EJECTED
            assert begun or after.phase is Phase.HEALTHY or after.late or again
