"""What the settings of filters and ejection say together: contradictions, and what has no effect.

A route's filters are the file's with its own laid over them; what it inherits is judged where it
stands, so that one mistake is one problem. A value that is only the default contradicts nobody:
the effective configuration, in which all of them are written, must load.
"""

from collections.abc import Iterator
from typing import TYPE_CHECKING

from filters.admission import Config as Admission
from filters.budget import Config as Budget
from filters.deadline import Config as Deadline
from filters.outlier import Config as Outlier
from gateway.config import Cluster, Config, Filters
from gateway.config_units import format_unit

if TYPE_CHECKING:
    from gateway.config_convert import Converter
    from gateway.config_nodes import Path

ADMISSION, BUDGET, OUTLIER = Admission(), Budget(), Outlier()


def sections(config: Config) -> Iterator[tuple["Path", Filters]]:
    """The file's filters and each route's own, with where they stand."""
    yield ("filters",), config.filters
    for index, route in enumerate(config.routes):
        yield ("routes", index, "filters"), route.filters


def check_filters(config: Config, found: "Converter") -> None:
    """Add every problem between values to the problems of ``found``."""
    for name, cluster in config.clusters.items():
        _outlier(cluster, _Section(("clusters", name, "outlier"), found))
    for path, filters in sections(config):
        _retry(filters, _Section((*path, "retry"), found))
        _admission(filters, _Section((*path, "admission"), found))
        _budget(filters, _Section((*path, "budget"), found))
        _deadline(filters, _Section((*path, "deadline"), found))
        _load_shed(filters, _Section((*path, "load_shed"), found))
    _hedges(config, found)
    _fixed_limits(config, found)


class _Section:
    """One filter's part of the file; ``clean`` if it could be read without an error."""

    def __init__(self, path: "Path", found: "Converter") -> None:
        self._path = path
        self._found = found
        self.clean = found.clean(path)

    def has(self, *names: str | int) -> bool:
        return (*self._path, *names) in self._found.positions

    def error(self, names: tuple[str | int, ...], message: str, hint: str = "") -> None:
        path = (*self._path, *names)
        self._found.error(path, self._found.mark(path), message, hint)

    def warn(self, names: tuple[str | int, ...], message: str, hint: str = "") -> None:
        self._found.problems.warning(self._found.mark((*self._path, *names)), message, hint)

    def ordered(self, low: str, high: str, values: tuple[float, float], unit: str = "") -> None:
        """An error where ``low`` is more than ``high``, at whichever of the two stands here."""
        if not values[0] > values[1]:
            return
        for name in (low, high):
            if self.has(name):
                one, other = (format_unit(value, unit) for value in values)
                self.error((name,), f"{low} {one} is more than {high} {other}")
                return


def _outlier(cluster: Cluster, section: _Section) -> None:
    outlier = cluster.outlier
    if outlier is None or not section.clean:
        return
    bounds = (outlier.base_ejection, outlier.max_ejection)
    section.ordered("base_ejection", "max_ejection", bounds, "duration")
    if outlier.max_ejected == 0 and section.has("max_ejected"):
        message = "max_ejected is 0: one endpoint of several may be out all the same"
        section.warn(("max_ejected",), message, "outlier: off ejects none")
    if outlier.failure_percent == 0 and section.has("failure_percent"):
        row = outlier.consecutive_failures
        message = f"failure_percent is 0: {row} failures within 10s, however much goes well, eject"
        section.warn(("failure_percent",), message, "off: failures in a row only")
    factor = outlier.latency_factor
    if cluster.balance.policy == "consistent_hash" and factor not in (None, OUTLIER.latency_factor):
        message = "latency_factor has no effect under consistent_hash"
        section.warn(("latency_factor",), message, "its endpoints do not get the same requests")


def _retry(filters: Filters, section: _Section) -> None:
    retry = filters.retry
    if retry is None:
        return
    for index, condition in enumerate(retry.on):
        failure = not isinstance(condition, int) or 400 <= condition <= 599
        if not failure and section.has("on", index):
            message = f"{condition} is no status of a failure"
            section.error(("on", index), message, "from 400 to 599")
    if not retry.on and section.clean and section.has("on"):
        section.warn(("on",), "on is empty: nothing is ever retried", "retry: off says it plainly")
    if retry.idempotent == "always" and section.has("idempotent"):
        message = "idempotent: always repeats requests that change something twice"
        section.warn(("idempotent",), message, "auto repeats what is known to be safe")


def _admission(filters: Filters, section: _Section) -> None:
    admission = filters.admission
    if admission is None or not section.clean:
        return
    if admission.limit != "adaptive":
        for name in ("initial", "min", "max"):
            if section.has(name) and getattr(admission, name) != getattr(ADMISSION, name):
                message = f"{name} has no effect with a fixed limit"
                section.warn((name,), message, "it is for limit: adaptive")
    else:
        section.ordered("min", "max", (admission.min, admission.max))
        inside = admission.min <= admission.initial <= admission.max
        default = admission.initial == ADMISSION.initial
        if not inside and not default and section.has("initial"):
            between = f"from min {admission.min} to max {admission.max}"
            section.error(("initial",), f"initial {admission.initial} is not {between}")
    if admission.queue.timeout == 0 and admission.queue.size and section.has("queue", "timeout"):
        message = "queue.timeout is 0: whoever waits is refused at once"
        section.warn(("queue", "timeout"), message, "size: 0 says the same more cheaply")


def _budget(filters: Filters, section: _Section) -> None:
    budget = filters.budget
    if section.clean and budget.hedges != BUDGET.hedges:
        section.ordered("hedges", "ratio", (budget.hedges, budget.ratio), "share")


def _deadline(filters: Filters, section: _Section) -> None:
    deadline = filters.deadline
    if deadline is None or deadline.default is None or not section.clean:
        return
    if deadline.default > deadline.max and section.has("default"):
        one, other = (format_unit(each, "duration") for each in (deadline.default, deadline.max))
        section.warn(("default",), f"default {one} is more than max {other}, which holds")


def _load_shed(filters: Filters, section: _Section) -> None:
    shed = filters.load_shed
    if shed is None or not section.clean:
        return
    for name, when in (
        ("loop_lag", "always"),
        ("memory", "as it grows"),
        ("files", "as they grow"),
    ):
        if getattr(shed, name) == 0 and section.has(name):
            message = f"{name} is 0: all but critical_plus are refused, {when}"
            section.warn((name,), message, f"{name}: off does not look at it")


def _hedges(config: Config, found: "Converter") -> None:
    """Hedges that can never be. Per route, because that is where filters meet a cluster."""
    for index, route in enumerate(config.routes):
        filters, cluster = route.filters, config.clusters.get(route.cluster or "")
        path: Path = ("routes", index, "filters", "hedge")
        if path not in found.positions:
            path = ("filters", "hedge")
        if filters.hedge is None or cluster is None or not found.clean(path):
            continue
        why = ""
        clocks = filters.deadline or Deadline()
        end = min("first_byte", "max", key=lambda name: getattr(clocks, name))
        seconds: float = getattr(clocks, end)
        if len(cluster.endpoints) == 1 and cluster.endpoints[0].dns is None:
            why = f"the cluster {route.cluster!r} has one endpoint"
        elif filters.retry is not None and filters.retry.idempotent == "never":
            why = "retry.idempotent: never lets nothing be sent twice"
        elif filters.budget.hedges == 0:
            why = "budget.hedges is 0"
        elif filters.hedge.min >= seconds:
            one, other = (format_unit(each, "duration") for each in (filters.hedge.min, seconds))
            why = f"hedge.min {one} is not below deadline.{end} {other}"
        if why:
            found.problems.warning(found.mark(path), f"there will never be a hedge: {why}", "")


def _fixed_limits(config: Config, found: "Converter") -> None:
    """Fixed limits against what they share: several routes the server, and all the connections."""
    at: dict[str, list[tuple[Path, int]]] = {}
    for index, route in enumerate(config.routes):
        admission = route.filters.admission
        path: Path = ("routes", index, "filters", "admission", "limit")
        if path not in found.positions:
            path = ("filters", "admission", "limit")
        if admission is None or admission.limit == "adaptive" or not route.cluster:
            continue
        if found.clean(path):
            at.setdefault(route.cluster, []).append((path, admission.limit))
    for name, limits in at.items():
        cluster = config.clusters.get(name)
        path, total = limits[-1][0], sum(limit for _, limit in limits)
        if len(limits) > 1:
            message = f"{len(limits)} routes with fixed limits lead to {name!r}: {total} in flight"
            hint = "a limit is per route: divide the server's slots among them"
            found.problems.warning(found.mark(path), message, hint)
        if cluster is None or any(each.dns is not None for each in cluster.endpoints):
            continue  # of a name, nobody knows yet how many endpoints it is
        room = cluster.connections.max * len(cluster.endpoints)
        if room and total > room:
            message = f"limit {total} is more than the {room} connections that {name!r} may open"
            hint = "connections.max is per endpoint; above it, requests end as pool_exhausted"
            found.problems.warning(found.mark(path), message, hint)
