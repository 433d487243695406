"""Certificates are replaced under a running server; bad ones change nothing but the error."""

from __future__ import annotations

import asyncio
import contextlib
import os
import ssl
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest
import trustme
import uvloop

from gateway.config import ListenerTls
from gateway.config import UpstreamTls as UpstreamConfig
from gateway.tls import Poll, ServerTls, UpstreamTls


def peer_name(certificate: dict[str, Any] | None) -> str | None:
    """Who a verified peer is, from ``get_extra_info("peercert")``: its SPIFFE or other URI, its
    DNS name, else its common name. None without a verified certificate."""
    if not certificate:
        return None
    names = dict(reversed(certificate.get("subjectAltName", ())))
    for kind in ("URI", "DNS"):
        if kind in names:
            return str(names[kind])
    for part in certificate.get("subject", ()):
        for key, value in part:
            if key == "commonName":
                return str(value)
    return None


class Files:
    """A directory with a server's certificate, key and client CA."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.ca = trustme.CA()
        self.clients = trustme.CA()
        self.cert, self.key = folder / "tls.crt", folder / "tls.key"
        self.trusted, self.client_ca = folder / "ca.crt", folder / "clients.crt"
        self.ca.cert_pem.write_to_path(str(self.trusted))
        self.clients.cert_pem.write_to_path(str(self.client_ca))
        self.issue("localhost", "first.example")

    def issue(self, *names: str) -> None:
        leaf = self.ca.issue_cert(*names)
        self.cert.write_bytes(b"".join(pem.bytes() for pem in leaf.cert_chain_pems))
        self.key.write_bytes(leaf.private_key_pem.bytes())

    def server(self, *, mutual: bool = False) -> ServerTls:
        client_ca = str(self.client_ca) if mutual else None
        return ServerTls(ListenerTls(cert=str(self.cert), key=str(self.key), client_ca=client_ca))

    def client(self, name: str = "localhost", issuer: trustme.CA | None = None) -> UpstreamTls:
        cert = None
        if issuer is not None:
            pem = issuer.issue_cert("client.example").private_key_and_cert_chain_pem
            cert = str(self.folder / "client.pem")
            pem.write_to_path(cert)
        ca = str(self.trusted)
        return UpstreamTls(UpstreamConfig(ca=ca, cert=cert, server_name=name))


@pytest.fixture
def files(tmp_path: Path) -> Files:
    return Files(tmp_path)


@asynccontextmanager
async def serving(tls: ServerTls) -> AsyncIterator[int]:
    """Answers each connection with the name of its verified client, and hangs up."""

    async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        name = peer_name(writer.get_extra_info("peercert"))
        writer.write((name or "nobody").encode())
        writer.close()

    server = await asyncio.start_server(answer, "127.0.0.1", 0, ssl=tls.listening)
    async with server:
        yield server.sockets[0].getsockname()[1]


async def greet(port: int, client: UpstreamTls) -> tuple[str, Any]:
    reader, writer = await asyncio.open_connection(
        "127.0.0.1", port, ssl=client.context, server_hostname=client.server_name
    )
    try:
        connection = writer.get_extra_info("ssl_object")
        name = (await reader.read()).decode()
        # In TLS 1.3 a client is refused after its own handshake; loops differ in how they say so.
        if not name:
            raise ConnectionAbortedError("no answer")
        return name, connection
    finally:
        writer.close()


def handshake(
    server: ssl.SSLContext, client: ssl.SSLContext, session: ssl.SSLSession | None
) -> tuple[ssl.SSLObject, ssl.SSLObject]:
    """Both sides in memory; raises what either raises. The client comes first, as it may resume."""
    up, down = ssl.MemoryBIO(), ssl.MemoryBIO()
    ours = client.wrap_bio(down, up, server_hostname="localhost", session=session)
    theirs = server.wrap_bio(up, down, server_side=True)
    for step in (ours.do_handshake, theirs.do_handshake) * 3 + (ours.read,):
        with contextlib.suppress(ssl.SSLWantReadError):
            step()
    return ours, theirs


REFUSED = (ssl.SSLError, ConnectionError)


class TestServer:
    async def test_it_speaks_http_1_1_over_a_modern_tls(self, files: Files) -> None:
        async with serving(files.server()) as port:
            name, connection = await greet(port, files.client())
        assert name == "nobody"
        assert connection.selected_alpn_protocol() == "http/1.1"
        assert connection.version() == "TLSv1.3"

    async def test_tls_1_1_is_refused(self, files: Files) -> None:
        client = files.client()
        with pytest.warns(DeprecationWarning, match="TLSv1_1"):
            client.context.minimum_version = ssl.TLSVersion.TLSv1_1
        with pytest.warns(DeprecationWarning, match="TLSv1_1"):
            client.context.maximum_version = ssl.TLSVersion.TLSv1_1
        client.context.set_ciphers("ALL:@SECLEVEL=0")
        async with serving(files.server()) as port:
            with pytest.raises(REFUSED):
                await greet(port, client)

    async def test_a_client_must_show_a_certificate_of_its_ca(self, files: Files) -> None:
        async with serving(files.server(mutual=True)) as port:
            name, _ = await greet(port, files.client(issuer=files.clients))
            assert name == "client.example"
            for stranger in (files.client(), files.client(issuer=trustme.CA())):
                with pytest.raises(REFUSED):
                    await greet(port, stranger)

    async def test_a_new_certificate_serves_new_connections(self, files: Files) -> None:
        tls = files.server()
        async with serving(tls) as port:
            with pytest.raises(ssl.SSLCertVerificationError):
                await greet(port, files.client("second.example"))
            files.issue("second.example")
            assert tls.poll() is Poll.CHANGED
            await greet(port, files.client("second.example"))
            with pytest.raises(ssl.SSLCertVerificationError):
                await greet(port, files.client("first.example"))

    async def test_a_client_ca_that_is_taken_away_is_trusted_no_more(self, files: Files) -> None:
        tls = files.server(mutual=True)
        old, other = files.client(issuer=files.clients), trustme.CA()
        async with serving(tls) as port:
            await greet(port, old)
            other.cert_pem.write_to_path(str(files.client_ca))
            assert tls.poll() is Poll.CHANGED
            with pytest.raises(REFUSED):
                await greet(port, old)
            name, _ = await greet(port, files.client(issuer=other))
            assert name == "client.example"

    @pytest.mark.parametrize("version", [ssl.TLSVersion.TLSv1_2, ssl.TLSVersion.TLSv1_3])
    def test_a_session_does_not_outlive_its_ca(self, files: Files, version: ssl.TLSVersion) -> None:
        tls = files.server(mutual=True)
        client = files.client(issuer=files.clients).context
        client.maximum_version = version
        session = handshake(tls.listening, client, None)[0].session
        assert handshake(tls.listening, client, session)[1].session_reused
        trustme.CA().cert_pem.write_to_path(str(files.client_ca))
        assert tls.poll() is Poll.CHANGED
        with pytest.raises(ssl.SSLError):
            handshake(tls.listening, client, session)

    async def test_another_listeners_files_take_over_its_server(self, files: Files) -> None:
        plain = files.server()
        async with serving(plain) as port:
            await greet(port, files.client())
            mutual = files.server(mutual=True)
            mutual.take_over(plain)
            with pytest.raises(REFUSED):
                await greet(port, files.client())
            assert (await greet(port, files.client(issuer=files.clients)))[0] == "client.example"
            files.issue("second.example")
            assert mutual.poll() is Poll.CHANGED
            await greet(port, files.client("second.example", issuer=files.clients))

    def test_the_same_holds_on_uvloop(self, files: Files) -> None:
        async def scenario() -> None:
            tls = files.server(mutual=True)
            old, other = files.client(issuer=files.clients), trustme.CA()
            async with serving(tls) as port:
                assert (await greet(port, old))[0] == "client.example"
                files.issue("second.example")
                other.cert_pem.write_to_path(str(files.client_ca))
                assert tls.poll() is Poll.CHANGED
                with pytest.raises(REFUSED):
                    await greet(port, old)
                fresh = files.client("second.example", issuer=other)
                assert (await greet(port, fresh))[0] == "client.example"

        with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
            runner.run(scenario())


class TestPoll:
    def test_files_that_stay_are_not_loaded_again(self, files: Files) -> None:
        tls = files.server()
        context = tls.context
        os.utime(files.cert, (1, 1))
        assert tls.poll() is Poll.UNCHANGED
        assert tls.context is context

    def test_a_swapped_symlink_is_noticed(self, files: Files, tmp_path: Path) -> None:
        secret = tmp_path / "secret"
        for version in ("v1", "v2"):
            files.issue("localhost")
            (tmp_path / version).mkdir()
            for file in (files.cert, files.key):
                copy = tmp_path / version / file.name
                copy.write_bytes(file.read_bytes())
                os.utime(copy, (1, 1))
        secret.symlink_to("v1")
        tls = ServerTls(ListenerTls(cert=str(secret / "tls.crt"), key=str(secret / "tls.key")))
        (tmp_path / "next").symlink_to("v2")
        (tmp_path / "next").rename(secret)
        assert tls.poll() is Poll.CHANGED
        assert tls.poll() is Poll.UNCHANGED

    @pytest.mark.parametrize(
        "spoil",
        [
            lambda files: files.cert.write_text("no certificate"),
            lambda files: files.cert.write_text(""),
            lambda files: files.cert.unlink(),
            lambda files: files.key.write_bytes(
                trustme.CA().issue_cert("localhost").private_key_pem.bytes()
            ),
            lambda files: files.client_ca.write_text(""),
        ],
        ids=["garbage", "empty", "missing", "key of another", "no ca"],
    )
    def test_a_bad_set_keeps_the_old_one_and_is_reported_once(
        self, files: Files, spoil: Callable[[Files], object]
    ) -> None:
        tls = files.server(mutual=True)
        context = tls.context
        spoil(files)
        assert tls.poll() is Poll.ERROR
        assert tls.error
        assert tls.poll() is Poll.UNCHANGED
        assert tls.error
        assert tls.context is context
        files.clients.cert_pem.write_to_path(str(files.client_ca))
        files.issue("localhost")
        assert tls.poll() is Poll.CHANGED
        assert tls.error is None

    def test_a_missing_file_that_comes_back_unchanged_clears_the_error(self, files: Files) -> None:
        tls = files.server()
        content = files.cert.read_bytes()
        files.cert.unlink()
        assert tls.poll() is Poll.ERROR
        files.cert.write_bytes(content)
        assert tls.poll() is Poll.CHANGED
        assert tls.error is None

    def test_an_encrypted_key_is_an_error_and_never_a_question(self, files: Files) -> None:
        from cryptography.hazmat.primitives import serialization as pem

        key = pem.load_pem_private_key(files.key.read_bytes(), None)
        secret = pem.BestAvailableEncryption(b"secret")
        files.key.write_bytes(key.private_bytes(pem.Encoding.PEM, pem.PrivateFormat.PKCS8, secret))
        with pytest.raises(ValueError, match="encrypted"):
            files.server()

    def test_there_must_be_something_to_start_with(self, files: Files) -> None:
        files.cert.write_text("")
        with pytest.raises(ssl.SSLError):
            files.server()


class TestUpstream:
    def test_the_defaults_verify(self) -> None:
        context = UpstreamTls(UpstreamConfig()).context
        assert context.verify_mode is ssl.CERT_REQUIRED
        assert context.check_hostname
        assert context.minimum_version is ssl.TLSVersion.TLSv1_2

    def test_with_a_ca_no_other_is_trusted(self, files: Files) -> None:
        assert len(files.client().context.get_ca_certs()) == 1

    async def test_verification_can_be_turned_off(self, files: Files) -> None:
        blind = UpstreamTls(UpstreamConfig(verify=False, server_name="whatever"))
        async with serving(files.server()) as port:
            assert (await greet(port, blind))[0] == "nobody"

    async def test_a_new_ca_is_used_from_then_on(self, files: Files) -> None:
        client = files.client()
        async with serving(files.server()) as port:
            await greet(port, client)
            trustme.CA().cert_pem.write_to_path(str(files.trusted))
            assert client.poll() is Poll.CHANGED
            with pytest.raises(ssl.SSLCertVerificationError):
                await greet(port, client)
