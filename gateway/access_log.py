"""One line for each exchange, in JSON or text; and for each refusal that never became one.

The query of a target is left out, because people put keys there. Every value that a client can
choose is escaped to printable ASCII in both formats: a line break would forge a line, an escape
sequence would run in the operator's terminal (CVE-2009-4487 and its kin).
"""

from __future__ import annotations

import re
from time import gmtime, strftime, time
from typing import TYPE_CHECKING, Any

from filters.api import Priority
from gateway import trace_context

if TYPE_CHECKING:
    from random import Random

    from filters.api import Exchange, Reject
    from gateway import config
    from gateway.log_writer import LogWriter

_UNSAFE = re.compile(r"[^ !#-\[\]-~]")
CRITICAL = Priority.CRITICAL
"""The class of an exchange that says nothing about itself, which goes without saying."""
LONGEST = 1024
"""Bytes of one value; what is longer is cut."""
_CACHED_BYTES = 256
_CACHED = 2048


class AccessLog:
    """Formats lines and hands them to ``writer``. About 2 us for each exchange."""

    def __init__(self, settings: config.AccessLog, writer: LogWriter, rng: Random) -> None:
        self._json = settings.format == "json"
        self._share = settings.sample
        self._rng = rng
        self.writer = writer
        self._second = 0
        self._date = ""
        self._stamp = ""
        self._stamp_until = 0.0
        self._escaped: dict[bytes, str] = {}
        self._where: dict[tuple[str, str, str], str] = {}

    def exchange(
        self, exchange: Exchange, status: int, detail: str, seconds: float, first: float | None
    ) -> None:
        """Log an exchange that is over. ``seconds`` and ``first`` (byte) count from its arrival.

        Failures (a reason, or status 500 and above) are logged whatever the sample.
        """
        reason = exchange.reason
        if self._share < 1.0 and reason is None and status < 500:  # noqa: SIM102  the order is the cost
            if self._rng.random() >= self._share:
                return
        more = "" if reason is None else self._reason(reason.value, detail)
        request = exchange.request
        index = request.index
        if exchange.span is not None:
            more += self._pair("trace_id", exchange.span.trace_id)
        elif b"traceparent" in index:
            parent = trace_context.parse(index[b"traceparent"])
            if parent is not None:
                more += self._pair("trace_id", parent.trace_id)
        acted = exchange.queued or exchange.hedged or exchange.shadowed is not None
        if acted or exchange.priority is not CRITICAL:
            more += self._filtered(exchange)
        told, route = request.told, exchange.route
        if told is not None and told.log is self:
            who, agent = told.who, told.agent
        else:
            who, agent = self._who(exchange)
            if told is not None:
                told.log, told.who, told.agent = self, who, agent
        place = (route.name, route.cluster, exchange.endpoint)
        where = self._where.get(place) or self._place(place)
        now = exchange.arrived + seconds
        stamp = self._stamp if now < self._stamp_until else self._time(now)
        body: Any = exchange.body
        downstream: Any = exchange.downstream
        if self._json:
            line = (
                f'{{"time":"{stamp}","request_id":"{exchange.request_id.decode()}"{who}{status}'
                f'{where}{exchange.attempts},"duration_ms":{seconds * 1000:.3f},'
                f'"first_byte_ms":{"null" if first is None else f"{first * 1000:.3f}"},'
                f'"bytes_in":{body.received},"bytes_out":{downstream.bytes_sent}{agent}{more}}}\n'
            )
        else:
            line = (
                f"{stamp} {who}{status} {seconds * 1000:.3f}ms "
                f"first_byte={'-' if first is None else f'{first * 1000:.3f}ms'} "
                f"in={body.received} out={downstream.bytes_sent}{where}{exchange.attempts}{agent} "
                f"request_id={exchange.request_id.decode()}{more}\n"
            )
        self.writer.put(line)

    def refusal(self, reject: Reject, status: int, client: str, request_id: bytes) -> None:
        """Log what never became an exchange: there is no more to say about it than why."""
        name, more = request_id.decode(), self._reason(reject.reason.value, reject.detail)
        if self._json:
            self.writer.put(
                f'{{"time":"{self._time(0.0)}","request_id":"{name}","client":"{client}",'
                f'"status":{status}{more}}}\n'
            )
        else:
            self.writer.put(
                f'{self._time(0.0)} {client or "-"} "-" {status} request_id={name}{more}\n'
            )

    def _reason(self, reason: str, detail: str) -> str:
        pair = self._pair("reason", reason)
        return pair + self._pair("detail", escape(detail[:LONGEST])) if detail else pair

    def _filtered(self, exchange: Exchange) -> str:
        """What filters did about it, or with ``dry_run`` would have done. Nothing for most."""
        found = ""
        if exchange.queued:
            milliseconds = f"{exchange.queued * 1000:.3f}"
            found = f',"queued_ms":{milliseconds}' if self._json else f" queued={milliseconds}ms"
        if exchange.priority is not CRITICAL:
            found += self._pair("priority", exchange.priority.name.lower())
        if exchange.hedged:
            found += ',"hedged":true' if self._json else " hedged=true"
        if exchange.shadowed is not None:
            found += self._pair("shadowed", str(exchange.shadowed))
        return found

    def _pair(self, name: str, escaped: str) -> str:
        return f',"{name}":"{escaped}"' if self._json else f' {name}="{escaped}"'

    def _time(self, now: float) -> str:
        """RFC 3339, UTC, milliseconds. Under load many lines share one: until ``_stamp_until``, in
        the seconds of ``now``, which spares them a look at the other clock."""
        moment = time() * 1000
        second, millisecond = divmod(int(moment), 1000)
        if second != self._second:
            self._second = second
            self._date = strftime("%Y-%m-%dT%H:%M:%S", gmtime(second))
        self._stamp = f"{self._date}.{millisecond:03d}Z"
        self._stamp_until = now + (1 - moment % 1) / 1000
        return self._stamp

    def _who(self, exchange: Exchange) -> tuple[str, str]:
        """What a client says of itself, in two parts."""
        request = exchange.request
        # Most values were seen before: these look-ups are the price of most lines.
        escaped, text = self._escaped, self._bytes
        method = escaped.get(request.method) or text(request.method)
        path = escaped.get(request.path) or text(request.path)
        host = escaped.get(request.host) or text(request.host)
        named = request.index.get(b"user-agent", b"")
        agent = escaped.get(named) or text(named)
        if self._json:
            who = (
                f',"client":"{exchange.client}","method":"{method}","path":"{path}","host":"{host}"'
            )
            return f'{who},"status":', f',"user_agent":"{agent}"'
        who = f'{exchange.client or "-"} "{method} {path}" '
        return who, f' host="{host}" user_agent="{agent}"'

    def _bytes(self, value: bytes) -> str:
        """Escaped. Paths, hosts and agents repeat, so short ones are remembered."""
        if not value:
            return ""
        escaped = escape_bytes(value)
        if len(value) <= _CACHED_BYTES:
            if len(self._escaped) >= _CACHED:
                self._escaped.clear()
            self._escaped[value] = escaped
        return escaped

    def _place(self, place: tuple[str, str, str]) -> str:
        """Route, cluster, endpoint: from the configuration, but a path may stand in it."""
        route, cluster, endpoint = [escape(name) for name in place]
        if self._json:
            where = f',"route":"{route}","cluster":"{cluster}","endpoint":"{endpoint}","attempts":'
        else:
            where = f' route="{route}" cluster={cluster} endpoint="{endpoint}" attempts='
        if len(self._where) >= _CACHED:
            self._where.clear()
        self._where[place] = where
        return where


def escape_bytes(value: bytes) -> str:
    """Printable ASCII for the inside of a JSON string, from bytes of any kind, cut at LONGEST."""
    cut = value[:LONGEST]
    try:
        text = cut.decode("utf-8")
    except UnicodeDecodeError:
        text = cut.decode("latin-1")
    return escape(text) + ("..." if len(value) > LONGEST else "")


def escape(text: str) -> str:
    r"""Printable ASCII for the inside of a JSON string: quotes, controls, DEL, C1, U+2028 too."""
    return _UNSAFE.sub(_escape, text)


def _escape(match: re.Match[str]) -> str:
    character = match[0]
    if character in '"\\':
        return "\\" + character
    code = ord(character)
    if code < 0x10000:
        return f"\\u{code:04x}"
    code -= 0x10000
    return f"\\u{0xD800 + (code >> 10):04x}\\u{0xDC00 + (code & 0x3FF):04x}"
