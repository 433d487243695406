"""A cluster in virtual time whose endpoints answer as the test says."""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Callable
from random import Random
from types import SimpleNamespace
from typing import Any, cast

from filters.api import Attempt, Exchange, Headers, Kind, Outcome, Reason
from filters.outlier import Config
from gateway import config
from gateway.balancer import balancer
from gateway.cluster import Cluster
from gateway.endpoint import Endpoint, locate
from tests.filters.doubles import HandClock, WholeBody, exchange


class Answer:
    """A head, and the first byte of a body unless ``waits``."""

    def __init__(self, now: float, headers: Headers, *, waits: bool) -> None:
        self.first_byte = None if waits else now
        self.headers = headers

    def discard(self) -> None: ...


class Pool:
    """Answers as ``script`` says, at once; or keeps the attempt until ``gate`` is opened."""

    idle = open = 0

    def __init__(self, clock: HandClock) -> None:
        self.clock = clock
        self.script: Callable[[], Outcome] = lambda: self.answer(200)
        self.gate: asyncio.Event | None = None
        self.sent = 0

    def answer(self, status: int, headers: Headers | None = None, *, waits: bool = False) -> Any:
        answer = cast("Any", Answer(self.clock.now(), headers or [], waits=waits))
        return Outcome(Kind.OK, status, None, answer=answer)

    async def send(self, attempt: Attempt) -> Outcome:
        self.sent += 1
        if self.gate is not None:
            await self.gate.wait()
        return self.script()

    def retire(self) -> None: ...


class World:
    """A cluster of ``n`` endpoints, each with a scripted pool."""

    def __init__(self, n: int, outlier: Config | None = Config(), **balance: Any) -> None:  # noqa: B008
        self.clock = HandClock()
        settings = config.Cluster(
            endpoints=(config.Endpoint(url="http://e0"),),
            balance=config.Balance(**balance),
            outlier=outlier,
        )
        self.cluster = self.make(settings)
        self.pools: list[Pool] = []
        self.endpoints: list[Endpoint] = []
        for k in range(n):
            loop = cast("Any", None)
            self.endpoints.append(Endpoint(locate(f"http://e{k}"), 1.0, settings, self.clock, loop))
            self.pools.append(Pool(self.clock))
            self.endpoints[-1].pool = cast("Any", self.pools[-1])
        self.cluster.members({each.name: each for each in self.endpoints})

    def make(self, settings: config.Cluster) -> Cluster:
        return Cluster("c", settings, balancer(settings.balance), self.clock, Random(1))

    @staticmethod
    def exchange(*, safe: bool = True, body: WholeBody | None = None) -> Exchange:
        made = exchange(body=body)
        made.route = SimpleNamespace(replayable=lambda _: safe)
        return made

    async def ask(self, tried: tuple[str, ...] = (), *, safe: bool = True) -> Outcome:
        """One exchange's attempt, relayed in full."""
        attempt = Attempt(self.exchange(safe=safe), 1 + len(tried), tried)
        outcome = await self.cluster.attempt(attempt)
        permit, outcome.permit = outcome.permit, None
        if permit is not None:
            permit.release(outcome)
        return outcome

    async def fail(self, k: int, times: int = 5, **outcome: Any) -> None:
        """Let endpoint ``k`` fail so often; the others answer."""
        reason = outcome.pop("reason", Reason.UPSTREAM_RESET)
        self.pools[k].script = lambda: Outcome(Kind.FAILED, 0, reason, **outcome)
        others = tuple(each.name for each in self.endpoints if each is not self.endpoints[k])
        for _ in range(times):
            await self.ask(tried=others)
        self.pools[k].script = lambda: self.pools[k].answer(200)
        self.wait(0)

    async def chosen(self, times: int) -> Counter[str]:
        """Where so many exchanges go."""
        went: Counter[str] = Counter()
        for _ in range(times):
            attempt = Attempt(self.exchange(), 1, ())
            (await self.cluster.attempt(attempt)).discard()
            went[attempt.endpoint] += 1
        return went

    def wait(self, seconds: float) -> None:
        self.clock.advance(seconds)
        self.cluster.look(self.clock.now())


def retry_after(value: bytes) -> Headers:
    return [(b"Retry-After", value)]
