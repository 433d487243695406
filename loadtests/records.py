"""What became of every request of an open-loop load, and the figures that are taken from it.

Pure but for the file that carries the records from the generator's process to its parent.
"""

import math
import struct
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from enum import IntEnum
from pathlib import Path
from typing import NamedTuple

import msgspec


class End(IntEnum):
    """How a request ended, as its client saw it."""

    FINISHED = 0
    """Answered to the last byte, whatever the status."""
    LEFT = 1
    """The client's patience was over first."""
    BROKEN = 2
    """The connection ended before the answer did."""
    UNREACHABLE = 3
    """No connection."""


class Record(NamedTuple):
    """One request; a retry is a request of its own, with ``number`` 1, 2, ...

    ``at``: when it was due, seconds since the load's start; ``latency`` from there to its end;
    ``first``: to the first byte of the answer's body, 0 if none came; ``lag``: how late it was
    sent, -1 if it never was. ``service``: the seconds of work that the server says it was, 0 where
    it does not. ``reason`` is the proxy's own code for a refusal.
    """

    at: float
    latency: float
    first: float
    lag: float
    service: float
    status: int
    flow: int
    end: End
    number: int
    retry_after: bool
    reason: str

    @property
    def ok(self) -> bool:
        """Answered in full, and not with a failure."""
        return self.end is End.FINISHED and self.status < 400

    @property
    def refused(self) -> bool:
        """Told no: a complete answer with a failing status."""
        return self.end is End.FINISHED and self.status >= 400

    @property
    def done(self) -> float:
        """When it ended, seconds since the load's start."""
        return self.at + self.latency


class Tape(msgspec.Struct):
    """Everything one generator brought back. ``unsent``: never sent, for want of a connection."""

    flows: list[str]
    cpu_seconds: float
    wall_seconds: float
    peak_connections: int
    unsent: int
    reasons: list[str]
    count: int


_ROW = struct.Struct("<dffffHBBBBB")
_ENDS = tuple(End)
Raw = tuple[float, float, float, float, float, int, int, int, int, int, int]
"""A record as numbers, ``reason`` as an index into ``Tape.reasons``."""


def save(path: Path, tape: Tape, rows: Sequence[Raw]) -> None:
    """One line of JSON, then fixed-size rows: 40 us per thousand requests, not per hundred."""
    with path.open("wb") as file:
        file.write(msgspec.json.encode(tape) + b"\n")
        file.write(b"".join(_ROW.pack(*row) for row in rows))


def load(path: Path) -> tuple[Tape, list[Record]]:
    with path.open("rb") as file:
        tape = msgspec.json.decode(file.readline(), type=Tape)
        rows = file.read()
    reasons = tape.reasons
    return tape, [
        Record(
            at, latency, first, lag, service, status, flow, _ENDS[end], number, bool(ra), reasons[r]
        )
        for at, latency, first, lag, service, status, flow, end, number, ra, r in _ROW.iter_unpack(
            rows
        )
    ]


# -- figures ---------------------------------------------------------------------------------------


def quantile(values: Iterable[float], share: float) -> float:
    """The smallest value that at least ``share`` of all do not exceed; 0 of none. O(n log n)."""
    ordered = sorted(values)
    if not ordered:
        return 0.0
    return ordered[max(0, math.ceil(share * len(ordered) - 1e-9) - 1)]


def due(records: Iterable[Record], since: float, until: float) -> list[Record]:
    """Those that were due in [since, until)."""
    return [each for each in records if since <= each.at < until]


def ended(records: Iterable[Record], since: float, until: float) -> list[Record]:
    """Those that ended in [since, until)."""
    return [each for each in records if since <= each.done < until]


def share(part: Iterable[object], whole: Sequence[object]) -> float:
    """How many of ``whole`` are in ``part``, as a share; 1 of nothing, as nothing is amiss."""
    return sum(1 for _ in part) / len(whole) if whole else 1.0


def useful(records: Iterable[Record], within: float) -> Iterator[Record]:
    """Answered in full within so many seconds of when they were due."""
    return (each for each in records if each.ok and each.latency <= within)


def settled(
    done: Iterable[Record], since: float, until: float, rate: float, span: float = 5.0
) -> float | None:
    """Seconds after ``since`` from which on every ``span`` seconds bring ``rate`` per second.

    ``done`` are the answers that count, by when they ended. In steps of half a second; None if it
    never came to that. O(n).
    """
    step = 0.5
    width = round(span / step)
    counts = [0] * max(0, round((until - since) / step))
    for each in done:
        place = int((each.done - since) // step)
        if 0 <= place < len(counts):
            counts[place] += 1
    last = None
    total = sum(counts[len(counts) - width :]) if len(counts) >= width else 0
    for start in range(len(counts) - width, -1, -1):
        if start < len(counts) - width:
            total += counts[start] - counts[start + width]
        if total < rate * span:
            break
        last = start * step
    return last


def failures(records: Iterable[Record]) -> dict[str, int]:
    """Why requests were not answered well, most frequent first: reason, else status or end."""
    counts = Counter(
        each.reason or (f"status {each.status}" if each.refused else each.end.name.lower())
        for each in records
        if not each.ok
    )
    return dict(counts.most_common())
