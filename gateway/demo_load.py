"""The demo's callers: an open-loop load, which goes on arriving whatever becomes of it.

A closed loop of a few callers would send less while the servers are slow, and so hide what its
users feel. Only the number of callers waiting at one time is bounded.
"""

from __future__ import annotations

import asyncio
from collections import deque
from typing import TYPE_CHECKING, NamedTuple

import aiohttp

if TYPE_CHECKING:
    from random import Random

RATE = 60.0
"""Requests per second: a tenth of one core for the servers, the gateway and the load together."""
WAITING = 300
PATIENCE_S = 10.0
RECENT_S = 3.0
KEPT = 100_000
"""Records from which the quantiles of the whole run are taken; a long run keeps its newest."""


class Record(NamedTuple):
    """One request: when it ended, seconds to the first byte of its answer, and how it went.

    ``failure`` is "" for an answer that came whole, whatever number of ``attempts`` it took.
    """

    ended: float
    seconds: float
    failure: str
    attempts: int


class Load:
    """``requests`` counts every caller that got an end; ``unsent`` those over ``WAITING``."""

    def __init__(self, url: str, rng: Random) -> None:
        self.url = url + "/v1/chat/completions"
        self.requests = 0
        self.rescued = 0
        self.unsent = 0
        self.failures: dict[str, int] = {}
        self.records: deque[Record] = deque(maxlen=KEPT)
        self._rng = rng
        self._tasks: set[asyncio.Task[None]] = set()

    @property
    def failed(self) -> int:
        return sum(self.failures.values())

    async def run(self, stop: asyncio.Event) -> None:
        """Send until ``stop`` is set, then wait for the answers that are still to come."""
        loop = asyncio.get_running_loop()
        timeout = aiohttp.ClientTimeout(total=PATIENCE_S)
        connector = aiohttp.TCPConnector(limit=WAITING)
        async with aiohttp.ClientSession(timeout=timeout, connector=connector) as session:
            due = loop.time()
            while not stop.is_set():
                due += self._rng.expovariate(RATE)
                await asyncio.sleep(due - loop.time())
                if len(self._tasks) >= WAITING:
                    self.unsent += 1
                    continue
                task = loop.create_task(self._ask(session, self._rng.random() < 0.5))
                self._tasks.add(task)
                task.add_done_callback(self._tasks.discard)
            await asyncio.gather(*self._tasks)

    def recent(self, now: float) -> list[Record]:
        """The records of the last ``RECENT_S`` seconds, newest first."""
        found = []
        for record in reversed(self.records):
            if record.ended < now - RECENT_S:
                break
            found.append(record)
        return found

    async def _ask(self, session: aiohttp.ClientSession, stream: bool) -> None:
        clock = asyncio.get_running_loop().time
        began = clock()
        first: float | None = None
        attempts = 1
        failure = ""
        body = {"messages": [{"role": "user", "content": "Tell me."}], "stream": stream}
        try:
            async with session.post(self.url, json=body) as response:
                attempts = int(response.headers.get("x-tailrace-attempts", "1"))
                async for _ in response.content.iter_any():
                    first = clock() if first is None else first
                if response.status != 200:
                    reason = response.headers.get("x-tailrace-reason", "passed on")
                    failure = f"{response.status} {reason}"
        except TimeoutError:
            failure = "the caller gave up"
        except aiohttp.ClientError:
            failure = "stream cut off in its middle" if first is not None else "connection broken"
        now = clock()
        self._end(Record(now, (first or now) - began, failure, attempts))

    def _end(self, record: Record) -> None:
        self.requests += 1
        self.records.append(record)
        if record.failure:
            self.failures[record.failure] = self.failures.get(record.failure, 0) + 1
        elif record.attempts > 1:
            self.rescued += 1


def quantile(records: list[Record], share: float) -> float:
    """Seconds, of the requests that were answered; 0 without any. Nearest rank."""
    times = sorted(record.seconds for record in records if not record.failure)
    return times[min(len(times) - 1, int(share * len(times)))] if times else 0.0
