"""What simulated model servers are like, as data: in good health, and what may ail them."""

import math
from dataclasses import dataclass
from random import Random


@dataclass(frozen=True, slots=True)
class Batching:
    """Continuous batching, as vLLM and SGLang do it: up to ``streams`` run at once, and a token of
    each takes ``pace`` seconds when it is alone and ``slowdown`` times that when the batch is
    full, linear between the two, so that more streams always make more tokens per second. Others
    wait in the order of their arrival. A stream has between ``tokens`` tokens, uniform; a piece is
    the first of them, and then ``piece`` together."""

    streams: int = 256
    pace: float = 0.02
    slowdown: float = 3.0
    tokens: tuple[int, int] = (420, 1200)
    piece: int = 20


@dataclass(frozen=True, slots=True)
class Model:
    """A server in good health. ``mean`` and ``sigma`` (of the logarithm) are those of the service
    time in seconds; a slot is held for it, and to the last token of a stream. ``sizes`` in their
    place: so many seconds, each as likely as the others.

    With ``tokens`` > 0 the answer streams: the service time is that to the first token, and the
    others follow ``pace`` seconds apart. ``head_first``: the head comes when the request does, as
    model servers send it for event streams, otherwise with the first byte. ``aborts``: work is
    dropped when its client leaves. With ``limit`` requests in it, the server answers 429 with a
    Retry-After of one second. A body that is ``poison`` crashes the server, ``fuse`` seconds
    after its arrival, for ``restart`` seconds. ``batching`` replaces slots and service times.
    """

    slots: int = 8
    mean: float = 0.020
    sigma: float = 0.5
    sizes: tuple[float, ...] = ()
    tokens: int = 0
    pace: float = 0.005
    head_first: bool = False
    aborts: bool = True
    limit: int | None = None
    poison: bytes | None = None
    fuse: float = 0.005
    restart: float = 0.5
    batching: Batching | None = None

    def seconds(self, rng: Random) -> float:
        """One service time."""
        if self.sizes:
            return rng.choice(self.sizes)
        if self.sigma == 0:
            return self.mean
        return self.mean * math.exp(rng.gauss(-(self.sigma**2) / 2, self.sigma))


@dataclass(frozen=True, slots=True)
class Condition:
    """What ails a server, from one moment on. The default is good health.

    ``refuses``: dead; its connections break and new ones are refused. ``drops``: connections are
    neither made nor refused. ``hangs``: accepts and never answers; ``heads``: but for the head,
    at once. ``status``: not 0, ``share`` of the requests are answered with it after ``after``
    seconds, without taking a slot, with ``retry_after`` if that is set. ``resets``: ``share`` of
    the connections break ``after`` seconds after the whole request. ``slow`` multiplies service
    times and token gaps. ``slots`` replaces the model's. ``stalls_after``: streams stop after so
    many tokens and stay open.
    """

    refuses: bool = False
    drops: bool = False
    hangs: bool = False
    heads: bool = False
    status: int = 0
    resets: bool = False
    share: float = 1.0
    after: float = 0.001
    retry_after: int | None = None
    slow: float = 1.0
    slots: int | None = None
    stalls_after: int | None = None


HEALTHY = Condition()
DEAD = Condition(refuses=True)
FULL = Condition(status=429, retry_after=1, after=0.0)
"""How a server that has a limit of its own answers at it."""
