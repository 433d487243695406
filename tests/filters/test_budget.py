"""The budget is never overspent, in any window; hedges never take the part of the retries."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from filters.budget import WINDOW, Budget, Config


def test_ten_requests_pay_for_one_extra_attempt_without_a_reserve() -> None:
    budget = Budget(Config(ratio=0.1, min_per_second=0))
    budget.deposit(100.0, 9)
    assert not budget.withdraw(100.0, "retry")
    budget.deposit(100.0)
    assert budget.withdraw(100.0, "retry")
    assert not budget.withdraw(100.0, "retry")


def test_single_deposits_add_up_without_rounding_loss() -> None:
    budget = Budget(Config(ratio=0.1, min_per_second=0))
    for _ in range(1000):
        budget.deposit(5.5)
    assert budget.balance(5.5) == 100.0


def test_a_quiet_route_can_spend_its_reserve_and_then_waits_for_it() -> None:
    budget = Budget(Config(min_per_second=1))
    assert [budget.withdraw(50.0, "retry") for _ in range(11)] == [True] * 10 + [False]
    assert not budget.withdraw(59.9, "retry")
    assert budget.withdraw(60.0, "retry")


def test_old_deposits_are_gone_after_the_window() -> None:
    budget = Budget(Config(ratio=0.1, min_per_second=0))
    budget.deposit(3.0, 1000)
    assert budget.balance(12.9) == 100.0
    assert budget.balance(13.0) == 0.0
    assert not budget.withdraw(1e9, "retry")


def test_hedges_take_at_most_their_part_and_retries_get_the_rest() -> None:
    budget = Budget(Config(ratio=0.1, hedges=0.05, min_per_second=0))
    budget.deposit(7.0, 1000)
    assert sum(budget.withdraw(7.0, "hedge") for _ in range(200)) == 50
    assert sum(budget.withdraw(7.0, "retry") for _ in range(200)) == 50


def test_retries_may_take_all_of_it_and_leave_hedges_nothing() -> None:
    budget = Budget(Config(ratio=0.1, hedges=0.05, min_per_second=0))
    budget.deposit(7.0, 1000)
    assert sum(budget.withdraw(7.0, "retry") for _ in range(200)) == 100
    assert not budget.withdraw(7.0, "hedge")


def test_without_a_ratio_only_retries_may_use_the_reserve() -> None:
    budget = Budget(Config(ratio=0, hedges=0, min_per_second=1))
    assert not budget.withdraw(1.0, "hedge")
    assert budget.withdraw(1.0, "retry")


def test_a_refusal_costs_nothing() -> None:
    budget = Budget(Config(ratio=0.1, hedges=0.05, min_per_second=0))
    budget.deposit(1.0, 19)
    before = budget.balance(1.0)
    assert not budget.withdraw(1.0, "hedge")
    assert budget.balance(1.0) == before


steps = st.lists(
    st.tuples(
        st.floats(0, 7, allow_nan=False),
        st.sampled_from(["deposit", "retry", "hedge"]),
        st.integers(1, 40),
    ),
    max_size=120,
)
shares = st.floats(0, 1)


@given(steps, shares, shares, st.floats(0, 5), st.floats(0, 1e6))
def test_no_window_is_ever_overspent(
    steps: list[tuple[float, str, int]], ratio: float, hedges: float, rate: float, start: float
) -> None:
    budget = Budget(Config(ratio=ratio, hedges=hedges, min_per_second=rate))
    now = start
    requests: dict[int, int] = {}
    spent: dict[int, int] = {}
    hedged: dict[int, int] = {}
    for pause, what, n in steps:
        now += pause
        second = int(now)
        if what == "deposit":
            budget.deposit(now, n)
            requests[second] = requests.get(second, 0) + n
            continue
        for _ in range(n):
            if budget.withdraw(now, "hedge" if what == "hedge" else "retry"):
                spent[second] = spent.get(second, 0) + 1
                hedged[second] = hedged.get(second, 0) + (what == "hedge")
    part = min(1.0, hedges / ratio) if ratio else 0.0
    check_windows(spent, requests, ratio, rate * WINDOW)
    check_windows(hedged, requests, hedges, rate * WINDOW * part)


def check_windows(
    spent: dict[int, int], requests: dict[int, int], share: float, reserve: float
) -> None:
    """For windows of one and of three times WINDOW that end with a withdrawal."""
    for last in (second for second, n in spent.items() if n):
        for blocks in (1, 3):
            window = range(last - blocks * WINDOW + 1, last + 1)
            # The first withdrawals of a longer window may have been paid for just before it.
            paid_from = window.start - (WINDOW - 1 if blocks > 1 else 0)
            income = sum(requests.get(s, 0) for s in range(paid_from, last + 1))
            slack = 1e-6 * (1 + income)
            withdrawn = sum(spent.get(s, 0) for s in window)
            assert withdrawn <= share * income + reserve * blocks + slack


@given(st.integers(0, 10_000), st.integers(0, 10_000))
def test_many_small_deposits_equal_one_large(a: int, b: int) -> None:
    one, two = Budget(Config()), Budget(Config())
    one.deposit(3.0, a)
    one.deposit(4.0, b)
    two.deposit(4.0, a + b)
    assert one.balance(4.0) == pytest.approx(two.balance(4.0))
