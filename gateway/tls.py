"""TLS contexts that follow their files: the listener's, with client verification, and upstreams'.

Certificates are short-lived and replaced under a running process (cert-manager, a Kubernetes
secret whose directory is a symlink that swaps). So the files are read again now and then and
compared by content, which notices every way of replacing them, whatever it does to inodes and
times. A new set is first loaded whole into a fresh context; if that fails, and a certificate
without its key yet is the usual case, the old one stays in use and the error is kept for the
operator. HTTP/1.1 is the only protocol offered, TLS 1.2 the least accepted.
"""

from __future__ import annotations

import ssl
from enum import Enum
from hashlib import sha256
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from gateway.config import ListenerTls
    from gateway.config import UpstreamTls as UpstreamConfig


class Poll(Enum):
    CHANGED = "changed"
    UNCHANGED = "unchanged"
    ERROR = "error"


class CertificateFiles:
    """Watches files by content. ``build`` makes a new context of them, or raises.

    ``context`` is the newest valid one. ``error`` says why the files as they are now are not in
    use, and is None while they are.
    """

    def __init__(self, files: tuple[str | None, ...]) -> None:
        """Raises ``OSError`` or ``ssl.SSLError`` if there is no valid context to start with."""
        self._files = tuple(Path(file) for file in files if file is not None)
        self._seen = self._digest()
        self.context = self.build()
        self.error: str | None = None

    def build(self) -> ssl.SSLContext:
        raise NotImplementedError

    def poll(self) -> Poll:
        """Read the files; use them if they are new and valid. ERROR once per bad state of them.

        Never raises. Reads every file (a few KiB each) from disk, about 0.1 ms in all, and builds
        a context only after a change; safe to call in a thread.
        """
        # The digest comes before the load: a file replaced in between is seen by the next poll.
        try:
            digest = self._digest()
        except OSError as error:
            known, self.error = self.error, str(error)
            self._seen = b""
            return Poll.UNCHANGED if known == self.error else Poll.ERROR
        if digest == self._seen:
            return Poll.UNCHANGED
        self._seen = digest
        try:
            self.context = self.build()
        except (OSError, ValueError) as error:
            self.error = str(error)
            return Poll.ERROR
        self.error = None
        return Poll.CHANGED

    def _digest(self) -> bytes:
        """Of contents and their borders, so that bytes moved between files are a change too."""
        return b"".join(sha256(file.read_bytes()).digest() for file in self._files)


class ServerTls(CertificateFiles):
    """A listener's TLS. Hand ``listening`` to the server once; it always speaks as ``context``."""

    def __init__(self, config: ListenerTls) -> None:
        self._config = config
        super().__init__((config.cert, config.key, config.client_ca))
        self.listening = _Listening(ssl.PROTOCOL_TLS_SERVER)
        self.listening.newest = self

    def take_over(self, other: ServerTls) -> None:
        """Serve what ``other`` was serving: its server's next connections are ours."""
        self.listening = other.listening
        self.listening.newest = self

    def build(self) -> ssl.SSLContext:
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        _harden(context)
        context.load_cert_chain(self._config.cert, self._config.key, password=_no_password)
        if self._config.client_ca is not None:
            context.verify_mode = ssl.CERT_REQUIRED
            context.load_verify_locations(self._config.client_ca)
        return context


class _Listening(ssl.SSLContext):
    """What a server is started with and keeps: every connection begins on the newest context.

    Loading new files into the context that a server holds would not do. A CA cannot be taken out
    of a context again, and clients resume sessions from its cache (TLS 1.2) without being
    verified again, for hours after their CA is gone. Both loops make their connections with
    ``wrap_bio``, so a whole new context, its cache empty, takes over right there.
    """

    newest: ServerTls

    def wrap_bio(self, *args: Any, **kwargs: Any) -> ssl.SSLObject:
        return self.newest.context.wrap_bio(*args, **kwargs)


class UpstreamTls(CertificateFiles):
    """TLS towards the endpoints of a cluster. Read ``context`` anew for each connection.

    ``server_name`` is what to verify and to send as SNI; None means the endpoint's own host.
    """

    def __init__(self, config: UpstreamConfig) -> None:
        self._config = config
        self.server_name = config.server_name
        super().__init__((config.ca, config.cert, config.key))

    def build(self) -> ssl.SSLContext:
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
        _harden(context)
        if not self._config.verify:
            context.check_hostname = False
            context.verify_mode = ssl.CERT_NONE
        elif self._config.ca is not None:
            context.load_verify_locations(self._config.ca)
        else:
            context.load_default_certs(ssl.Purpose.SERVER_AUTH)
        if self._config.cert is not None:
            context.load_cert_chain(self._config.cert, self._config.key, password=_no_password)
        return context


def _harden(context: ssl.SSLContext) -> None:
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    context.set_alpn_protocols(["http/1.1"])
    # Renegotiation lets a client make the server compute at will.
    context.options |= ssl.OP_NO_RENEGOTIATION | ssl.OP_NO_COMPRESSION


def _no_password() -> str:
    """Without this, OpenSSL would ask the terminal for the password of an encrypted key."""
    raise ValueError("the private key is encrypted; a key without a password is needed")
