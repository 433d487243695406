"""``tailrace top``: what the dashboard shows, in a terminal.

Asks ``/dashboard.json`` once a second with the standard library's client, so that looking at a
gateway over ssh needs nothing but the gateway's own installation, and starts at once.
"""

from __future__ import annotations

import http.client
import json
import re
import socket
import ssl
import time
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from rich.console import Console, Group
from rich.live import Live
from rich.table import Table
from rich.text import Text

INTERVAL_S = 1.0
TIMEOUT_S = 5.0
EVENTS = 8
LARGEST = 16 * 1024 * 1024
STYLES = {"good": "green", "warn": "yellow", "bad": "bold red", "info": "dim"}
MARKS = {"good": "✓", "warn": "▲", "bad": "✕", "info": "·"}
_CONTROL = re.compile(r"[\x00-\x1f\x7f-\x9f\u202a-\u202e\u2066-\u2069]")
BARS = " ▁▂▃▄▅▆▇█"


class UnixConnection(http.client.HTTPConnection):
    """To a listener that is a socket file."""

    def __init__(self, path: str) -> None:
        super().__init__("localhost", timeout=TIMEOUT_S)
        self._path = path

    def connect(self) -> None:
        self.sock = socket.socket(socket.AF_UNIX)
        self.sock.settimeout(TIMEOUT_S)
        self.sock.connect(self._path)


class Unanswered(Exception):
    """Nobody is there, or does not want to tell. The message is for the operator."""


def connection(admin: str) -> http.client.HTTPConnection:
    """To an admin listener: ``http://host:port``, ``host:port`` or ``unix:PATH``. Raises
    Unanswered for what is none of these."""
    if admin.startswith("unix:"):
        return UnixConnection(admin.removeprefix("unix:"))
    try:
        parts = urlsplit(admin if "://" in admin else f"http://{admin}")
        if parts.scheme not in ("http", "https") or not parts.hostname:
            raise ValueError("not the address of an admin listener")
        port = parts.port or 9901
    except ValueError as error:
        raise Unanswered(f"{admin}: {error}") from None
    if parts.scheme == "https":
        secured = ssl.create_default_context()
        return http.client.HTTPSConnection(parts.hostname, port, timeout=TIMEOUT_S, context=secured)
    return http.client.HTTPConnection(parts.hostname, port, timeout=TIMEOUT_S)


def ask(admin: str, token: str | None) -> dict[str, Any]:
    """What the gateway shows now. Raises Unanswered."""
    made = connection(admin)
    headers = {} if token is None else {"Authorization": f"Bearer {token}"}
    try:
        made.request("GET", "/dashboard.json", headers=headers)
        answer = made.getresponse()
        body = answer.read(LARGEST)
        if answer.status == 401:
            raise Unanswered(f"{admin} asks for its admin.token: name its file with --token")
        if answer.status != 200:
            raise Unanswered(f"{admin} answers {answer.status}")
        told = _clean(json.loads(body))
        if not isinstance(told, dict) or "headline" not in told:
            raise Unanswered(f"{admin} is no admin listener of tailrace")
        return told
    except (OSError, http.client.HTTPException, ValueError) as error:
        raise Unanswered(f"{admin} does not answer: {error}") from None
    finally:
        made.close()


def _clean(told: Any) -> Any:
    """The same without control characters, which would speak to the terminal."""
    if isinstance(told, str):
        return _CONTROL.sub("?", told)
    if isinstance(told, dict):
        return {key: _clean(each) for key, each in told.items()}
    return [_clean(each) for each in told] if isinstance(told, list) else told


def run(admin: str, token_file: Path | None, once: bool) -> int:
    """Watch until Ctrl-C. Exit codes: 0, 1 if the gateway did not answer at the first look."""
    console = Console()
    try:
        token = None if token_file is None else token_file.read_text().strip()
        first = ask(admin, token)
    except (Unanswered, OSError) as error:
        console.print(Text(str(error)), style="bold red")
        return 1
    if once:
        console.print(screen(first, admin))
        return 0
    try:
        with Live(screen(first, admin), console=console, screen=console.is_terminal,
                  auto_refresh=False) as live:  # fmt: skip
            while True:
                time.sleep(INTERVAL_S)
                live.update(_next(admin, token), refresh=True)
    except KeyboardInterrupt:
        return 0


def _next(admin: str, token: str | None) -> Group | Text:
    try:
        return screen(ask(admin, token), admin)
    except Unanswered as error:
        return Text(f"✕ {error}", style="bold red")


# -- the picture -----------------------------------------------------------------------------------


def screen(told: dict[str, Any], admin: str) -> Group:
    """Everything at a glance. All text comes as ``Text``: names may look like rich's markup."""
    state, recent = told["state"], told["recent"]
    config = state["config"]
    top = Text(f"tailrace {state['version']}  {admin}  config {config['hash']}", style="dim")
    lines = [Text(f"{MARKS[each['level']]} {each['text']}", style=STYLES[each["level"]])
             for each in told["headline"]]  # fmt: skip
    return Group(
        top,
        *lines,
        Text(),
        _numbers(recent, told["samples"]),
        Text(),
        _endpoints(state["clusters"]),
        Text(),
        _routes(state),
        Text(),
        *[_event(each) for each in told["events"][-EVENTS:][::-1]],
    )


def _numbers(recent: dict[str, Any], samples: list[dict[str, Any]]) -> Table:
    counts = {key: recent.get(key, 0) for key in ("good", "client", "refused", "failed")}
    ended, seconds = sum(counts.values()), recent.get("seconds", 1.0) or 1.0
    last = samples[-1] if samples else {}
    grid = Table.grid(padding=(0, 3))
    rates = [sum(each.get(key, 0) for key in counts) / each.get("seconds", 1.0) for each in samples]
    refused = recent.get("reasons", {})
    grid.add_row(
        Text(f"{ended / seconds:,.1f} requests/s"),
        Text(f"{_share(counts['good'], ended)} answered well"),
        Text(f"{_share(counts['refused'], ended)} refused", _style(counts["refused"], "yellow")),
        Text(f"{_share(counts['failed'], ended)} failed", _style(counts["failed"], "bold red")),
        Text(f"{last.get('in_flight', 0)} in flight, {last.get('waiting', 0)} waiting"),
    )
    grid.add_row(
        Text(bars(rates[-60:]), style="blue"),
        Text(f"first byte {_times(recent.get('first'))}"),
        Text(f"total {_times(recent.get('total'))}"),
        Text(", ".join(f"{name} {count}" for name, count in list(refused.items())[:3])),
    )
    return grid


def bars(values: list[float]) -> str:
    """A line of little bars, the highest value being the highest bar."""
    most = max(values, default=0.0)
    if most <= 0:
        return BARS[0] * len(values)
    return "".join(BARS[round(value / most * (len(BARS) - 1))] for value in values)


def _endpoints(clusters: list[dict[str, Any]]) -> Table:
    table = _table("endpoint", "state", "why", ">in flight", ">served/s", ">failed/s", ">latency")
    for cluster in clusters:
        for each in cluster["endpoints"]:
            healthy = each["state"] == "healthy"
            style = ("yellow" if each["pushed_back"] else "green") if healthy else "bold red"
            latency = each["latency_ms"]
            table.add_row(
                Text(f"{cluster['name']}  {each['endpoint']}"),
                Text(each["state"], style=style),
                Text(each["why"]),
                Text(str(each["in_flight"])),
                Text(f"{each['rate']:g}"),
                Text(f"{each['failed']:g}", _style(each["failed"], "bold red")),
                Text("-" if latency is None else _ms(latency)),
            )
    return table


def _routes(state: dict[str, Any]) -> Table:
    table = _table("route", ">req/s", ">refused/s", ">failed/s", ">in flight", ">limit", ">waiting",
                   ">budget", ">retries", ">hedges won/wasted", "limit, why")  # fmt: skip
    for each in state["routes"]:
        hedge = each.get("hedge")
        won = hedge["ends"].get("won", 0) if hedge else 0
        table.add_row(
            Text(each["name"], style="yellow" if each.get("overloaded") else ""),
            Text(f"{each['rate']:g}"),
            Text(f"{each['refused']:g}", _style(each["refused"], "yellow")),
            Text(f"{each['failed']:g}", _style(each["failed"], "bold red")),
            Text(f"{each.get('permits', '-')}"),
            Text(f"{each.get('limit', '-')}"),
            Text(f"{each.get('waiting', '-')}", _style(each.get("waiting"), "yellow")),
            Text(f"{each['budget']['balance']:.0f}" if "budget" in each else "off"),
            Text(f"{each.get('retries', 'off')}"),
            Text(f"{won}/{sum(hedge['ends'].values()) - won}" if hedge else "off"),
            Text(each.get("limit_why", "")),
        )
    return table


def _event(event: dict[str, Any]) -> Text:
    when = time.strftime("%H:%M:%S", time.localtime(event["at"]))
    level = event["level"]
    return Text.assemble((f"{when} ", "dim"), (f"{MARKS[level]} ", STYLES[level]), event["text"])


def _table(*columns: str) -> Table:
    table = Table(box=None, padding=(0, 2, 0, 0), header_style="dim", expand=False)
    for each in columns:
        table.add_column(each.removeprefix(">"), justify="right" if each[0] == ">" else "left")
    return table


def _style(count: Any, style: str) -> str:
    return style if count else ""


def _share(part: int, whole: int) -> str:
    return f"{part / whole:.1%}" if whole else "-"


def _times(found: list[float] | None) -> str:
    return "-" if not found else f"p50 {_ms(found[0])} p99 {_ms(found[-1])}"


def _ms(value: float) -> str:
    return f"{value / 1000:.2g} s" if value >= 1000 else f"{value:.3g} ms"
