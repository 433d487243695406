"""Certificates, keys and authorities: read when the file is checked, not at the first handshake.

What OpenSSL would refuse at start is reported with the line that names the file. ``ssl`` is
imported only if a file names a certificate at all: it takes 25 ms, and most sidecars need none.
"""

from pathlib import Path as FilePath
from typing import Any

from gateway.config import Config
from gateway.config_convert import Converter
from gateway.config_nodes import Path

_LARGEST = 4 * 1024**2


def check_files(config: Config, found: Converter) -> None:
    """Try every certificate, key and authority of ``config``."""
    for index, listener in enumerate(config.listen):
        if listener.tls is not None:
            path: Path = ("listen", index, "tls")
            _pair(listener.tls.cert, listener.tls.key, path, found)
            _authority(listener.tls.client_ca, (*path, "client_ca"), found)
    for name, cluster in config.clusters.items():
        if cluster.tls is not None:
            path = ("clusters", name, "tls")
            _pair(cluster.tls.cert, cluster.tls.key, path, found)
            _authority(cluster.tls.ca, (*path, "ca"), found)


def _readable(file: str | None, path: Path, found: Converter) -> bool:
    """Whether ``file`` is named and can be read; a problem is noted if it cannot."""
    if file is None or not found.clean(path):
        return False
    place = FilePath(file)
    try:
        if not place.exists():
            reason = "there is no such file"
        elif not place.is_file():
            reason = "it is not a file"
        elif place.stat().st_size > _LARGEST:
            reason = "it is larger than 4MiB"
        else:
            place.read_bytes()
            return True
    except (OSError, ValueError) as error:
        reason = getattr(error, "strerror", None) or str(error)
    found.error(path, found.mark(path), f"cannot read {file}: {reason}")
    return False


def _pair(cert: str | None, key: str | None, path: Path, found: Converter) -> None:
    readable = [
        _readable(cert, (*path, "cert"), found),
        _readable(key, (*path, "key"), found),
    ]
    if cert is None or key is None or not all(readable):
        return
    import ssl

    # Without a callback OpenSSL would ask the terminal for the password.
    asked: list[bool] = []

    def no_password() -> str:
        asked.append(True)
        return ""

    try:
        ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER).load_cert_chain(cert, key, no_password)
    except (ssl.SSLError, OSError, ValueError) as error:
        if asked:
            name, reason = "key", f"{key} is encrypted, and there is nobody to ask for a password"
        elif "MISMATCH" in str(error).upper():
            name, reason = "key", f"{key} does not belong to the certificate {cert}"
        elif _is_certificate(cert):
            name, reason = "key", f"{key} holds no private key that can be used: {_said(error)}"
        else:
            name, reason = "cert", f"{cert} holds no certificate in PEM form"
        found.error((*path, name), found.mark((*path, name)), reason)


def _is_certificate(file: str) -> bool:
    import ssl

    try:
        ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT).load_verify_locations(file)
    except (ssl.SSLError, OSError, ValueError):
        return False
    return True


def _authority(file: str | None, path: Path, found: Converter) -> None:
    if file is not None and _readable(file, path, found) and not _is_certificate(file):
        found.error(path, found.mark(path), f"{file} holds no certificate in PEM form")


def _said(error: Any) -> str:
    return str(getattr(error, "reason", None) or error)
