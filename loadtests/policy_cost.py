"""What one call of each policy costs: no event loop, no sockets, microseconds of CPU.

    python -m loadtests.policy_cost [--only WORD]

An entry is a function under ``@policy(NAME)``: it sets up and returns one call, which is repeated
with nothing in between. So a call has to leave things as it found them, or come back to it after
a while. The least of several runs is reported, less what an empty call costs; where time has to
pass, 0.1 us of it are the clock's.
"""

import argparse
import gc
import time
import timeit
from collections.abc import Callable
from itertools import count, cycle
from random import Random
from typing import Any, cast

from filters import admission, hedge, outlier, priority, rate_limit
from filters.api import Exchange, Handle, Kind, Outcome, Reason, Request
from filters.budget import Budget
from filters.budget import Config as BudgetConfig
from filters.limits import AdaptiveLimit
from filters.queueing import FairQueue, Waiter
from filters.shedder import Shedder
from filters.standing import TIMED, Sample, Standing

Call = Callable[[], object]
POLICIES: dict[str, Callable[[], Call]] = {}
RUNS = 7
SECONDS = 0.1
"""Of a run, about: long enough that the clock's steps do not matter."""
NOW = 1e5
"""What calls take for ``now`` where time need not pass."""


def policy(name: str) -> Callable[[Callable[[], Call]], Callable[[], Call]]:
    """Register an entry. ``name``: which filter, what is called, and with how much in it."""

    def register(build: Callable[[], Call]) -> Callable[[], Call]:
        assert name not in POLICIES
        POLICIES[name] = build
        return build

    return register


def ticking(step: float = 0.001) -> Callable[[], float]:
    """A clock that moves ``step`` seconds per look: 0.001 is 1,000 calls a second."""
    ticks = count(int(NOW / step))
    return lambda: next(ticks) * step


def measure(call: Call) -> tuple[int, float]:
    """Calls in a run, and microseconds of CPU per call in the best of the runs."""
    timer = timeit.Timer(call, timer=time.process_time)
    calls = 100
    while (taken := timer.timeit(calls)) < SECONDS / 4:
        calls *= 2
    calls = max(1, int(calls * SECONDS / taken))
    gc.collect()
    return calls, min(timer.repeat(RUNS, calls)) / calls * 1e6


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--only", default="", metavar="WORD", help="entries with it in their name")
    options = parser.parse_args()
    _, empty = measure(lambda: None)
    width = max(map(len, POLICIES))
    print(f"{'policy':{width}}  {'calls':>10}  us per call")
    for name, build in POLICIES.items():
        if options.only in name:
            calls, cost = measure(build())
            print(f"{name:{width}}  {calls:10,}  {max(0.0, cost - empty):11.2f}")


# -- queueing ----------------------------------------------------------------------------------


def _queue(tenants: int, waiting: int) -> Call:
    """One comes, one is served; a thousand times a second, so that time-outs pass as well."""
    queue: FairQueue[None] = FairQueue(waiting + 1)
    clock = ticking()
    tenant = cycle(range(tenants)).__next__
    push, pop = queue.push, queue.pop

    def come() -> None:
        now = clock()
        push(Waiter(None, 1, tenant(), 1.0, now, now + 10.0), now)

    def turn() -> None:
        now = clock()
        push(Waiter(None, 1, tenant(), 1.0, now, now + 10.0), now)
        pop(now, 1.0, False)

    for _ in range(waiting):
        come()
    return turn


@policy("queue: push and pop, nobody else waiting")
def _() -> Call:
    return _queue(1, 0)


@policy("queue: push and pop, 1,000 waiting, 1 tenant")
def _() -> Call:
    return _queue(1, 1000)


@policy("queue: push and pop, 1,000 waiting, 1,000 tenants")
def _() -> Call:
    return _queue(1000, 1000)


def _flooded() -> FairQueue[None]:
    queue: FairQueue[None] = FairQueue(1000)
    for _ in range(1000):
        queue.push(Waiter(None, 1, 0, 1.0, NOW, NOW + 10.0), NOW)
    return queue


@policy("queue: push refused, full of one tenant's 1,000")
def _() -> Call:
    queue = _flooded()
    more = Waiter(None, 1, 0, 1.0, NOW, NOW + 10.0)
    return lambda: queue.push(more, NOW)


@policy("queue: one of the 1,000 displaced, and all as before")
def _() -> Call:
    queue = _flooded()

    def displace() -> None:
        mouse = Waiter(None, 1, 1, 1.0, NOW, NOW + 10.0)
        queue.push(mouse, NOW)
        queue.remove(mouse)
        queue.push(Waiter(None, 1, 0, 1.0, NOW, NOW + 10.0), NOW)

    return displace


# -- budget ------------------------------------------------------------------------------------


@policy("budget: deposit")
def _() -> Call:
    budget = Budget(BudgetConfig())
    clock = ticking()
    return lambda: budget.deposit(clock())


@policy("budget: deposit and withdraw")
def _() -> Call:
    budget = Budget(BudgetConfig())
    clock = ticking()

    def retry() -> None:
        now = clock()
        budget.deposit(now)
        budget.withdraw(now, "retry")

    return retry


# -- limits ------------------------------------------------------------------------------------


def _limit(initial: int, in_use: int, waiting: bool) -> Call:
    """Answers of 20 ms, more or less; 1,000 a second."""
    limit = AdaptiveLimit(initial)
    clock = ticking()
    rng = Random(1)
    seconds = cycle([rng.lognormvariate(-4, 0.5) for _ in range(997)]).__next__

    def turn() -> None:
        mark = limit.begun(in_use)
        limit.ended(clock(), seconds(), in_use, mark, in_use - 1, waiting)

    return turn


@policy("limit: begun and ended, far below it")
def _() -> Call:
    return _limit(512, 8, False)


@policy("limit: begun and ended, reached, in trials")
def _() -> Call:
    return _limit(8, 8, True)


@policy("limit: begun and ended, a look at the onset at each 16th")
def _() -> Call:
    limit = AdaptiveLimit()
    clock = ticking()
    rng = Random(1)
    numbers = cycle([rng.randint(1, 3) for _ in range(113)] + list(range(20, 36))).__next__

    def turn() -> None:
        n = numbers()
        mark = limit.begun(n)
        limit.ended(clock(), 0.02, n, mark, 40, False)

    return turn


# -- admission ---------------------------------------------------------------------------------


class _Clock:
    """Time stands, and nothing is ever due."""

    def now(self) -> float:
        return NOW

    def call_at(self, when: float, callback: Callable[[], object]) -> Handle:
        return self

    def cancel(self) -> None:
        pass


class _Future:
    def done(self) -> bool:
        return False

    def set_result(self, result: object) -> None:
        pass


def _exchange(*headers: tuple[bytes, bytes]) -> Exchange:
    request = Request(b"POST", b"/v1/embeddings", 1, [], dict(headers), b"model", 2)
    nothing = cast("Any", None)
    return Exchange(request, nothing, nothing, "127.0.0.1", True, False, NOW)


@policy("admission: a permit taken and given back, nobody waits")
def _() -> Call:
    clock = _Clock()
    filter_ = admission.Admission(admission.Gate(admission.Config(), clock, Random(1)), clock)
    exchange, outcome = _exchange(), Outcome(Kind.OK, 200)

    async def answered(exchange: Exchange) -> Outcome:
        return outcome

    def turn() -> None:
        try:
            filter_(exchange, answered).send(None)
        except StopIteration:
            return
        raise AssertionError("it waits")

    return turn


@policy("admission: one comes to wait, one is given a permit; 100 waiting")
def _() -> Call:
    clock = _Clock()
    gate = admission.Gate(admission.Config(limit=8), clock, Random(1))
    gate.in_flight = 8.0
    place = admission._Place(cast("Any", _Future()), Reason.QUEUE_TIMEOUT)  # noqa: SLF001

    def turn() -> None:
        gate._enqueue(Waiter(place, 1, 0, 1.0, NOW, NOW + 10.0), NOW)  # noqa: SLF001
        gate.give_back(1.0, NOW)

    for _ in range(100):
        gate._enqueue(Waiter(place, 1, 0, 1.0, NOW, NOW + 10.0), NOW)  # noqa: SLF001
    return turn


# -- arrival checks ----------------------------------------------------------------------------


@policy("priority: without the header")
def _() -> Call:
    check, exchange = priority.Priorities(priority.Config()), _exchange()
    return lambda: check.arrive(exchange, NOW)


@policy("priority: with it")
def _() -> Call:
    check = priority.Priorities(priority.Config())
    exchange = _exchange((b"x-request-priority", b"sheddable"))
    return lambda: check.arrive(exchange, NOW)


def _rate_limit(keys: int) -> Call:
    check = rate_limit.RateLimit(rate_limit.Config(rate=1e6, burst=1000))
    clock = ticking()
    callers = cycle([_exchange((b"authorization", b"Bearer %d" % k)) for k in range(keys)]).__next__

    def come() -> None:
        exchange = callers()
        exchange.lines = b""
        check.arrive(exchange, clock())

    return come


@policy("rate limit: one key")
def _() -> Call:
    return _rate_limit(1)


@policy("rate limit: 10,000 keys")
def _() -> Call:
    return _rate_limit(10_000)


@policy("shedder: an arrival while somebody waits")
def _() -> Call:
    shedder, clock = Shedder(Random(1)), ticking()
    shedder.queue(NOW, 10)
    return lambda: shedder.arrived(1, 7, clock())


@policy("shedder: arrival, permit and queue, overloaded")
def _() -> Call:
    shedder, clock = Shedder(Random(1)), ticking()
    tenant = cycle(range(100)).__next__

    def turn() -> None:
        now = clock()
        for _ in range(3):  # three come for each that is served
            shedder.arrived(1, tenant(), now)
        shedder.served(now)
        shedder.queue(now, 29)
        shedder.queue(now, 30)

    shedder.queue(clock(), 30)
    for _ in range(100):
        turn()
    shedder.full(clock())
    assert shedder.overloaded
    return turn


# -- outlier, hedge ----------------------------------------------------------------------------


@policy("outlier: an attempt and its good answer")
def _() -> Call:
    standing, clock = Standing("a", NOW), ticking()

    def attempt() -> None:
        now = clock()
        sample = Sample(now)
        standing.keep(sample, 1)
        sample.verdict = TIMED
        sample.seconds = 0.02
        standing.failures.length = 0

    return attempt


def _evaluation(endpoints: int) -> Call:
    everyone = [Standing(str(n), NOW) for n in range(endpoints)]
    rng = Random(1)
    for standing in everyone:
        for _ in range(64):
            sample = Sample(NOW)
            standing.keep(sample, 1)
            sample.verdict = TIMED
            sample.seconds = rng.lognormvariate(-4, 0.5)
    judge = outlier.Policy(outlier.Config())
    return lambda: judge.evaluate(everyone, NOW + 1.0)


@policy("outlier: evaluation of 4 endpoints, all well")
def _() -> Call:
    return _evaluation(4)


@policy("outlier: evaluation of 200 endpoints, all well")
def _() -> Call:
    return _evaluation(200)


@policy("hedge: delay and learn")
def _() -> Call:
    judge, clock = hedge.Policy(hedge.Config()), ticking()
    rng = Random(1)
    seconds = cycle([rng.lognormvariate(-4, 0.5) for _ in range(997)]).__next__

    def attempt() -> None:
        now = clock()
        judge.delay(500, now)
        judge.learn(500, seconds(), now)

    for _ in range(200):
        attempt()
    return attempt


if __name__ == "__main__":
    main()
