"""What strangers send cannot make series: the export of a gateway that thousands of random requests
came through, and what ``promtool`` says of it."""

from __future__ import annotations

import json
import string
from itertools import pairwise
from random import Random
from typing import Any

from filters.admission import Config as Admission
from filters.admission import Queue
from filters.api import Priority, Reason
from filters.hedge import Config as Hedge
from filters.rate_limit import Config as RateLimit
from filters.retry import Config as Retry
from gateway.collect import STATES, collect
from gateway.config import Filters, Limits, Telemetry
from gateway.exposition import render
from tests.gateway.administered import GET, administered, ask_proxy
from tests.gateway.exposition_format import Samples, parse, value
from tests.harness import Gateway, eventually, gateway
from tests.ops.prometheus import program, run
from tests.wire.origin import OK, Connection, Origin, Request, answer

MARK = "zq"
"""In everything that is random here and might become a label."""
EVERYTHING = Filters(
    rate_limit=RateLimit(key="header:authorization", rate=1000.0, burst=1000),
    retry=Retry(),
    hedge=Hedge(dry_run=True),
)


class Stranger:
    """Sends what nobody has sent before."""

    def __init__(self, seed: int) -> None:
        self._rng = Random(seed)

    def word(self, alphabet: str = string.ascii_letters + string.digits) -> str:
        return MARK + "".join(self._rng.choices(alphabet, k=self._rng.randint(4, 40)))

    def request(self) -> tuple[bytes, bytes]:
        """A request that is valid HTTP, and its method."""
        rng = self._rng
        other = self.word(string.ascii_uppercase)[:12].upper()
        method = rng.choice(["GET", "POST", "PUT", "DELETE", "PATCH", other])
        paths = [f"/{self.word()}", f"/v1/{self.word()}?{self.word()}", "/v1/chat/completions"]
        fields = {
            "Host": f"{self.word(string.ascii_lowercase)}.test",
            "Authorization": f"Bearer {self.word()}",
            "User-Agent": self.word(),
            "X-Request-Id": self.word(),
            "X-Request-Priority": rng.choice(["critical", "sheddable", self.word()]),
            "X-Request-Timeout-Ms": str(rng.randint(1000, 60000)),
            "Traceparent": f"00-{rng.getrandbits(128):032x}-{rng.getrandbits(64):016x}-01",
            f"X-{self.word()}": self.word(),
        }
        body = b""
        if method in ("POST", "PUT"):
            body = json.dumps({"model": self.word(), "input": self.word()}).encode()
            fields["Content-Length"] = str(len(body))
        lines = [f"{method} {rng.choice(paths)} HTTP/1.1"]
        lines += [f"{name}: {text}" for name, text in fields.items()]
        return "\r\n".join([*lines, "", ""]).encode() + body, method.encode()

    def nonsense(self) -> bytes:
        """What is refused before it is an exchange."""
        word = self.word()
        return self._rng.choice([
            f"{word}\r\n\r\n", f"GET /{word} HTTP/{word}\r\n\r\n",
            f"GET /{word} HTTP/1.1\r\nHost: a\r\nHost: {word}\r\n\r\n",
            f"CONNECT {word}.test:1 HTTP/1.1\r\nHost: {word}.test\r\n\r\n",
        ]).encode()  # fmt: skip


def exported(running: Gateway) -> Samples:
    return parse(render(collect(running.server)).decode())


async def send(running: Gateway, stranger: Stranger, count: int) -> None:
    async with running.client() as client:
        for _ in range(count):
            raw, method = stranger.request()
            await client.send(raw)
            assert (await client.response(method)).status < 500
    for _ in range(count // 20):
        await running.ask(stranger.nonsense())


async def test_thousands_of_random_requests_make_no_series() -> None:
    stranger = Stranger(7)
    route: Any = {"path": "/v1", "name": "v1", "filters": EVERYTHING}  # some find no route
    async with Origin(keep_raw=False) as origin, gateway(origin, route=route) as running:
        await send(running, stranger, 500)  # of every kind some
        before = set(exported(running))
        await send(running, stranger, 2500)
        after = exported(running)
    new = set(after) - before
    assert new == set()
    assert MARK not in str(after).lower()
    counted = [n for (name, _), n in after.items() if name == "tailrace_requests_total"]
    assert sum(counted) == 3000
    assert len(counted) < 40


async def test_every_label_has_a_closed_set_of_values() -> None:
    """Or comes from the configuration: ``route``, ``cluster``, ``endpoint``."""
    stranger = Stranger(8)
    closed: dict[str, set[str]] = {
        "reason": {each.value for each in Reason} | {""},
        "priority": {each.name.lower() for each in Priority},
        "code": {f"{n}xx" for n in range(1, 10)},
        "state": {*STATES, "idle", "busy"},
    }
    async with Origin(keep_raw=False) as origin:
        route: Any = {"filters": EVERYTHING, "name": "all"}
        async with gateway(origin, route=route) as running:
            await send(running, stranger, 200)
            found = exported(running)
        configured = {"route": {"all"}, "cluster": {"c"}, "endpoint": {origin.authority}}
    for name, labels in found:
        for label, text in labels:
            if label in closed | configured:
                assert text in (closed | configured)[label], name
            else:
                assert label in {"le", "why", "outcome", "cause", "result", "would", "version"}


async def test_a_model_server_cannot_make_series_either() -> None:
    rng = Random(9)

    async def script(connection: Connection, request: Request) -> None:
        status = rng.choice([*range(200, 204), *range(400, 430), *range(500, 512)])
        raw = b"HTTP/1.1 %d zqreason%d\r\nContent-Length: 0\r\nX-zq: %d\r\n\r\n"
        await answer(raw % (status, rng.getrandbits(30), rng.getrandbits(30)))(connection, request)

    async with Origin(script, keep_raw=False) as origin, gateway(origin) as running:
        async with running.client() as client:
            for _ in range(300):
                await client.send(GET)
                await client.response()
        found = exported(running)
        assert "zqreason" not in str(found)
        codes = {dict(labels).get("code") for (_, labels) in found} - {None}
        assert codes == {"2xx", "4xx", "5xx"}


async def test_saturation_is_what_is_in_flight_and_waits_of_the_limit() -> None:
    async def hold(connection: Connection, request: Request) -> None:
        await connection.body(request)
        await connection.until(lambda: connection.gone)

    admission = Admission(limit=2, queue=Queue(size=8))
    async with Origin(hold) as origin:
        filters = Filters(admission=admission, retry=None)
        async with gateway(origin, route={"filters": filters}) as running:
            assert value(exported(running), "tailrace_admission_saturation", route="/") == 0
            async with running.client() as a, running.client() as b, running.client() as c:
                gate = running.server.wiring.filters["/"].gate
                assert gate is not None
                for client in (a, b, c):
                    await client.send(GET)
                await eventually(lambda: gate.in_flight == 2 and len(gate.queue) == 1)
                assert value(exported(running), "tailrace_admission_saturation") == 1.5


async def test_saturation_of_the_gateway_counts_its_connections() -> None:
    async with Origin() as origin, gateway(origin, limits=Limits(connections=4)) as running:
        vitals = running.server.vitals

        def saturation() -> float:
            vitals.measured(0.1, 0.3)
            vitals.cpu = 0.0  # the tests' own
            return value(exported(running), "tailrace_saturation")

        assert saturation() == 0.3
        async with running.client() as a, running.client() as b:
            for client in (a, b):
                await client.send(GET)
                assert (await client.response()).status == 200
            assert saturation() == 0.5


async def test_the_buckets_suit_a_millisecond_and_ten_minutes() -> None:
    buckets = Telemetry().metrics.buckets
    assert buckets[0] <= 0.001
    assert buckets[-1] >= 600
    # No more than a factor of three between two of them, up to a minute, where quantiles matter.
    below = [bound for bound in buckets if bound <= 60]
    assert all(high / low <= 3 for low, high in pairwise(below))


async def test_promtool_finds_nothing_wrong() -> None:
    promtool = program("promtool")
    async with (
        Origin(answer(OK)) as origin,
        administered(origin, route={"filters": EVERYTHING}) as running,
    ):
        assert await ask_proxy(running.server, GET) == 200
        text = (await running.ask("/metrics")).text
    run(promtool, "check", "metrics", text=text, silent=True)
