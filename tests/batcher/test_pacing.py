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


def test_where_the_budget_was_spent_the_next_batches_are_half_as_large() -> None:
    pace = Pace(Bounds(max_rows=64))
    pace.overspent(40)
    assert pace.rows() == 20
    pace.overspent(40)  # was in flight at the same time
    assert pace.rows() == 20
    pace.ended(20, True, True, 0.0, 0.01)
    assert pace.rows() == 21


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


def test_a_single_client_never_waits_however_its_answers_vary() -> None:
    rng = Random(1)
    server = Server()
    world = World(Bounds(), server)

    def vary() -> None:
        server.per_call = rng.choice([0.002] * 30 + [0.3])
        world.at(world.now + 0.01, vary)

    vary()
    world.closed(1, 2000, rng, pause=0.001)
    world.run(until=5.0)
    assert len(world.asks) > 100
    assert {ask.taken - ask.arrived for ask in world.asks[:-1]} == {0.0}


def test_who_comes_alone_after_a_crowd_does_not_wait() -> None:
    for silence in (0.006, 0.03, 1.0):
        world = World(Bounds(max_in_flight=2), Server())
        world.closed(64, 20, Random(1), 0.0003)
        world.run()
        world.now += silence
        alone = world.ask()
        world.run()
        assert alone.taken == alone.arrived


@pytest.mark.parametrize("slots", [1, 2, 4])
@pytest.mark.parametrize("pause", [0.0, 0.0003])
def test_many_clients_come_to_share_one_batch(slots: int, pause: float) -> None:
    """Alone, each at a time, they would get 495 answers a second. With all in one batch for ever,
    19,500; the pause and waiting for the last of them take from that."""
    world = World(Bounds(max_in_flight=slots), Server())
    world.closed(64, 100, Random(1), pause)
    world.run()
    assert len(world.asks) / world.now > 16_000
    assert quantile([ask.ended - ask.arrived for ask in world.asks], 0.5) < 0.004
    later = world.batches[20:-1]
    assert quantile([batch.rows for batch in later], 0.1) > 60


@pytest.mark.parametrize(("slots", "least"), [(1, 10_000), (2, 7500), (4, 5000)])
def test_clients_that_think_for_longer_than_a_batch_takes(slots: int, least: int) -> None:
    world = World(Bounds(max_in_flight=slots), Server())
    world.closed(64, 100, Random(1), 0.003)
    world.run()
    assert len(world.asks) / world.now > least


@pytest.mark.parametrize("clients", [2, 4, 16, 64, 128])
def test_a_server_that_works_at_two_batches_at_a_time_is_no_slower(clients: int) -> None:
    """Than with as many direct calls, of which it does 990 a second, and with one slot."""
    found = []
    for slots in (1, 2):
        world = World(Bounds(max_in_flight=slots), Server(instances=2))
        world.closed(clients, 6000 // clients, Random(1), 0.0003)
        world.run()
        found.append(len(world.asks) / world.now)
    one, two = found
    assert two > 0.85 * min(990.0, 450.0 * clients)
    assert two > 0.95 * one


@pytest.mark.parametrize("rate", [50.0, 500.0, 2000.0, 8000.0])
@pytest.mark.parametrize("slots", [1, 2])
def test_requests_at_random_wait_for_company_less_than_max_delay(rate: float, slots: int) -> None:
    world = World(Bounds(max_in_flight=slots), Server(instances=slots))
    world.open(rate, 4000 / rate, Random(1))
    world.run()
    waits = [ask.taken - ask.arrived for ask in world.asks]
    longest = max(world.took)
    assert max(waits) <= world.bounds.max_delay + longest
    assert quantile(waits, 0.5) < 0.0015


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


@pytest.mark.parametrize("slots", [1, 2])
def test_much_poison_makes_batches_small_rather_than_refusing_the_innocent(slots: int) -> None:
    rng = Random(1)
    world = World(Bounds(max_in_flight=slots), Server())
    world.closed(64, 100, rng, 0.0003, poison=lambda: rng.random() < 0.05)
    world.run()
    innocent = [ask for ask in world.asks if not ask.poison]
    assert sum(ask.outcome == "ok" for ask in innocent) > 0.85 * len(innocent)
    assert world.inferences < 0.35 * len(world.asks)
