"""What a scenario on real processes is: a load, events, a configuration, and claims about it."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

from loadtests.faults import HEALTHY, Condition
from loadtests.load_plan import Flow
from loadtests.records import Record, Tape, quantile

SLOTS = 8
MEAN = 0.020
SIGMA = 0.5
CAPACITY = SLOTS / MEAN
"""Requests per second of one endpoint."""
USEFUL = 10 * MEAN
"""Seconds within which an answer is of use."""
SETTLE = 10.0
"""Seconds after a change from which on most rows count."""
LATE = 0.020
"""Seconds of lag at p99 above which the generator, and not what it measures, was the limit."""


@dataclass(frozen=True)
class Event:
    """At ``at`` seconds, endpoint ``endpoint`` is killed, started again, or gets a condition."""

    at: float
    endpoint: int
    what: Condition | Literal["kill", "start"] = HEALTHY


@dataclass(frozen=True)
class Claim:
    """One figure. ``bound`` None: told, not judged. ``value`` None: there was nothing to measure.
    ``sign`` says on which side of the bound the value must be."""

    text: str
    value: float | None
    sign: Literal[">=", "<=", ""] = ""
    bound: float | None = None
    unit: str = ""

    @property
    def holds(self) -> bool | None:
        if self.value is None or self.bound is None:
            return None
        return self.value >= self.bound if self.sign == ">=" else self.value <= self.bound

    def __str__(self) -> str:
        demanded = "" if self.bound is None else f" ({self.sign} {shown(self.bound, self.unit)})"
        return f"{self.text}: {shown(self.value, self.unit)}{demanded}"


@dataclass(frozen=True)
class Sample:
    """A look at everybody, ``at`` seconds into the load. None: did not answer."""

    at: float
    servers: tuple[dict[str, float] | None, ...]
    clusters: Any = None
    filters: Any = None


@dataclass(frozen=True)
class Seen:
    """All that one run has shown. ``rest`` is a sample after everything should have ended;
    ``cpu`` the CPU seconds of generator, proxy and servers; ``logged`` reasons in the log."""

    subject: str
    tape: Tape
    records: list[Record]
    samples: list[Sample]
    rest: Sample
    cpu: Mapping[str, float]
    logged: Mapping[str, int] = field(default_factory=dict)

    def of(self, *flows: str) -> list[Record]:
        """The records of these flows."""
        wanted = {index for index, name in enumerate(self.tape.flows) if name in flows}
        return [each for each in self.records if each.flow in wanted]

    def lag(self) -> float:
        """How late the generator sent, at p99."""
        return quantile((each.lag for each in self.records if each.lag >= 0), 0.99)

    def valid(self) -> bool:
        return self.lag() <= LATE


Judge = Callable[[Seen], list[Claim]]


@dataclass(frozen=True)
class Run:
    """One run of one row, against each of ``subjects``. ``server``: options of every stand-in;
    ``filters`` and ``cluster``: of tailrace's configuration, as in the file; ``every``: seconds
    between two looks at everybody; ``warm``: connections that are open before the start."""

    row: int
    name: str
    flows: tuple[Flow, ...]
    judge: Judge
    endpoints: int = 1
    server: tuple[str, ...] = ("--service-mean", f"{MEAN}", "--service-sigma", f"{SIGMA}")
    slots: int = SLOTS
    events: tuple[Event, ...] = ()
    filters: Mapping[str, object] = field(default_factory=dict)
    cluster: Mapping[str, object] = field(default_factory=dict)
    subjects: tuple[str, ...] = ("none", "envoy", "tailrace")
    every: float = 0.25
    warm: int = 32

    @property
    def seconds(self) -> float:
        return max(flow.seconds for flow in self.flows)


def shown(value: float | None, unit: str) -> str:
    """A figure as people read it: ``%`` is a share, ``ms`` are seconds in thousands."""
    if value is None:
        return "not measured"
    if unit == "%":
        return f"{100 * value:.4g} %"
    if unit == "ms":
        return f"{1000 * value:.4g} ms"
    return f"{value:.4g}{' ' if unit else ''}{unit}"
