"""Cases 33 to 42: the Host header."""

from __future__ import annotations

import pytest

from tests.harness import gateway
from tests.wire.origin import Origin
from tests.wire.table import WAYS, Row, accepted, deliver, refused, table


def host(*lines: bytes) -> bytes:
    return b"GET /x HTTP/1.1\r\n" + b"".join(b"%s\r\n" % each for each in lines) + b"\r\n"


BAD = [
    Row(33, "missing", host()),
    Row(33, "missing-but-others", host(b"X-Host: a.test")),
    Row(34, "twice-the-same", host(b"Host: a.test", b"Host: a.test")),
    Row(34, "twice-other-case", host(b"Host: a.test", b"hOST: a.test")),
    Row(35, "two-different", host(b"Host: a.test", b"Host: b.test")),
    Row(36, "empty", host(b"Host:")),
    Row(36, "blank", host(b"Host:   ")),
    Row(37, "list", host(b"Host: a.test, b.test")),
    Row(37, "list-no-space", host(b"Host: a.test,b.test")),
    Row(38, "userinfo", host(b"Host: user@a.test")),
    Row(39, "path", host(b"Host: a.test/x")),
    Row(39, "query", host(b"Host: a.test?x")),
    Row(39, "fragment", host(b"Host: a.test#x")),
    Row(39, "backslash", host(b"Host: a.test\\x")),
    Row(40, "space", host(b"Host: a b")),
    Row(40, "tab", host(b"Host: a\tb")),
    Row(40, "ctl", host(b"Host: a\x01b")),
    Row(40, "nul", host(b"Host: a\x00b")),
    Row(40, "8-bit", host(b"Host: a\xffb")),
    Row(41, "port-too-high", host(b"Host: a:99999")),
    Row(41, "port-65536", host(b"Host: a:65536")),
    Row(41, "port-negative", host(b"Host: a:-1")),
    Row(41, "port-text", host(b"Host: a:http")),
    Row(41, "two-ports", host(b"Host: a:80:80")),
    Row(41, "v6-unclosed", host(b"Host: [::1")),
    Row(41, "v6-without-brackets", host(b"Host: ::1")),
    Row(42, "1.0-twice", b"GET /x HTTP/1.0\r\nHost: a\r\nHost: b\r\n\r\n"),
]


@table(BAD)
async def test_refused(row: Row, way: str) -> None:
    await refused(row, way)


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize(
    "value", [b"a", b"a.test:8080", b"A.Test", b"127.0.0.1:80", b"[::1]", b"[::1]:8080", b"a_b-c"]
)
async def test_033_good_hosts_are_forwarded(value: bytes, way: str) -> None:
    request = await accepted(Row(33, "", host(b"Host: " + value)), way)
    assert request.one("host") == value


@pytest.mark.parametrize("way", WAYS)
async def test_042_http_1_0_without_host_gets_the_endpoints(way: str) -> None:
    async with Origin() as origin, gateway(origin) as g, g.client() as client:
        await deliver(client, b"GET /x HTTP/1.0\r\n\r\n", way)
        response = await client.response()
        assert (response.status, response.body) == (200, b"ok")
        assert await client.rest() == b""
        assert origin.requests[-1].one("host").decode() == origin.authority
