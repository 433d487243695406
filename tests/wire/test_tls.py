"""TLS on both sides: versions, ALPN, certificates, server names, files that change."""

from __future__ import annotations

import os
import ssl
from pathlib import Path
from typing import Any

import pytest
import trustme

from gateway.config import ListenerTls, UpstreamTls
from tests.harness import GOOD, Gateway, eventually, gateway
from tests.wire.client import TlsClient, TruncatedError
from tests.wire.origin import Origin, echo
from tests.wire.table import check_refusal, get, post


class Authority:
    """A certificate authority whose files lie in ``directory``."""

    def __init__(self, directory: Path) -> None:
        self.ca = trustme.CA()
        self.directory = directory
        self.file = directory / "ca.pem"
        self.ca.cert_pem.write_to_path(str(self.file))

    def issue(self, name: str, *hosts: str) -> dict[str, str]:
        """``cert`` and ``key`` as paths; issued again under the same name, they are replaced."""
        issued = self.ca.issue_cert(*hosts)
        cert, key = self.directory / f"{name}.pem", self.directory / f"{name}.key"
        _replace(key, issued.private_key_pem.bytes())
        _replace(cert, b"".join(blob.bytes() for blob in issued.cert_chain_pems))
        return {"cert": str(cert), "key": str(key)}

    def server(self, *hosts: str) -> ssl.SSLContext:
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        self.ca.issue_cert(*hosts).configure_cert(context)
        return context

    def client(self, *protocols: str) -> ssl.SSLContext:
        context = ssl.create_default_context(cafile=str(self.file))
        if protocols:
            context.set_alpn_protocols(list(protocols))
        return context


def _replace(path: Path, data: bytes) -> None:
    """As Kubernetes does it: never half a file."""
    new = path.with_suffix(".new")
    new.write_bytes(data)
    new.replace(path)


@pytest.fixture
def authority(tmp_path: Path) -> Authority:
    return Authority(tmp_path)


def listening(authority: Authority, **more: Any) -> dict[str, Any]:
    return {"tls": ListenerTls(**authority.issue("listener", "localhost"), **more)}


async def asks(g: Gateway, context: ssl.SSLContext, raw: bytes = GOOD) -> int:
    async with await TlsClient.open(g.address, context) as client:
        await client.send(raw)
        return (await client.response()).status


async def test_listener_serves_http_1_1_over_tls(authority: Authority) -> None:
    async with Origin(echo) as origin, gateway(origin, listener=listening(authority)) as g:
        async with await TlsClient.open(g.address, authority.client("h2", "http/1.1")) as client:
            tls = client.writer.get_extra_info("ssl_object")
            assert tls.selected_alpn_protocol() == "http/1.1"
            assert tls.version() in {"TLSv1.2", "TLSv1.3"}
            body = os.urandom(500_000)
            await client.send(post(b"Content-Length: %d" % len(body), body=body))
            assert (await client.response()).body == body
            await client.send(GOOD)
            assert (await client.response()).status == 200
        assert origin.requests[0].one("x-forwarded-proto") == b"https"


async def test_listener_refuses_bad_requests_over_tls_too(authority: Authority) -> None:
    async with Origin() as origin, gateway(origin, listener=listening(authority)) as g:
        async with await TlsClient.open(g.address, authority.client()) as client:
            await client.send(get(b"X : 1"))
            check_refusal(await client.response(), 400)
            assert await client.rest() == b""
        assert origin.heads == []


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
async def test_listener_refuses_tls_1_1(authority: Authority) -> None:
    context = authority.client()
    context.set_ciphers("ALL:@SECLEVEL=0")
    context.minimum_version = ssl.TLSVersion.TLSv1
    context.maximum_version = ssl.TLSVersion.TLSv1_1
    async with Origin() as origin, gateway(origin, listener=listening(authority)) as g:
        with pytest.raises((ssl.SSLError, ConnectionError)):
            await TlsClient.open(g.address, context)
        assert await asks(g, authority.client()) == 200


async def test_plain_http_on_a_tls_port_gets_nothing(authority: Authority) -> None:
    async with Origin() as origin, gateway(origin, listener=listening(authority)) as g:
        async with g.client() as client:
            await client.send(GOOD)
            assert b"HTTP/" not in await client.rest()
        assert await asks(g, authority.client()) == 200
        assert len(origin.requests) == 1


async def test_client_certificates_are_required_and_checked(
    authority: Authority, tmp_path: Path
) -> None:
    listener = listening(authority, client_ca=str(authority.file))
    (tmp_path / "other").mkdir()
    stranger = Authority(tmp_path / "other").issue("stranger", "client")
    async with Origin() as origin, gateway(origin, listener=listener) as g:
        known = authority.client()
        known.load_cert_chain(**_chain(authority.issue("client", "client")))
        assert await asks(g, known) == 200
        unknown = authority.client()
        unknown.load_cert_chain(**_chain(stranger))
        for context in (authority.client(), unknown):
            # With TLS 1.3 the client learns that it was refused only when it reads.
            with pytest.raises((ssl.SSLError, ConnectionError, TruncatedError)):
                await asks(g, context)
        assert len(origin.requests) == 1


def _chain(files: dict[str, str]) -> dict[str, str]:
    return {"certfile": files["cert"], "keyfile": files["key"]}


async def test_upstream_certificates_are_checked(authority: Authority, tmp_path: Path) -> None:
    (tmp_path / "other").mkdir()
    other = Authority(tmp_path / "other")
    good = {"tls": UpstreamTls(ca=str(authority.file))}
    async with Origin(tls=authority.server("127.0.0.1")) as origin:
        async with gateway(origin, cluster=good) as g, g.client() as client:
            for _ in range(2):
                await client.send(GOOD)
                assert (await client.response()).body == b"ok"
        assert len(origin.connections) == 1
        for tls in (UpstreamTls(ca=str(other.file)), UpstreamTls(), None):
            async with gateway(origin, cluster={"tls": tls}) as g:
                check_refusal(await g.ask(GOOD), 502, reason="connect_failed")
        async with gateway(origin, cluster={"tls": UpstreamTls(verify=False)}) as g:
            assert (await g.ask(GOOD)).status == 200


async def test_upstream_server_name_is_sent_and_checked(authority: Authority) -> None:
    seen: list[str | None] = []
    context = authority.server("model.test")
    context.set_alpn_protocols(["h2", "http/1.1"])
    context.sni_callback = lambda _, name, __: seen.append(name)
    async with Origin(tls=context) as origin:
        tls = UpstreamTls(ca=str(authority.file), server_name="model.test")
        async with gateway(origin, cluster={"tls": tls}) as g:
            assert (await g.ask(GOOD)).status == 200
        assert seen == ["model.test"]
        selected = origin.connections[0].transport.get_extra_info("ssl_object")
        assert selected.selected_alpn_protocol() == "http/1.1"
        tls = UpstreamTls(ca=str(authority.file), server_name="wrong.test")
        async with gateway(origin, cluster={"tls": tls}) as g:
            check_refusal(await g.ask(GOOD), 502, reason="connect_failed")


async def test_upstream_gets_a_client_certificate(authority: Authority) -> None:
    context = authority.server("127.0.0.1")
    context.verify_mode = ssl.CERT_REQUIRED
    context.load_verify_locations(str(authority.file))
    async with Origin(tls=context) as origin:
        files = authority.issue("sidecar", "sidecar")
        tls = UpstreamTls(ca=str(authority.file), cert=files["cert"], key=files["key"])
        async with gateway(origin, cluster={"tls": tls}) as g:
            assert (await g.ask(GOOD)).status == 200
        async with gateway(origin, cluster={"tls": UpstreamTls(ca=str(authority.file))}) as g:
            check_refusal(await g.ask(GOOD), 502)


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
async def test_upstream_of_tls_1_1_is_refused(authority: Authority) -> None:
    context = authority.server("127.0.0.1")
    context.set_ciphers("ALL:@SECLEVEL=0")
    context.minimum_version = ssl.TLSVersion.TLSv1
    context.maximum_version = ssl.TLSVersion.TLSv1_1
    cluster = {"tls": UpstreamTls(ca=str(authority.file))}
    async with Origin(tls=context) as origin, gateway(origin, cluster=cluster) as g:
        check_refusal(await g.ask(GOOD), 502, reason="connect_failed")


async def serial(g: Gateway, authority: Authority) -> int:
    async with await TlsClient.open(g.address, authority.client()) as client:
        return int(client.writer.get_extra_info("peercert")["serialNumber"], 16)


@pytest.fixture
def quickly(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("gateway.server.CERTIFICATES_S", 0.02)


@pytest.mark.usefixtures("quickly")
async def test_a_changed_certificate_is_served_without_a_restart(
    authority: Authority, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("INFO", logger="tailrace")
    async with Origin() as origin, gateway(origin, listener=listening(authority)) as g:
        first = await serial(g, authority)
        async with await TlsClient.open(g.address, authority.client()) as old:
            authority.issue("listener", "localhost")
            await eventually(lambda: "certificates reloaded" in caplog.text)
            assert await serial(g, authority) != first
            # A connection that exists goes on.
            await old.send(GOOD)
            assert (await old.response()).status == 200


@pytest.mark.usefixtures("quickly")
async def test_a_bad_new_certificate_keeps_the_old_one(
    authority: Authority, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("INFO", logger="tailrace")
    async with Origin() as origin, gateway(origin, listener=listening(authority)) as g:
        first = await serial(g, authority)
        cert = authority.directory / "listener.pem"
        _replace(cert, b"-----BEGIN CERTIFICATE-----\nnot one\n-----END CERTIFICATE-----\n")
        await eventually(lambda: "certificates not reloaded" in caplog.text)
        assert await serial(g, authority) == first
        assert await asks(g, authority.client()) == 200
        authority.issue("listener", "localhost")
        await eventually(lambda: "certificates reloaded" in caplog.text)
        assert await serial(g, authority) != first


@pytest.mark.usefixtures("quickly")
async def test_a_changed_upstream_ca_is_used_without_a_restart(
    authority: Authority, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("INFO", logger="tailrace")
    (tmp_path / "other").mkdir()
    other = Authority(tmp_path / "other")
    cluster = {"tls": UpstreamTls(ca=str(other.file))}
    async with (
        Origin(tls=authority.server("127.0.0.1")) as origin,
        gateway(origin, cluster=cluster) as g,
    ):
        check_refusal(await g.ask(GOOD), 502, reason="connect_failed")
        _replace(other.file, authority.file.read_bytes())
        await eventually(lambda: "certificates reloaded" in caplog.text)
        assert (await g.ask(GOOD)).status == 200
