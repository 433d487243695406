"""What the demo shows: a live table in a terminal, a line now and then anywhere else.

Everything comes from one ``Scene``: the servers' own state, the gateway's opinion of them, and
what the callers got. Building it costs about a millisecond, four times a second.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from rich.console import Group
from rich.table import Table
from rich.text import Text

from gateway.demo_load import Load, Record, quantile
from gateway.demo_servers import Fault, ModelServer

if TYPE_CHECKING:
    from rich.console import RenderableType

    from filters.admission import Gate
    from gateway.endpoint import Endpoint
    from gateway.server import Server

COLORS = {Fault.NONE: "green", Fault.SLOW: "yellow", Fault.DEAD: "red", Fault.REFUSING: "magenta"}


@dataclass(frozen=True, slots=True)
class Scene:
    """Everything there is to look at. ``story`` is the sentence on what happens now."""

    servers: list[ModelServer]
    gateway: Server
    load: Load
    where: str
    story: str
    now: float

    def endpoint(self, server: ModelServer) -> Endpoint:
        return self.gateway.memberships["models"].cluster.endpoints[f"127.0.0.1:{server.port}"]

    @property
    def failed_attempts(self) -> int:
        return sum(self.endpoint(each).failed for each in self.servers)

    @property
    def retries(self) -> int:
        return sum(each.retries for each in self.gateway.wiring.retries.values())

    @property
    def refused_retries(self) -> int:
        return sum(each.refused for each in self.gateway.wiring.retries.values())

    @property
    def budget(self) -> float:
        return sum(each.balance(self.now) for each in self.gateway.wiring.budgets.values())

    @property
    def ejections(self) -> int:
        return sum(self.gateway.memberships["models"].cluster.outlier.ejections.values())

    @property
    def gate(self) -> Gate:
        return self.gateway.wiring.admissions["demo"]


def screen(scene: Scene) -> RenderableType:
    """The live picture."""
    return Group(
        Text(scene.where, style="dim"),
        _servers(scene),
        *_reasons(scene),
        _callers(scene),
        Text(scene.story, "bold"),
    )


def _servers(scene: Scene) -> Table:
    table = Table(expand=False)
    for heading in ("model server", "is now", "the gateway sees", "in flight", "latency"):
        table.add_column(heading)
    table.add_column("attempts", justify="right")
    table.add_column("failed", justify="right")
    for server in scene.servers:
        endpoint = scene.endpoint(server)
        table.add_row(
            server.name,
            Text(server.fault.value, COLORS[server.fault]),
            Text(endpoint.state, "green" if endpoint.state == "healthy" else "red"),
            str(endpoint.active),
            f"{endpoint.latency(scene.now) * 1000:.0f} ms",
            str(endpoint.served),
            str(endpoint.failed),
        )
    return table


def _reasons(scene: Scene) -> list[Text]:
    """Why servers get no requests now, in the gateway's own words."""
    out = [(each.name, scene.endpoint(each)) for each in scene.servers]
    return [
        Text(f"{name} is {endpoint.state}: {endpoint.why}", "red", no_wrap=True)
        for name, endpoint in out
        if endpoint.state != "healthy"
    ]


def _callers(scene: Scene) -> Table:
    load = scene.load
    recent = load.recent(scene.now)
    table = Table.grid(padding=(0, 3))
    rows = (
        ("callers, last 3 s", f"{_share(recent)} answered", _latencies(recent)),
        ("since the start", f"{load.requests} requests", f"{load.failed} failed"),
        ("failed attempts", f"{scene.failed_attempts} at the servers", _rescued(load)),
        ("retries", f"{scene.retries} made", _budget(scene)),
        ("limit", f"{scene.gate.limit.value}, {scene.gate.in_flight:g} in flight", _queue(scene)),
        ("ejections", f"{scene.ejections}", ""),
    )
    for row in rows:
        table.add_row(*row)
    return table


def line(scene: Scene, seconds: float) -> str:
    """The same in one line, for a log."""
    servers = "  ".join(
        f"{each.name} {each.fault.value} ({_seen(scene.endpoint(each))})" for each in scene.servers
    )
    recent = scene.load.recent(scene.now)
    return (
        f"{seconds:5.1f} s  {_share(recent)} answered, {_latencies(recent)}, "
        f"{scene.retries} retries, {scene.ejections} ejections | {servers} | {scene.story}"
    )


def summary(scene: Scene) -> str:
    """What came of it all."""
    load = scene.load
    records = list(load.records)
    seen = ", ".join(f"{count} x {what}" for what, count in sorted(load.failures.items()))
    lines = [
        f"requests            {load.requests}",
        f"failed attempts     {scene.failed_attempts} at the model servers",
        f"retries             {scene.retries} made, {scene.refused_retries} refused by the budget",
        f"rescued by a retry  {load.rescued}",
        f"ejections           {scene.ejections}",
        f"seen by callers     {load.failed} failures" + (f" ({seen})" if seen else ""),
        f"first byte          {_latencies(records)}",
    ]
    if load.unsent:
        lines.append(f"not sent            {load.unsent}: too many callers were waiting")
    return "\n".join(lines)


def _seen(endpoint: Endpoint) -> str:
    state = endpoint.state
    return f"{endpoint.active} in flight" if state == "healthy" else state


def _queue(scene: Scene) -> str:
    gate = scene.gate
    refused = gate.full + gate.timed_out + sum(gate.shedder.refused) + gate.pushed_out
    return f"{len(gate.queue)} waiting, {refused} refused"


def _share(records: list[Record]) -> str:
    if not records:
        return "nothing yet"
    good = sum(not record.failure for record in records)
    return f"{good / len(records):.1%}"


def _latencies(records: list[Record]) -> str:
    p50, p99 = quantile(records, 0.5), quantile(records, 0.99)
    return f"p50 {p50 * 1000:.0f} ms, p99 {p99 * 1000:.0f} ms"


def _rescued(load: Load) -> str:
    return f"{load.rescued} requests rescued by a retry"


def _budget(scene: Scene) -> str:
    return f"{scene.refused_retries} refused by the budget, {scene.budget:.0f} left in it"
