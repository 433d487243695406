"""What a run leaves behind: a record of each exchange, calls of several tries, and samples."""

from collections.abc import Iterable
from typing import NamedTuple


class Record(NamedTuple):
    """One exchange as its client saw it. Times in seconds; ``arrived`` since the start of the run,
    ``latency``, ``first_byte`` and the times of ``attempts`` since the arrival.

    ``call`` is the number, within its traffic, of the first try of the same call, and ``tries``
    counts the tries before this one. ``end`` is finished, aborted, left or, if the chain returned
    without an end, none. ``service`` is how long the server that answered worked on it, ``queued``
    how long it waited for a permit. ``retry_after``: whether the answer said when to come back.
    ``attempts``: the endpoints they went to, and when. ``faults`` broke the rules of the seam.
    """

    traffic: str
    call: int
    tries: int
    arrived: float
    end: str
    status: int
    reason: str
    latency: float
    first_byte: float
    service: float
    queued: float
    hedged: bool
    retry_after: bool
    attempts: tuple[tuple[str, float], ...]
    faults: tuple[str, ...]

    @property
    def ok(self) -> bool:
        """Answered in full, and not with a failure."""
        return self.end == "finished" and self.status < 400

    @property
    def refused(self) -> bool:
        """Told to go away, by the gateway or by a server."""
        return self.end == "finished" and self.status in (429, 503)


class Call(NamedTuple):
    """What a client wanted, with all the tries that it took. ``latency`` to the end of the last."""

    arrived: float
    ok: bool
    tries: int
    latency: float


def calls(records: Iterable[Record]) -> list[Call]:
    """The tries put together, in the order of their first arrivals."""
    tries: dict[tuple[str, int], list[Record]] = {}
    for each in records:
        tries.setdefault((each.traffic, each.call), []).append(each)
    made = []
    for one in tries.values():
        first, last = min(one, key=_tries), max(one, key=_tries)
        ended = last.arrived + last.latency
        made.append(Call(first.arrived, last.ok, len(one), ended - first.arrived))
    return sorted(made)


def _tries(record: Record) -> int:
    return record.tries


class Gauge(NamedTuple):
    """Admission of one route: what may be in flight, what is, how many wait, and whether the queue
    stands rather than drains."""

    limit: float
    in_flight: float
    queued: int
    overloaded: bool


class Sample(NamedTuple):
    """How things stood ``at`` this second of the run. ``routes`` with admission, in their order;
    ``states`` of all endpoints; ``servers``: attempts that each got so far, and refused."""

    at: float
    routes: tuple[Gauge, ...]
    states: tuple[str, ...]
    servers: tuple[tuple[int, int], ...]
