"""What the dashboard is fed with: ten minutes of samples, events, and a stream for whoever looks.

One timer a second reads counters, whether or not anybody looks, so that the past is there when an
operator opens the page. Everything else is made only while somebody subscribes, and encoded once
for all of them. A subscriber that does not keep up is dropped; it will come back and ask anew.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections import deque
from collections.abc import Callable
from itertools import islice
from typing import TYPE_CHECKING, Any

import msgspec

from gateway import admin_views
from gateway.dashboard_sample import RECENT, SECONDS, Sample, Sampler, together
from gateway.dashboard_state import state
from gateway.events import Events
from gateway.headline import headline

if TYPE_CHECKING:
    from gateway.server import Server

SUBSCRIBERS = 16
BACKLOG = 8
"""Messages, that is seconds, that a subscriber may lag behind."""
INTERVAL_S = 1.0
NOTABLE = 60
"""Exchanges of the recorder that a new subscriber is told of."""
RATED = 1000
"""Endpoints whose rates are followed."""

log = logging.getLogger("tailrace")
_encode = msgspec.json.Encoder().encode


class Rates:
    """How much each endpoint serves, from its counters of the last ``RECENT`` seconds."""

    def __init__(self) -> None:
        self._seen: deque[tuple[float, dict[tuple[str, str], tuple[int, int]]]] = deque(
            maxlen=RECENT + 1
        )

    def look(self, server: Server, now: float) -> None:
        """O(endpoints), 0.3 us each."""
        counts = {
            (cluster, each.name): (each.served, each.failed)
            for cluster, membership in server.memberships.items()
            for each in membership.cluster.endpoints.values()
        }
        if len(counts) > RATED:
            counts = dict(islice(counts.items(), RATED))
        self._seen.append((now, counts))

    def of(self, key: tuple[str, str]) -> tuple[float, float]:
        """(served, failed) per second."""
        if len(self._seen) < 2:
            return 0.0, 0.0
        (began, before), (ended, after) = self._seen[0], self._seen[-1]
        old, new, span = before.get(key, (0, 0)), after.get(key), ended - began
        if new is None or span <= 0:
            return 0.0, 0.0
        return tuple(round(max(0, n - o) / span, 2) for n, o in zip(new, old, strict=True))  # type: ignore[return-value]


class Subscriber:
    """One who looks. ``dropped`` is called when it has fallen too far behind."""

    __slots__ = ("dropped", "messages")

    def __init__(self, dropped: Callable[[], object]) -> None:
        self.dropped = dropped
        self.messages: asyncio.Queue[bytes | None] = asyncio.Queue(BACKLOG)


class Feed:
    """One for each server that has an admin listener. ``tick`` is what the timer does: about
    0.1 ms, and some 10 us for each busy route."""

    def __init__(self, server: Server) -> None:
        self._server = server
        self._sampler = Sampler(server.telemetry.metrics)
        self._rates = Rates()
        self._subscribers: list[Subscriber] = []
        self._last = server.clock.now()
        self._before: tuple[int, int, int] = (0, 0, 0)
        self._faults = 0
        self._hashed: tuple[object, str] = (None, "")
        self.closed = False
        self.samples: deque[Sample] = deque(maxlen=SECONDS)
        self.events = Events()
        self.events.look(server, self._last, time.time())
        self._sent_events = self.events.last
        self._sent_notable = 0

    async def run(self) -> None:
        """Until cancelled. A fault costs one sample, not the gateway."""
        while True:
            await asyncio.sleep(INTERVAL_S)
            try:
                self.tick(self._server.clock.now(), time.time())
            except Exception:
                if not self._faults:
                    log.exception("the dashboard has no sample of this second")
                self._faults += 1

    def tick(self, now: float, wall: float) -> None:
        """Take one sample; tell subscribers, if there are any."""
        server = self._server
        sample = self._sampler.sample(wall, max(1e-3, now - self._last))
        self._last = now
        self._filters(sample)
        self._rates.look(server, now)
        self.samples.append(sample)
        self.events.look(server, now, wall)
        server.telemetry.recorder.look(server.telemetry.metrics, now)
        if self._subscribers:
            self._publish(sample)

    def _filters(self, sample: Sample) -> None:
        """What filters count themselves. O(routes)."""
        retries = won = lost = 0
        for parts in self._server.wiring.filters.values():
            if parts.retry is not None:
                retries += parts.retry.retries
            if parts.hedge is not None:
                won += parts.hedge.won
                lost += sum(parts.hedge.ends.values()) - parts.hedge.won
            if parts.gate is not None:
                sample.waiting += len(parts.gate.queue)
        before, self._before = self._before, (retries, won, lost)
        sample.retries = max(0, retries - before[0])
        sample.hedges = (max(0, won - before[1]), max(0, lost - before[2]))

    # -- those who look --------------------------------------------------------------------------

    def recent(self) -> Sample:
        """The last ``RECENT`` seconds together."""
        count = len(self.samples)
        return together(islice(self.samples, max(0, count - RECENT), count))

    def whole(self) -> dict[str, Any]:
        """Everything that a page needs to begin with. About 1 ms, and 180 KB at most."""
        return {
            **self._now(),
            "samples": list(self.samples),
            "events": list(self.events.all),
            "notable": self._server.telemetry.recorder.latest(NOTABLE),
        }

    def _now(self) -> dict[str, Any]:
        recent = self.recent()
        shown = state(self._server, self._sampler, self._rates, self._digest())
        lines = [each._asdict() for each in headline(shown, recent)]
        return {"state": shown, "recent": recent, "headline": lines}

    def _digest(self) -> str:
        """The hash of ``/config``. About 1 ms, so once for each configuration in force."""
        config, digest = self._hashed
        if config is not self._server.config:
            config = self._server.config
            digest = str(admin_views.configuration(self._server)["hash"])
            self._hashed = (config, digest)
        return digest

    def _publish(self, sample: Sample) -> None:
        recorder = self._server.telemetry.recorder
        told = self._now()
        told["sample"] = sample
        told["events"] = self.events.after(self._sent_events)
        told["notable"] = recorder.after(self._sent_notable, NOTABLE)
        self._sent_events, self._sent_notable = self.events.last, recorder.last
        message = event("tick", told)
        for each in list(self._subscribers):
            try:
                each.messages.put_nowait(message)
            except asyncio.QueueFull:
                self._subscribers.remove(each)
                each.dropped()

    def subscribe(self, dropped: Callable[[], object]) -> Subscriber | None:
        """None if there are too many already. The first message is everything."""
        if len(self._subscribers) >= SUBSCRIBERS or self.closed:
            return None
        if not self._subscribers:  # what happened meanwhile is in the first message
            self._sent_events = self.events.last
            self._sent_notable = self._server.telemetry.recorder.last
        made = Subscriber(dropped)
        made.messages.put_nowait(event("whole", self.whole()))
        self._subscribers.append(made)
        return made

    def unsubscribe(self, one: Subscriber) -> None:
        if one in self._subscribers:
            self._subscribers.remove(one)

    @property
    def subscribers(self) -> int:
        return len(self._subscribers)

    def close(self) -> None:
        """Let every stream end, or the admin listener would wait for them."""
        self.closed = True
        for each in self._subscribers:
            if not each.messages.full():
                each.messages.put_nowait(None)
            else:
                each.dropped()
        self._subscribers.clear()


def event(name: str, data: object) -> bytes:
    """One server-sent event. JSON has no line ends of its own, so one data line is enough."""
    return b"event: %b\ndata: %b\n\n" % (name.encode(), _encode(data))
