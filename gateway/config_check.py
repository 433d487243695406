"""What no single value shows: references, collisions, routes that can never match, risky settings.

Runs on whatever could be read, also when other parts had errors, so that everything comes out in
one pass; a part with errors of its own is not judged twice.
"""

import resource
from collections.abc import Iterator
from ipaddress import ip_address
from itertools import pairwise

from gateway.config import Admin, Cluster, Config, Endpoint, Health, Route
from gateway.config_batch_check import check_batching
from gateway.config_convert import Converter
from gateway.config_files import check_files
from gateway.config_filters import check_filters, sections
from gateway.config_nodes import Path
from gateway.config_scalar import suggest
from gateway.config_units import format_unit

# Framing belongs to the proxy: changed by a route, it would be request smuggling by configuration.
_FRAMING = frozenset(
    (
        "connection",
        "content-length",
        "expect",
        "keep-alive",
        "proxy-connection",
        "te",
        "trailer",
        "transfer-encoding",
        "upgrade",
    )
)
_MAX_BUCKETS = 64
_WILDCARDS = {"0.0.0.0", "[::]"}  # noqa: S104 (compared, not bound)


def check(config: Config, found: Converter) -> None:
    """Add every problem between values to the problems of ``found``. Reads certificate files."""
    _listeners(config, found)
    if config.admin is not None:
        _admin(config.admin, found)
    for name, cluster in config.clusters.items():
        _cluster(cluster, ("clusters", name), found)
    # First, while a route that leads nowhere still counts as one that could be read.
    _routes_shadowed(config.routes, found)
    _routes(config, found)
    _telemetry(config, found)
    check_filters(config, found)
    check_batching(config, found)
    check_files(config, found)
    _limits(config, found)
    _warnings(config, found)


def _error(found: Converter, path: Path, message: str, hint: str = "") -> None:
    found.error(path, found.mark(path), message, hint)


def _warn(found: Converter, path: Path, message: str, hint: str = "") -> None:
    found.problems.warning(found.mark(path), message, hint)


def is_local(address: str) -> bool:
    """Whether only this machine can reach an address: loopback, or a unix socket."""
    if address.startswith("unix:"):
        return True
    host = address.rpartition(":")[0].strip("[]")
    try:
        return ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


def _collide(one: str, other: str) -> bool:
    """Whether binding both fails: the same, or a wildcard of the same family and port."""
    if one == other:
        return one.startswith("unix:") or not one.endswith(":0")
    if one.startswith("unix:") or other.startswith("unix:"):
        return False
    (host, _, port), (other_host, _, other_port) = one.rpartition(":"), other.rpartition(":")
    if port != other_port or port == "0" or host.startswith("[") != other_host.startswith("["):
        return False
    hosts = {host.replace("localhost", "127.0.0.1"), other_host.replace("localhost", "127.0.0.1")}
    return len(hosts) == 1 or bool(hosts & _WILDCARDS)


def _listeners(config: Config, found: Converter) -> None:
    bound: list[tuple[str, Path]] = [
        (each.address, ("listen", index, "address")) for index, each in enumerate(config.listen)
    ]
    if not bound and found.clean(("listen",)):
        _error(found, ("listen",), "no address to listen on")
    admin = config.admin
    if admin is not None and admin.listen is not None:
        bound.append((admin.listen, ("admin", "listen")))
    if admin is not None and admin.probes is not None:
        bound.append((admin.probes, ("admin", "probes")))
    for index, (address, path) in enumerate(bound):
        for earlier, earlier_path in bound[:index]:
            if not _collide(earlier, address):
                continue
            # A default is not to blame: point at the one that stands in the file.
            here, there = (path, earlier_path) if path in found.positions else (earlier_path, path)
            name = "the default of admin.listen" if there not in found.positions else _name(there)
            _error(found, here, f"the address {address} is taken by {name} ({earlier})")
            break


def _name(path: Path) -> str:
    return "another listener" if path[0] == "listen" else f"{path[0]}.{path[1]}"


def _admin(admin: Admin, found: Converter) -> None:
    if admin.listen is None or is_local(admin.listen):
        return
    if admin.token is None and found.clean(("admin", "token")):
        hint = "add token: file:PATH, or listen on 127.0.0.1 and open only admin.probes"
        message = f"admin.listen {admin.listen} can be reached from outside and has no token"
        _error(found, ("admin", "listen"), message, hint)


def _cluster(cluster: Cluster, path: Path, found: Converter) -> None:
    if not cluster.endpoints and found.clean((*path, "endpoints")):
        _error(found, (*path, "endpoints"), "a cluster needs at least one endpoint")
    seen: dict[str, int] = {}
    for index, endpoint in enumerate(cluster.endpoints):
        where: Path = (*path, "endpoints", index)
        if found.clean(where):
            _endpoint(endpoint, where, found)
        address = endpoint.url or endpoint.dns or ""
        if address and address in seen:
            hint = "to send it more, give it a weight"
            _error(found, where, f"the endpoint {address} is listed twice", hint)
        seen[address] = index
    if cluster.health is not None:
        _health(cluster.health, (*path, "health"), found)
    if cluster.tls is not None and (cluster.tls.cert is None) != (cluster.tls.key is None):
        missing = "key" if cluster.tls.key is None else "cert"
        if found.clean((*path, "tls")):
            _error(found, (*path, "tls"), f"a client certificate needs both: {missing} is missing")


def _endpoint(endpoint: Endpoint, path: Path, found: Converter) -> None:
    if (endpoint.url is None) == (endpoint.dns is None):
        _error(found, path, "an endpoint has exactly one of url and dns")
    elif endpoint.dns is not None:
        host = endpoint.dns.partition("://")[2]
        last = host.partition(":")[0].rpartition(".")[2]
        if endpoint.dns.startswith("unix:") or host.startswith("[") or last.isdigit():
            hint = f"write url: {endpoint.dns}"
            _error(found, (*path, "dns"), "dns needs a name that can be looked up", hint)


def _health(health: Health, path: Path, found: Converter) -> None:
    if health.kind == "tcp":
        for name in ("path", "expect"):
            if (*path, name) in found.positions:
                _error(found, (*path, name), f"a tcp check has no {name}")
    if not health.expect.status and found.clean((*path, "expect")):
        _error(found, (*path, "expect"), "no status would pass this check")


def _routes(config: Config, found: Converter) -> None:
    for what, parts in (("cluster", config.clusters), ("route", config.routes)):
        needed = what == "route" or any(
            route.cluster or not route.batching for route in config.routes
        )
        if not parts and needed and found.clean((f"{what}s",)):
            _error(found, (f"{what}s",), f"at least one {what} is needed")
    # A cluster that had errors is there all the same.
    known = {*config.clusters, *(str(path[1]) for path in found.positions if _is_cluster(path))}
    names: set[str] = set()
    for index, route in enumerate(config.routes):
        path: Path = ("routes", index)
        if not route.cluster:
            _no_cluster(route, path, found)
        elif route.cluster not in known:
            hint = suggest(route.cluster, sorted(known))
            hint = hint or ("there are: " + ", ".join(sorted(known)) if known else "")
            _error(found, (*path, "cluster"), f"there is no cluster {route.cluster!r}", hint)
        if route.name is not None and route.name in names:
            _error(found, (*path, "name"), f"two routes are named {route.name!r}")
        names.add(route.name or "")
        for header in (*route.request_headers.set, *route.request_headers.remove):
            if header in _FRAMING:
                part = "set" if header in route.request_headers.set else "remove"
                where: Path = (*path, "request_headers", part, header)
                _error(found, where, f"the header {header!r} belongs to the connection")
        for name in ("path", "prefix"):
            value = route.path if name == "path" else route.rewrite and route.rewrite.prefix
            where = (*path, "path") if name == "path" else (*path, "rewrite", "prefix")
            if value and any(mark in value for mark in "?#"):
                _error(found, where, "routes match the path, not the query")
    for path, filters in sections(config):
        where = (*path, "priority", "header")
        named = filters.priority is not None and filters.priority.header
        if where in found.positions and (named in _FRAMING or named == "host"):
            _error(found, where, f"the header {named!r} belongs to the connection")


def _no_cluster(route: Route, path: Path, found: Converter) -> None:
    if (*path, "cluster") in found.positions:
        return  # it has an error of its own
    if route.batching is None or route.batching.runner != "python":
        _error(found, path, "missing key 'cluster'")


def _is_cluster(path: Path) -> bool:
    return len(path) == 2 and path[0] == "clusters"


def _routes_shadowed(routes: tuple[Route, ...], found: Converter) -> None:
    clean = [number for number in range(len(routes)) if found.clean(("routes", number))]
    for place, index in enumerate(clean):
        for number in clean[:place]:
            if covers(routes[number], routes[index]):
                line = found.mark(("routes", number)).line
                message = f"this route can never match: the route on line {line} takes all of it"
                _error(found, ("routes", index), message, "put the narrower route first")
                break


def covers(earlier: Route, later: Route) -> bool:
    """Whether every request that ``later`` matches is taken by ``earlier``."""
    prefix = earlier.path.rstrip("/")
    path_covered = later.path.rstrip("/") == prefix or later.path.startswith(prefix + "/")
    methods_covered = not earlier.methods or (
        bool(later.methods) and set(later.methods) <= set(earlier.methods)
    )
    headers_covered = earlier.headers.items() <= later.headers.items()
    return path_covered and methods_covered and headers_covered and _host_covers(earlier, later)


def _host_covers(earlier: Route, later: Route) -> bool:
    if earlier.host is None:
        return True
    if later.host is None:
        return False
    wide = earlier.host.startswith("*.") and later.host.endswith(earlier.host[1:])
    return wide or earlier.host == later.host


def _telemetry(config: Config, found: Converter) -> None:
    buckets = config.telemetry.metrics.buckets
    path: Path = ("telemetry", "metrics", "buckets")
    if not buckets or any(one >= other for one, other in pairwise(buckets)):
        _error(found, path, "buckets must grow from one to the next, and there must be one")
    if len(buckets) > _MAX_BUCKETS:
        _error(found, path, f"{len(buckets)} buckets: at most {_MAX_BUCKETS}")


def _limits(config: Config, found: Converter) -> None:
    limits = config.limits
    if limits.replay_bytes > limits.replay_total:
        message = (
            f"replay_bytes {format_unit(limits.replay_bytes, 'size')} is more than "
            f"replay_total {format_unit(limits.replay_total, 'size')}"
        )
        name = "replay_bytes" if ("limits", "replay_bytes") in found.positions else "replay_total"
        _error(found, ("limits", name), message)


def _warnings(config: Config, found: Converter) -> None:
    _, files = resource.getrlimit(resource.RLIMIT_NOFILE)
    if files != resource.RLIM_INFINITY and config.limits.connections > files // 2:
        message = f"limits.connections {config.limits.connections} is more than half of the {files}"
        hint = "each exchange takes two; raise ulimit -n or lower limits.connections"
        _warn(found, ("limits", "connections"), f"{message} files this process may open", hint)
    for path, seconds, meaning in _clocks(config):
        if seconds == 0 and path in found.positions:
            _warn(found, path, f"{path[-1]} is 0: {meaning}")
    used = {route.cluster for route in config.routes}
    for name, cluster in config.clusters.items():
        if name not in used and found.clean(("routes",)):
            _warn(found, ("clusters", name), f"no route leads to the cluster {name!r}")
        secure = any("https://" in (each.url or each.dns or "") for each in cluster.endpoints)
        if cluster.tls is not None and not secure and found.clean(("clusters", name, "endpoints")):
            _warn(found, ("clusters", name, "tls"), "no endpoint of this cluster is https")
        if cluster.tls is not None and not cluster.tls.verify:
            message = "verify: false lets anyone on the way read and change everything"
            _warn(found, ("clusters", name, "tls", "verify"), message)


def _clocks(config: Config) -> Iterator[tuple[Path, float, str]]:
    """Clocks that may be 0, where they would stand, and what happens then."""
    yield ("timeouts", "idle"), config.timeouts.idle, "no client's connection is kept"
    yield ("drain", "timeout"), config.drain.timeout, "a drain cuts every running exchange"
    for name, cluster in config.clusters.items():
        path: Path = ("clusters", name, "connections", "idle")
        yield path, cluster.connections.idle, "no connection to an endpoint is used twice"
    for path, filters in sections(config):
        for name in ("default", "max", "first_byte", "stall"):
            if filters.deadline is not None and getattr(filters.deadline, name) is not None:
                seconds: float = getattr(filters.deadline, name)
                yield (*path, "deadline", name), seconds, "every exchange ends at once"
