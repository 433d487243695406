"""Pure: who may ask the admin listener for what.

A browser on an operator's machine reaches loopback too, so being on loopback proves nothing about
who asks. A foreign page can send a POST (hence Origin) and can make its own name resolve to
127.0.0.1 and then read answers (DNS rebinding, hence Host). It cannot name an address it does not
load from, so a Host that is a literal address was typed by somebody who meant it.
"""

from __future__ import annotations

import hmac
import ipaddress
import re
from typing import NamedTuple
from urllib.parse import urlsplit


class Refusal(NamedTuple):
    """``code`` is for programs, ``message`` says how to do it right."""

    status: int
    code: str
    message: str


class Asked(NamedTuple):
    """What the rules look at. The three header values are None when absent."""

    method: str
    path: str
    host: str | None
    origin: str | None
    authorization: str | None


class Listening(NamedTuple):
    """Where the request came in. ``unix``: a socket file, whose permissions are the guard.
    ``local``: bound to loopback only. ``names``: further names of this machine."""

    unix: bool
    local: bool
    names: frozenset[str] = frozenset()


_HOST = re.compile(r"(\[[0-9a-f:.]+\]|[a-z0-9._-]+)(?::[0-9]{1,5})?")
PROBES = frozenset(("/livez", "/readyz", "/metrics"))
"""Open to everybody who reaches the listener: they change nothing and name no secrets."""
PAGE = "/dashboard/"
"""Where the files of the dashboard's page lie, which asks for the token. ``/`` is the page too."""


def judge(asked: Asked, at: Listening, token: str | None) -> Refusal | None:
    """None if the request may go on. O(1)."""
    changes = asked.method not in ("GET", "HEAD")
    if asked.path in PROBES and not changes:
        return None
    # Off loopback a GET needs the token, which a rebound page does not have.
    compared = not at.unix and (changes or at.local)
    if compared and not host_matches(asked.host, at):
        return Refusal(403, "foreign_host", "ask by address or as localhost, not by another name")
    if changes and asked.origin is not None and not _same(asked.origin, asked.host):
        return Refusal(403, "foreign_origin", "a page of another origin may not change anything")
    if at.unix or at.local:
        return None
    if not changes and (asked.path == "/" or asked.path.startswith(PAGE)):
        return None
    if token is None:
        return Refusal(403, "no_token", "off loopback this needs admin.token in the configuration")
    given = (asked.authorization or "").partition(" ")
    right = given[0].lower() == "bearer" and hmac.compare_digest(
        given[2].strip().encode("utf-8", "surrogateescape"), token.encode()
    )
    return None if right else Refusal(401, "unauthorized", "send Authorization: Bearer TOKEN")


def host_matches(host: str | None, at: Listening) -> bool:
    """Whether ``host`` is an address, or a name that only this machine has.

    Its port is not compared: a forwarded port is another number. On loopback only loopback
    addresses are accepted.
    """
    name = _host_name(host or "")
    if name == "localhost" or name.endswith(".localhost") or name in at.names:
        return True
    try:
        address = ipaddress.ip_address(name.strip("[]"))
    except ValueError:
        return False
    return address.is_loopback if at.local else True


def _host_name(host: str) -> str:
    """The name in a Host field, "" if it is not one and a port, whole."""
    found = _HOST.fullmatch(host.lower())
    return found[1].rstrip(".") if found else ""


def _same(origin: str, host: str | None) -> bool:
    """Whether a page of ``origin`` was loaded from this very listener. ``null`` never was."""
    parts = urlsplit(origin)
    return parts.scheme in ("http", "https") and parts.netloc.lower() == (host or "").lower()
