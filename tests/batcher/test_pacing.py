"""How large batches are, and how long calls wait for them, against a modelled server."""

from __future__ import annotations

from random import Random

import pytest

from gpu_batcher.pacing import Bounds, Pace
from tests.batcher.planned import Server, World, quantile

# -- the limit of rows ---------------------------------------------------------------------------


def test_a_late_batch_shrinks_the_limit_and_a_good_full_one_raises_it() -> None:
    pace = Pace(Bounds(max_rows=50, target=0.1))
    pace.ended(50, True, True, 0.0, 0.2)
    assert pace.rows() == 45
    pace.ended(50, True, True, 0.1, 0.3)  # sent before that was known
    assert pace.rows() == 45
    pace.ended(45, True, True, 0.3, 0.39)  # neither late nor quick
    assert pace.rows() == 45
    pace.ended(45, True, False, 0.4, 0.41)  # not full
    assert pace.rows() == 45
    for _ in range(9):
        pace.ended(45, True, True, 0.4, 0.41)
    assert pace.rows() == 50
    for n in range(200):
        pace.ended(1, True, True, n, n + 1.0)
    assert pace.rows() == 1


def test_a_batch_that_failed_twice_without_a_culprit_was_too_large() -> None:
    pace = Pace(Bounds(max_rows=64))
    pace.overfilled(64)
    pace.ended(64, True, True, 0.0, 0.01)
    pace.overfilled(64)
    assert pace.rows() == 64
    pace.overfilled(64)
    assert pace.rows() == 32


# -- against a modelled server ---------------------------------------------------------------------


def test_a_single_client_never_waits() -> None:
    world = World(Bounds(), Server(per_call=0.01))
    world.closed(1, 200, Random(1), pause=0.001)
    world.run()
    assert {ask.taken - ask.arrived for ask in world.asks} == {0.0}


def test_sparse_requests_hardly_ever_wait() -> None:
    world = World(Bounds(), Server())
    world.open(20.0, 60.0, Random(1))
    world.run()
    waits = [ask.taken - ask.arrived for ask in world.asks]
    assert quantile(waits, 0.98) == 0.0


@pytest.mark.parametrize("slots", [1, 2])
@pytest.mark.parametrize("pause", [0.0, 0.0003, 0.003])
def test_many_clients_share_batches(slots: int, pause: float) -> None:
    """Alone, each at a time, they would get 495 answers a second. With all in one batch for ever,
    19,500; the pause takes from that."""
    world = World(Bounds(max_in_flight=slots), Server())
    world.closed(64, 100, Random(1), pause)
    world.run()
    assert len(world.asks) / world.now > 64 / (2 * 0.0021 + 64 * 20e-6 + pause)
    assert quantile([ask.ended - ask.arrived for ask in world.asks], 0.5) < 0.008


@pytest.mark.parametrize("slots", [1, 2])
def test_batches_shrink_until_they_meet_the_target(slots: int) -> None:
    world = World(Bounds(target=0.05, max_in_flight=slots), Server(per_row=0.005))
    world.closed(64, 40, Random(1))
    world.run()
    recent = world.took[-100:]
    assert sum(took > 0.05 for took in recent) <= 5
    rows = [batch.rows for batch in world.batches[-100:-20]]
    assert sum(rows) / len(rows) >= 6.0 / slots


def test_a_tenant_with_one_request_does_not_wait_for_one_with_a_thousand() -> None:
    world = World(Bounds(max_in_flight=1), Server())
    world.closed(1000, 20, Random(1), tenant=1)
    world.closed(1, 50, Random(2), tenant=2)
    world.run()
    mouse = [ask for ask in world.asks if ask.tenant == 2]
    assert len(mouse) == 50
    assert max(ask.ended - ask.arrived for ask in mouse) < 0.008
    assert {ask.outcome for ask in world.asks} == {"ok"}
