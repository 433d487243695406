"""The limit holds in every window, for every key alone, and says truly when to come back."""

from __future__ import annotations

import json
from itertools import count

import pytest
from hypothesis import given
from hypothesis import strategies as st

from filters.api import Exchange, Reason, Reject
from filters.rate_limit import SLACK, Config, LocalStore, RateLimit, client_key
from tests.filters.doubles import exchange

RATES = st.sampled_from([0.01, 0.3, 1.0, 7.0, 100.0, 30_000.0])
GAPS = st.lists(st.sampled_from([0.0, 0.0, 0.001, 0.01, 0.1, 1 / 7, 1.0, 3.0]), max_size=80)


def asked(key: bytes | None = None, client: str = "10.0.0.1") -> Exchange:
    subject = exchange(headers={} if key is None else {b"authorization": key})
    subject.client = client
    return subject


def wait(limit: RateLimit, now: float, key: bytes | None = None, client: str = "10.0.0.1") -> float:
    """Ask once; 0 when allowed, else how long to wait."""
    try:
        limit.arrive(asked(key, client), now)
    except Reject as refused:
        return refused.retry_after or 0.0
    return 0.0


def told(subject: Exchange) -> dict[str, int]:
    pairs = (line.split(b": ") for line in subject.lines.split(b"\r\n") if line)
    return {name.decode().removeprefix("x-ratelimit-"): int(value) for name, value in pairs}


@given(RATES, st.integers(1, 20), GAPS)
def test_no_window_has_more_than_the_burst_and_the_rate(
    rate: float, burst: int, gaps: list[float]
) -> None:
    limit = RateLimit(Config(rate=rate, burst=burst))
    now, allowed = 1e6, []
    for gap in gaps:
        now += gap
        if not wait(limit, now, b"a"):
            allowed.append(now)
    for first, start in enumerate(allowed):
        for last, end in enumerate(allowed[first:], 1):
            assert last <= burst + rate * (end - start + SLACK) + 1e-3


@given(RATES, st.integers(1, 20), GAPS)
def test_who_comes_back_when_told_is_let_in_and_not_before(
    rate: float, burst: int, gaps: list[float]
) -> None:
    limit = RateLimit(Config(rate=rate, burst=burst))
    now = 1000.0
    for gap in gaps:
        now += gap
        delay = wait(limit, now, b"a")
        if delay:
            # Refusals cost nothing: asking too early does not move the time.
            assert wait(limit, now + delay * 0.9, b"a") == pytest.approx(delay * 0.1, abs=2 * SLACK)
            now += delay
            assert not wait(limit, now, b"a")


@given(RATES, st.integers(1, 20), st.integers(1, 60))
def test_whoever_keeps_to_the_rate_is_never_refused(rate: float, burst: int, times: int) -> None:
    limit = RateLimit(Config(rate=rate, burst=burst))
    assert not any(wait(limit, 1000.0 + n / rate, b"a") for n in range(times))


@given(st.integers(1, 30), RATES, st.floats(0, 100))
def test_what_remains_is_what_is_let_in(burst: int, rate: float, now: float) -> None:
    limit = RateLimit(Config(rate=rate, burst=burst))
    for left in reversed(range(burst)):
        subject = asked(b"a")
        limit.arrive(subject, now)
        assert (told(subject)["limit"], told(subject)["remaining"]) == (burst, left)
    subject = asked(b"a")
    with pytest.raises(Reject):
        limit.arrive(subject, now)
    assert told(subject)["remaining"] == 0
    # And after the reset all of it is there again.
    again = asked(b"a")
    limit.arrive(again, now + told(subject)["reset"])
    assert told(again)["remaining"] == burst - 1


@given(st.lists(st.tuples(st.sampled_from([0.0, 0.05, 0.3]), st.booleans()), max_size=100))
def test_keys_do_not_know_of_each_other(steps: list[tuple[float, bool]]) -> None:
    config = Config(rate=5.0, burst=3)
    together, alone = RateLimit(config), {True: RateLimit(config), False: RateLimit(config)}
    now = 1000.0
    for gap, which in steps:
        now += gap
        key = b"a" if which else b"b"
        assert wait(together, now, key) == wait(alone[which], now, key)


def test_lines_of_one_burst() -> None:
    limit = RateLimit(Config(rate=0.5, burst=2))
    subjects = [asked(b"a") for _ in range(3)]
    limit.arrive(subjects[0], 1000.0)
    limit.arrive(subjects[1], 1000.0)
    with pytest.raises(Reject) as refused:
        limit.arrive(subjects[2], 1001.0)
    assert refused.value.reason is Reason.RATE_LIMITED
    assert refused.value.retry_after == pytest.approx(1.0, abs=SLACK)
    assert [each.lines for each in subjects] == [
        b"x-ratelimit-limit: 2\r\nx-ratelimit-remaining: %d\r\nx-ratelimit-reset: %d\r\n" % each
        for each in ((1, 2), (0, 4), (0, 3))
    ]
    assert limit.refused == 1


def test_a_dry_run_refuses_nobody_and_tells_nobody() -> None:
    limit = RateLimit(Config(rate=1.0, burst=1, dry_run=True))
    subjects = [asked(b"a") for _ in range(3)]
    for subject in subjects:
        limit.arrive(subject, 1000.0)
    assert [each.shadowed for each in subjects] == [None, *[Reason.RATE_LIMITED] * 2]
    assert {each.lines for each in subjects} == {b""}
    assert (limit.refused, limit.would_refuse) == (0, 2)


# -- whose limit it is ------------------------------------------------------------------------


def test_without_the_header_the_address_counts() -> None:
    limit = RateLimit(Config(rate=1.0, burst=1))
    assert not wait(limit, 1000.0, b"a")
    assert not wait(limit, 1000.0, None)
    assert wait(limit, 1000.0, b"")
    assert wait(limit, 1000.0, None)
    assert not wait(limit, 1000.0, None, client="10.0.0.2")


def test_no_header_can_spend_what_belongs_to_an_address() -> None:
    limit = RateLimit(Config(rate=1.0, burst=1))
    assert not wait(limit, 1000.0, b"10.0.0.1")
    assert not wait(limit, 1000.0, None, client="10.0.0.1")


def test_by_client_a_header_changes_nothing_and_by_route_nothing_does() -> None:
    by_client, by_route = (
        RateLimit(Config(key="client", rate=1.0, burst=1)),
        RateLimit(Config(key="route", rate=1.0, burst=1)),
    )
    assert [bool(wait(by_client, 1000.0, key)) for key in (b"a", b"b")] == [False, True]
    assert not wait(by_client, 1000.0, b"a", client="10.0.0.2")
    assert not wait(by_route, 1000.0, b"a")
    assert wait(by_route, 1000.0, b"b", client="10.0.0.2")


@pytest.mark.parametrize(
    ("one", "other", "same"),
    [
        ("10.0.0.1", "10.0.0.2", False),
        ("2001:db8::1", "2001:db8::ffff:2", True),
        ("2001:db8:0:1::1", "2001:db8:0:2::1", False),
        ("::ffff:10.0.0.1", "10.0.0.1", True),
        ("fe80::1%eth0", "fe80::2%eth0", True),
        ("", "", True),
        ("no:address", "no:address2", False),
    ],
)
def test_addresses(one: str, other: str, same: bool) -> None:
    assert (client_key(one) == client_key(other)) is same


def test_what_a_client_sent_is_not_kept() -> None:
    store = LocalStore()
    limit = RateLimit(Config(rate=1.0, burst=1), store)
    limit.arrive(asked(b"Bearer secret"), 1000.0)
    assert [type(key) for key in store._times] == [int]


# -- memory -----------------------------------------------------------------------------------


@given(st.integers(1, 10), st.lists(st.integers(0, 30), max_size=200))
def test_the_table_is_bounded_and_nobody_is_refused_for_it(most: int, keys: list[int]) -> None:
    store, own = LocalStore(most), dict[int, int]()
    for key in keys:
        ahead = store.take(key, 1000.0, 1.0, 2.0)
        own[key] = own.get(key, 0) + 1
        assert len(store) <= most
        assert ahead <= own[key]  # never later than it would be alone


def test_the_key_used_longest_ago_is_forgotten_first() -> None:
    store = LocalStore(2)
    for key in (1, 2, 1, 3):
        store.take(key, 1000.0, 1.0, 5.0)
    assert store.evicted == 1
    assert store.take(1, 1000.0, 1.0, 5.0) == 3.0
    assert store.take(2, 1000.0, 1.0, 5.0) == 1.0


def test_one_that_is_refused_is_not_forgotten_for_asking_again() -> None:
    store = LocalStore(3)
    refusals = 0
    for stranger in range(2, 100):
        refusals += store.take(1, 1000.0, 1.0, 2.0) > 2.0
        store.take(stranger, 1000.0, 1.0, 2.0)
    assert refusals == 98 - 2


def test_idle_keys_are_forgotten_as_others_come() -> None:
    store = LocalStore()
    for key in range(1000):
        store.take(key, 1000.0, 1.0, 5.0)
    assert len(store) == 1000
    keys = count(10_000)
    for _ in range(1000):  # new ones, that are active
        store.take(next(keys), 1001.0, 1.0, 5.0)
    assert len(store) == 1000
    for _ in range(600):  # and a single one
        store.take(1, 1002.0, 1.0, 5.0)
    assert len(store) == 1
    assert store.evicted == 0


# -- reload and administration -----------------------------------------------------------------


def test_a_reload_keeps_what_keys_have_used() -> None:
    before = RateLimit(Config(rate=1.0, burst=1))
    assert not wait(before, 1000.0, b"a")
    assert wait(before, 1000.0, b"a")
    after = RateLimit(Config(rate=1.0, burst=2))
    after.take_over(before)
    assert not wait(after, 1000.0, b"a")
    assert wait(after, 1000.0, b"a")
    assert after.refused == 2


def test_a_faster_limit_frees_who_waited_for_a_slower_one() -> None:
    before = RateLimit(Config(rate=1 / 86400, burst=10))
    assert not any(wait(before, 1000.0, b"a") for _ in range(10))
    after = RateLimit(Config(rate=10.0, burst=2))
    after.take_over(before)
    delay = wait(after, 1000.0, b"a")
    assert delay == pytest.approx(0.1, abs=SLACK)
    assert not wait(after, 1000.0 + delay, b"a")


def test_other_keys_begin_anew() -> None:
    before = RateLimit(Config(rate=1.0, burst=1))
    assert not wait(before, 1000.0)
    after = RateLimit(Config(key="client", rate=1.0, burst=1))
    after.take_over(before)
    assert not wait(after, 1000.0)


def test_it_describes_itself_in_json() -> None:
    limit = RateLimit(Config(rate=1.0, burst=1))
    for _ in range(3):
        wait(limit, 1000.0, b"a")
    shown = json.loads(json.dumps(limit.describe(1000.0)))
    assert shown == {
        "key": "header:authorization",
        "rate": 1.0,
        "burst": 1,
        "keys": 1,
        "evicted": 0,
        "refused": 2,
        "would_refuse": 0,
    }
