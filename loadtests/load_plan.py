"""What an open-loop load is: kinds of clients, and when each of their requests is due.

Pure: times are seconds since the start of the load, randomness comes from a ``Random``. Open
loop: a request is due when its time has come, however the others fare, because that is what
makes overload overload (a closed loop slows down with its server and so never shows it).
"""

from collections.abc import Iterator
from random import Random

import msgspec


class Flow(msgspec.Struct, frozen=True):
    """One kind of client.

    ``phases``: (seconds, arrivals per second), one after the other, Poisson; ``once``: so many
    more at time 0. ``patience``: the seconds after which a client leaves, uniform between the two,
    counted from when its request was due. A request that fails or whose client leaves is sent
    again up to ``retries`` times, each ``backoff`` seconds (times 0.5 to 1.5) later, whatever
    Retry-After says: the clients that make metastable failures. ``tokens`` asks for a stream of
    between so many tokens.
    """

    name: str
    phases: tuple[tuple[float, float], ...]
    once: int = 0
    headers: tuple[tuple[str, str], ...] = ()
    patience: tuple[float, float] = (5.0, 5.0)
    retries: int = 0
    backoff: float = 0.1
    tokens: tuple[int, int] | None = None
    path: str = "/v1/chat/completions"

    @property
    def seconds(self) -> float:
        return sum(seconds for seconds, _ in self.phases)


class Load(msgspec.Struct, frozen=True):
    """All of it. ``targets`` are ports on loopback, taken in turn; ``warm`` connections to each
    are opened before the start; ``connections`` is the most that are ever open."""

    targets: tuple[int, ...]
    flows: tuple[Flow, ...]
    seed: int = 1
    warm: int = 32
    connections: int = 18_000

    @property
    def seconds(self) -> float:
        """Until the last request is due."""
        return max(flow.seconds for flow in self.flows)

    @property
    def longest(self) -> float:
        """Until the last client has left, if nobody ever answered."""
        return max(
            flow.seconds + (flow.patience[1] + 1.5 * flow.backoff) * (1 + flow.retries)
            for flow in self.flows
        )


def arrivals(flow: Flow, rng: Random) -> Iterator[float]:
    """When the requests of ``flow`` are due, in order. O(1) each."""
    for _ in range(flow.once):
        yield 0.0
    start = 0.0
    for seconds, rate in flow.phases:
        end = start + seconds
        # The exponential distribution has no memory: a phase may begin its first gap at its start.
        at = start + rng.expovariate(rate) if rate > 0 else end
        while at < end:
            yield at
            at += rng.expovariate(rate)
        start = end


def schedule(load: Load) -> list[tuple[float, int]]:
    """(due, index of its flow) of every request, in order of time. A flow's own times depend on
    the seed and its index alone, not on what else runs. O(n log n)."""
    due = [
        (at, index)
        for index, flow in enumerate(load.flows)
        for at in arrivals(flow, Random(f"{load.seed}/{index}"))
    ]
    due.sort()
    return due
