"""How text is written in the file: addresses, URLs, networks, names and headers.

Each ``parse_*`` takes the text as written and returns it in canonical form, or raises
``BadValueError`` with what is wrong and what to write instead. Strict where leniency would be found
out in production: a port that is missing, a path that an endpoint would ignore, a host name that
is an IPv4 address with a typing error. Pure; microseconds a call.
"""

import re
from collections.abc import Callable
from ipaddress import IPv4Address, IPv6Address, ip_address, ip_network

from gateway.config_units import (
    BadValueError,
    parse_duration,
    parse_quantile,
    parse_rate,
    parse_share,
    parse_size,
    short,
)

_TOKEN = re.compile(r"[!#$%&'*+.^_`|~0-9A-Za-z-]{1,256}")
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.-]{0,63}")
_FUNCTION = re.compile(r"[A-Za-z_][\w.]*:[A-Za-z_][\w.]*", re.ASCII)
_LABEL = re.compile(r"[A-Za-z0-9_](?:[A-Za-z0-9_-]{0,61}[A-Za-z0-9_])?")
_PATH = re.compile(r"/[!-~]*")
_UNIX_MAX = 107


def _ip(text: str) -> IPv4Address | IPv6Address | None:
    try:
        return ip_address(text)
    except ValueError:
        return None


def _port(text: str, lowest: int) -> int:
    if not (text.isascii() and text.isdigit() and len(text) <= 5 and lowest <= int(text) <= 65535):
        raise BadValueError(
            f"not a port: {short(text)}", f"a port is a number from {lowest} to 65535"
        )
    return int(text)


def _host(text: str) -> str:
    """Check a host name or an address (IPv6 without its brackets); in lower case."""
    labels = text.removesuffix(".").split(".")
    if labels[-1].isdigit() and ":" not in text:
        if not isinstance(_ip(text), IPv4Address):
            raise BadValueError(f"not an IPv4 address: {short(text)}")
        return text
    if len(text) > 253 or not all(_LABEL.fullmatch(label) for label in labels):
        hint = "" if text.isascii() else "write an international name in its xn-- form"
        raise BadValueError(f"not a host name: {short(text)}", hint)
    return text.lower()


def _split_port(text: str) -> tuple[str, str | None]:
    """``host:port`` apart; the host checked, an IPv6 address in canonical form and brackets."""
    if text.startswith("["):
        inside, bracket, rest = text[1:].partition("]")
        address = _ip(inside)
        if not bracket or not isinstance(address, IPv6Address) or address.scope_id:
            raise BadValueError(f"not an IPv6 address: {short(text)}", "write [::1]:8080")
        if rest and not rest.startswith(":"):
            raise BadValueError(f"not an address: {short(text)}", "write [::1]:8080")
        return f"[{address}]", rest[1:] if rest else None
    if isinstance(_ip(text), IPv6Address) or text.count(":") > 1:
        raise BadValueError(f"an IPv6 address needs brackets: {short(text)}", "write [::1]:8080")
    host, colon, port = text.partition(":")
    return _host(host), port if colon else None


def _unix(text: str) -> str:
    path = text.removeprefix("unix:").removeprefix("//")
    if not path.startswith("/") or not path.isprintable() or path == "/":
        raise BadValueError(f"not the path of a socket: {short(text)}", "write unix:/run/name.sock")
    if len(path.encode(errors="replace")) > _UNIX_MAX:
        raise BadValueError(f"the path of a socket can have {_UNIX_MAX} bytes, not more")
    return f"unix:{path}"


def parse_address(text: str) -> str:
    """``host:port``, ``[v6]:port`` or ``unix:/path``, in canonical form."""
    if text.startswith("unix:"):
        return _unix(text)
    if "://" in text:
        bare = text.partition("://")[2].strip("/")
        raise BadValueError(
            f"an address to listen on has no scheme: {short(text)}", f"write {bare}"
        )
    if text.isascii() and text.isdigit():
        raise BadValueError(f"the address {text} has no host", f"write 127.0.0.1:{text}")
    if text.startswith(":") and text[1:].isdigit():
        hint = f"write 127.0.0.1{text} or, for every interface, 0.0.0.0{text}"
        raise BadValueError(f"the address {short(text)} has no host", hint)
    host, port = _split_port(text)
    if port is None:
        raise BadValueError(f"the address {short(text)} has no port", f"write {text}:8080")
    return f"{host}:{_port(port, 0)}"


def parse_endpoint(text: str) -> str:
    """An endpoint's URL: nothing but scheme, host and port, or a unix socket."""
    if text.startswith("unix:"):
        return _unix(text)
    scheme, separator, rest = text.partition("://")
    if not separator:
        raise BadValueError(f"the endpoint {short(text)} has no scheme", f"write http://{text}")
    if scheme.lower() not in ("http", "https"):
        raise BadValueError(
            f"cannot speak {short(scheme)} to an endpoint", "write http, https or unix:"
        )
    if "@" in rest:
        hint = "set the header authorization in a route's request_headers"
        raise BadValueError("an endpoint's URL has no user or password", hint)
    rest = rest.removesuffix("/")
    cut = re.search(r"[/?#]", rest)
    if cut:
        hint = f"write {scheme}://{rest[: cut.start()]}, and rewrite the path in the route"
        raise BadValueError("an endpoint's URL has no path and no query", hint)
    host, port = _split_port(rest)
    return f"{scheme.lower()}://{host}" + (f":{_port(port, 1)}" if port is not None else "")


def parse_url(text: str) -> str:
    scheme, separator, rest = text.partition("://")
    authority = re.split(r"[/?#]", rest)[0]
    if not separator or scheme not in ("http", "https") or "@" in authority:
        raise BadValueError(f"not a URL: {short(text)}", "write http://host:port/path")
    _, port = _split_port(authority)
    if port is not None:
        _port(port, 1)
    if not _PATH.fullmatch("/" + rest[len(authority) :]):
        raise BadValueError(f"not a URL: {short(text)}")
    return text


def parse_cidr(text: str) -> str:
    try:
        return str(ip_network(text))
    except ValueError as error:
        try:
            meant = str(ip_network(text, strict=False))
        except ValueError:
            hint = "write 10.0.0.0/8 or an address"
            raise BadValueError(f"not a network: {short(text)}", hint) from error
        raise BadValueError(
            f"{short(text)} has bits set behind the prefix", f"write {meant}"
        ) from error


def parse_host(text: str) -> str:
    name = text.removeprefix("*.")
    if ":" in name and not name.startswith("["):
        raise BadValueError(f"a host is matched without its port: {short(text)}")
    host, port = _split_port(name)
    if port is not None:
        raise BadValueError(f"a host is matched without its port: {short(text)}", f"write {host}")
    return text[: len(text) - len(name)] + host


def parse_path(text: str) -> str:
    if not text.startswith("/"):
        raise BadValueError(f"a path begins with /: {short(text)}", f"write /{text}")
    if not _PATH.fullmatch(text):
        raise BadValueError(f"not a path: {short(text)}", "percent-encode all but visible ASCII")
    return text


def parse_name(text: str) -> str:
    if not _NAME.fullmatch(text):
        raise BadValueError(f"not a name: {short(text)}", "letters, digits, _ . and -, at most 64")
    return text


def parse_input(text: str) -> str:
    """The name of a model's input, which is the model's business."""
    if not 1 <= len(text) <= 256:
        raise BadValueError(f"not the name of an input: {short(text)}", "1 to 256 characters")
    return text


def parse_function(text: str) -> str:
    if not _FUNCTION.fullmatch(text):
        raise BadValueError(f"not MODULE:FUNCTION: {short(text)}")
    return text


def parse_method(text: str) -> str:
    if not _TOKEN.fullmatch(text):
        raise BadValueError(f"not a method: {short(text)}")
    if text != text.upper():
        raise BadValueError(
            f"methods are in capitals: {short(text)}", f"did you mean {text.upper()!r}?"
        )
    if text in ("CONNECT", "TRACE"):
        raise BadValueError(f"{text} is refused by every route", "leave it out")
    return text


def parse_header(text: str) -> str:
    if not _TOKEN.fullmatch(text):
        raise BadValueError(f"not a header's name: {short(text)}")
    return text.lower()


def parse_header_value(text: str) -> str:
    if not text.isascii() or not text.isprintable() or text != text.strip():
        raise BadValueError("a header's value is visible ASCII without spaces around it")
    return text


def parse_hash_key(text: str) -> str:
    kind, colon, name = text.partition(":")
    if kind != "header" or not colon:
        raise BadValueError(f"cannot hash by {short(text)}", "write header:NAME")
    return f"header:{parse_header(name)}"


def parse_limit_key(text: str) -> str:
    if text in ("client", "route"):
        return text
    kind, colon, name = text.partition(":")
    if kind != "header" or not colon:
        hint = "write client, route or header:NAME"
        if _TOKEN.fullmatch(text) and text.lower() in ("authorization", "x-api-key", "cookie"):
            hint = f"write header:{text.lower()}"
        raise BadValueError(f"cannot limit by {short(text)}", hint)
    return f"header:{parse_header(name)}"


PARSERS: dict[str, Callable[[str], str | int | float]] = {
    "duration": parse_duration,
    "size": parse_size,
    "share": parse_share,
    "quantile": parse_quantile,
    "rate": parse_rate,
    "address": parse_address,
    "endpoint": parse_endpoint,
    "url": parse_url,
    "cidr": parse_cidr,
    "host": parse_host,
    "path": parse_path,
    "name": parse_name,
    "method": parse_method,
    "input": parse_input,
    "function": parse_function,
    "header": parse_header,
    "header_value": parse_header_value,
    "hash_key": parse_hash_key,
    "limit_key": parse_limit_key,
}
