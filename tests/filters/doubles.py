"""The seams of the chains, held by a test: a clock, a request body, a downstream, an exchange."""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, cast

from filters.api import Exchange, Request
from gateway.fields import field

if TYPE_CHECKING:
    from filters.seams import Body, Downstream


class Timer:
    def __init__(self, when: float, callback: Callable[[], object]) -> None:
        self.when = when
        self.callback = callback
        self.cancelled = False

    def cancel(self) -> None:
        self.cancelled = True


class HandClock:
    """Time moves when the test says so; due timers fire in their order."""

    def __init__(self, now: float = 1000.0) -> None:
        self.time = now
        self.timers: list[Timer] = []

    def now(self) -> float:
        return self.time

    def call_at(self, when: float, callback: Callable[[], object]) -> Timer:
        timer = Timer(when, callback)
        self.timers.append(timer)
        return timer

    def advance(self, seconds: float) -> None:
        self.time += seconds
        due = sorted((t for t in self.timers if t.when <= self.time), key=lambda t: t.when)
        self.timers = [t for t in self.timers if t.when > self.time]
        for timer in due:
            if not timer.cancelled:
                timer.callback()


class WholeBody:
    complete = True

    def __init__(self, data: bytes | None = b"{}", *, replayable: bool = True) -> None:
        self.data = data
        self.replayable = replayable

    def peek(self) -> bytes | None:
        return self.data

    def hold(self) -> bool:
        return self.replayable and self.data is not None

    def fingerprint(self) -> bytes | None:
        return None if self.data is None else hashlib.sha256(self.data).digest()


class Client:
    committed = False


def exchange(
    method: bytes = b"POST",
    target: bytes = b"/v1/chat/completions",
    headers: dict[bytes, bytes] | None = None,
    body: WholeBody | None = None,
    *,
    arrived: float = 1000.0,
) -> Exchange:
    index = headers or {}
    request = Request(
        method, target, 1, [field(*each) for each in index.items()], index, b"model", 2
    )
    return Exchange(
        request,
        cast("Body", body or WholeBody()),
        cast("Downstream", cast("Any", Client())),
        client="127.0.0.1",
        trusted=True,
        secure=False,
        arrived=arrived,
    )
