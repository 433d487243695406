"""Pure: request head -> Route. First match in the written order wins.

The raw target decides, the same bytes that are forwarded: nothing is decoded or normalised, so
there is no second reading of a path for anyone to slip through (the LiteLLM and Envoy path
confusion CVEs). A path matches by whole segments: ``/v1`` takes ``/v1`` and ``/v1/x``, but not
``/v10``.
"""

from collections.abc import Callable, Iterable
from hashlib import sha256
from typing import Generic, TypeVar

from filters.api import Exchange, Outcome, Request, Service
from gateway.config import Route

T = TypeVar("T")


class BoundRoute:
    """One route with everything that an exchange on it needs, made once per configuration.

    ``clocks``: first byte and stall in seconds. ``request_drop``: lower-case names that are not
    sent on; ``request_lines``: fields that are added, as bytes. ``host``: what replaces
    the client's. ``rewrite``: target to target. ``debug``: answers tell what became of the
    exchange here.
    """

    __slots__ = (
        "clocks",
        "cluster",
        "debug",
        "host",
        "name",
        "replayable",
        "request_drop",
        "request_lines",
        "rewrite",
        "service",
    )

    def __init__(
        self,
        name: str,
        cluster: str,
        clocks: tuple[float, float],
        replayable: Callable[[Exchange], bool],
        config: Route | None = None,
    ) -> None:
        self.name = name
        self.cluster = cluster
        self.clocks = clocks
        self.replayable = replayable
        self.debug = False
        self.service: Service[Exchange, Outcome]
        self.request_drop: frozenset[bytes] = frozenset()
        self.request_lines = b""
        self.host = b""
        self.rewrite: Callable[[bytes], bytes] | None = None
        if config is not None:
            self._edits(config)

    def _edits(self, config: Route) -> None:
        fields = {name.lower(): each.value for name, each in config.request_headers.set.items()}
        removed = {name.lower() for name in config.request_headers.remove}
        self.host = fields.pop("host", "").encode()
        self.request_drop = frozenset(name.encode() for name in removed | set(fields))
        self.request_lines = b"".join(
            b"%b: %b\r\n" % (name.encode(), value.encode("latin-1"))
            for name, value in fields.items()
        )
        if config.rewrite is not None:
            self.rewrite = prefix_rewrite(config.path.encode(), config.rewrite.prefix.encode())


def prefix_rewrite(path: bytes, prefix: bytes) -> Callable[[bytes], bytes]:
    """Replace the matched ``path`` at the beginning of a target by ``prefix``."""
    matched, put = path.rstrip(b"/"), prefix.rstrip(b"/")

    def rewrite(target: bytes) -> bytes:
        if target == b"*":
            return target
        rest = put + target[len(matched) :]
        return rest if rest.startswith(b"/") else b"/" + rest

    return rewrite


def names(routes: Iterable[Route]) -> list[str]:
    """What each route is called in metrics, logs and on the admin page, and known by at a reload:
    its name or, without one, what it matches, so that routes which come or go beside it change
    nothing. ``/``, ``llm.test/v1``, ``/v1[GET,HEAD,x-team=241932]``.

    A header's value may be a credential: six digits of its SHA-256 stand for it. A given name has
    no ``/``, so nobody can give one that collides; those who do all the same, or match the very
    same (the file refuses both), are told apart by ``#2``, ``#3`` in their order.
    """
    found: dict[str, None] = {}
    for route in routes:
        name = wanted = route.name or _match(route)
        number = 1
        while name in found:
            number += 1
            name = f"{wanted}#{number}"
        found[name] = None
    return list(found)


def _match(route: Route) -> str:
    """The same text for the same match, however it is written."""
    further = sorted({each.upper() for each in route.methods})
    further += sorted(
        f"{name.lower()}={sha256(value.encode()).hexdigest()[:6]}"
        for name, value in route.headers.items()
    )
    place = (route.host or "").lower() + (route.path.rstrip("/") or "/")
    return f"{place}[{','.join(further)}]" if further else place


class Router(Generic[T]):
    """Routes in order, each with whatever hangs off it. Cost: O(routes), one pass."""

    __slots__ = ("_catch_all", "_rules")

    def __init__(self, routes: list[tuple[Route, T]]) -> None:
        self._rules = [_Rule(route, bound) for route, bound in routes]
        first = self._rules[0] if self._rules else None
        self._catch_all = first.bound if first is not None and first.takes_all else None

    def match(self, request: Request) -> T | None:
        if self._catch_all is not None:
            return self._catch_all
        path = request.path
        for rule in self._rules:
            if rule.matches(request, path):
                return rule.bound
        return None


class _Rule(Generic[T]):
    __slots__ = (
        "_headers",
        "_host",
        "_methods",
        "_path",
        "_prefix",
        "_suffix",
        "bound",
        "takes_all",
    )

    def __init__(self, route: Route, bound: T) -> None:
        self.bound: T = bound
        self._path = route.path.rstrip("/").encode()
        self._prefix = self._path + b"/"
        host = (route.host or "").lower()
        self._suffix = host[1:].encode() if host.startswith("*.") else b""
        self._host = b"" if self._suffix else host.encode()
        self._methods = frozenset(each.upper().encode() for each in route.methods)
        self._headers = [(n.lower().encode(), v.encode()) for n, v in route.headers.items()]
        self.takes_all = not (self._path or host or self._methods or self._headers)

    def matches(self, request: Request, path: bytes) -> bool:
        if self._path and path != self._path and not path.startswith(self._prefix):
            return False
        if self._methods and request.method not in self._methods:
            return False
        if self._host and host_name(request.host) != self._host:
            return False
        if self._suffix and not host_name(request.host).endswith(self._suffix):
            return False
        return all(request.index.get(name) == value for name, value in self._headers)


def host_name(host: bytes) -> bytes:
    """Host without its port, lower case: ``[::1]:80`` is ``[::1]``."""
    if host.startswith(b"["):
        return host[: host.find(b"]") + 1].lower()
    return host.partition(b":")[0].lower()
