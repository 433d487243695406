"""The structs of the whole configuration file, with every default and its reason.

Units after loading, whatever was written in the file: durations are float seconds,
sizes are int bytes, shares (percentages) are floats from 0 to 1, rates are floats per second.
``None`` means off, and is written ``off``. These names are the public contract;
``configs/reference.yaml`` documents each of them and ``tests/test_tidy.py`` holds the two
together. Bounds stand here, beside the field they bound, as ``msgspec.Meta``; how a value is
written stands in ``extra={"unit": ...}`` and is read by ``config_units.py``. Reading YAML into
these structs, with positions for every error, is the business of ``config_source.py``.
Constructing a struct directly checks nothing.
"""

from typing import Annotated, Literal

import msgspec

from filters.admission import Config as Admission
from filters.budget import Config as Budget
from filters.deadline import Config as Deadline
from filters.hedge import Config as Hedge
from filters.load_shed import Config as LoadShed
from filters.outlier import Config as Outlier
from filters.priority import Config as Priority
from filters.rate_limit import Config as RateLimit
from filters.retry import Config as Retry
from filters.units import Count, Duration, HashKey, HeaderName, Share, Size, Struct
from gateway.config_batching import Batching

Address = Annotated[str, msgspec.Meta(extra={"unit": "address"})]
"""Where to listen: ``host:port``, ``[v6]:port`` or ``unix:/path``; port 0 lets the system pick."""
Cidr = Annotated[str, msgspec.Meta(extra={"unit": "cidr"})]
"""A network, or one address, in the canonical form of the ``ipaddress`` module."""
File = Annotated[str, msgspec.Meta(extra={"unit": "file"})]
"""A path; a relative one starts at the folder of the configuration file. Absolute once loaded."""
Url = Annotated[str, msgspec.Meta(extra={"unit": "url"})]
"""``http`` or ``https``, a path allowed."""
EndpointUrl = Annotated[str, msgspec.Meta(extra={"unit": "endpoint"})]
"""``http://host[:port]``, ``https://host[:port]`` or ``unix:/path``; no path, query or user."""
Name = Annotated[str, msgspec.Meta(extra={"unit": "name"})]
"""A metric label and a piece of an admin URL, so: letters, digits, ``_ . -``, at most 64."""
Host = Annotated[str, msgspec.Meta(extra={"unit": "host"})]
"""A host name without a port, in lower case; ``*.example.com`` is any name below it."""
UrlPath = Annotated[str, msgspec.Meta(extra={"unit": "path"})]
HeaderValue = Annotated[str, msgspec.Meta(extra={"unit": "header_value"})]
Method = Annotated[str, msgspec.Meta(extra={"unit": "method"})]
Status = Annotated[int, msgspec.Meta(ge=100, le=599)]
Wait = Annotated[float, msgspec.Meta(ge=0.001, extra={"unit": "duration"})]
"""A duration that cannot be zero, in seconds."""
HeadSize = Annotated[int, msgspec.Meta(ge=1024, le=16 * 1024**2, extra={"unit": "size"})]


class Secret(msgspec.Struct, frozen=True):
    """A value that is used but never printed: ``repr``, ``/config`` and logs show ``source``.

    ``source`` is what stands in the file when that is a reference (``file:...``, ``${NAME}``),
    and ``***`` when the value itself stands there.
    """

    value: str
    source: str = "***"

    def __repr__(self) -> str:
        return f"Secret({self.source})"

    __str__ = __repr__


class ListenerTls(Struct, frozen=True):
    """``client_ca`` asks every client for a certificate signed by one of these authorities."""

    cert: File
    key: File
    client_ca: File | None = None


class Listener(Struct, frozen=True):
    """One bound address: ``host:port``, ``[v6]:port`` or ``unix:/path``."""

    address: Address
    tls: ListenerTls | None = None


class Admin(Struct, frozen=True):
    """The admin listener. On by default, and on loopback, because an operator who cannot look
    inside is blind, and one who exposes it by accident is worse off.

    ``probes`` is a second address that serves only ``/livez``, ``/readyz`` and ``/metrics``: what
    the kubelet and Prometheus need from outside. ``token`` is needed for whatever changes
    something when ``listen`` is not on loopback or a unix socket.
    """

    listen: Address | None = "127.0.0.1:9901"
    probes: Address | None = None
    token: Secret | None = None


class Limits(Struct, frozen=True):
    """Per process unless said otherwise. A limit on everything, in bytes and in counts.

    ``head_bytes`` 64 KiB: bearer tokens and tracing baggage fit, a flood does not. ``headers``
    and ``target_bytes`` are what nginx and Apache accept by default. ``body_bytes`` 1 GiB:
    images and tensors fit. ``connections`` stays far below the usual hard limit of open files.
    ``pipeline``: requests on one connection that may wait for their turn. ``replay_bytes``
    covers nearly every prompt; a larger body streams through and is sent once; all kept
    bodies together take at most ``replay_total``.
    """

    head_bytes: HeadSize = 64 * 1024
    headers: Annotated[int, msgspec.Meta(ge=1, le=10_000)] = 100
    target_bytes: Annotated[int, msgspec.Meta(ge=64, le=1024**2, extra={"unit": "size"})] = 8190
    body_bytes: Size = 1024**3
    connections: Annotated[int, msgspec.Meta(ge=1, le=10_000_000)] = 10_000
    pipeline: Annotated[int, msgspec.Meta(ge=1, le=1000)] = 16
    replay_bytes: Size = 1024**2
    replay_total: Size = 256 * 1024**2


class Timeouts(Struct, frozen=True):
    """The downstream clocks. ``head`` and ``body_idle`` are what ends a slowloris.

    ``head`` runs from the first byte of a head to its last; ``idle`` between two requests of a
    connection (75 s: longer than the 60 s of the usual load balancer, so that the balancer closes
    first and never sends into a closing connection); ``body_idle`` between two bytes of an
    upload. With ``idle`` 0 no connection is kept.
    """

    head: Wait = 10.0
    idle: Duration = 75.0
    body_idle: Wait = 30.0


class Drain(Struct, frozen=True):
    """``grace``: still accepting, already not ready, so that load balancers notice (5 s is one
    probe interval). ``timeout``: the hard bound on waiting for running exchanges (120 s: most
    generations end; keep it below ``terminationGracePeriodSeconds``)."""

    grace: Duration = 5.0
    timeout: Duration = 120.0


class Endpoint(Struct, frozen=True):
    """``url`` is one endpoint; ``dns`` expands to one endpoint for each address of its name.
    Exactly one of them. ``weight`` is relative to the other endpoints of the cluster."""

    url: EndpointUrl | None = None
    dns: EndpointUrl | None = None
    weight: Annotated[float, msgspec.Meta(gt=0, le=1000)] = 1.0


class Balance(Struct, frozen=True):
    """``peak_ewma`` because replicas of one model differ in load and requests in cost, which
    round robin cannot see. ``hash_by`` and ``bound`` belong to ``consistent_hash``: an endpoint
    takes at most ``bound`` times the mean load (1.25: the usual choice for bounded loads) before
    the next one on the ring is asked."""

    policy: Literal["round_robin", "least_request", "peak_ewma", "consistent_hash"] = "peak_ewma"
    hash_by: HashKey = "header:x-session-id"
    bound: Annotated[float, msgspec.Meta(gt=1, le=100)] = 1.25


class Connections(Struct, frozen=True):
    """Per endpoint. ``idle`` is below 5 s because uvicorn, and so vLLM, closes idle connections
    after 5 s; ``max`` is above the largest batch that a model server runs at once."""

    max: Annotated[int, msgspec.Meta(ge=1, le=1_000_000)] = 1024
    idle: Duration = 4.0


class UpstreamTls(Struct, frozen=True):
    """For ``https`` endpoints. Without ``ca`` the system's authorities are trusted.
    ``server_name`` replaces the endpoint's host in SNI and in the check of the certificate."""

    ca: File | None = None
    cert: File | None = None
    key: File | None = None
    server_name: Host | None = None
    verify: bool = True


class Expect(Struct, frozen=True):
    """What a passing health check looks like; ``body`` must occur in the first 64 KiB."""

    status: tuple[Status, ...] = (200,)
    body: str | None = None


class Health(Struct, frozen=True):
    """Active checks; none run unless ``health`` is written. Three failures in a row take an
    endpoint out (one lost check is no outage), two successes bring it back."""

    kind: Literal["http", "tcp"] = "http"
    path: UrlPath = "/health"
    interval: Annotated[float, msgspec.Meta(ge=0.05, extra={"unit": "duration"})] = 5.0
    timeout: Wait = 5.0
    healthy_after: Count = 2
    unhealthy_after: Count = 3
    expect: Expect = Expect()


class Cluster(Struct, frozen=True):
    """``connect_timeout`` 1 s: a connection inside one network takes milliseconds or fails.
    ``resolve``: how often names are looked up again; headless services change within seconds."""

    endpoints: tuple[Endpoint, ...]
    balance: Balance = Balance()
    connect_timeout: Wait = 1.0
    connections: Connections = Connections()
    resolve: Annotated[float, msgspec.Meta(ge=0.1, extra={"unit": "duration"})] = 5.0
    tls: UpstreamTls | None = None
    health: Health | None = None
    outlier: Outlier | None = Outlier()


class Filters(Struct, frozen=True):
    """The effective filters of one route: the file's defaults with the route's own laid over."""

    deadline: Deadline | None = Deadline()
    priority: Priority | None = Priority()
    rate_limit: RateLimit | None = None
    admission: Admission | None = Admission()
    load_shed: LoadShed | None = LoadShed()
    hedge: Hedge | None = None
    retry: Retry | None = Retry()
    budget: Budget = Budget()


class Rewrite(Struct, frozen=True):
    """``prefix`` takes the place of the route's ``path``."""

    prefix: UrlPath


class RequestHeaders(Struct, frozen=True):
    """Changes to the request on its way up: ``remove`` first, then ``set``."""

    set: dict[HeaderName, Secret] = msgspec.field(default_factory=dict)
    remove: tuple[HeaderName, ...] = ()


class Route(Struct, frozen=True):
    """``path`` is a prefix that matches whole segments; routes are tried in the written order.
    Whatever is left out matches everything. Only a route whose model lives in this process
    (``batching.runner: python``) can do without a ``cluster``."""

    cluster: Name | None = None
    name: Name | None = None
    host: Host | None = None
    path: UrlPath = "/"
    methods: tuple[Method, ...] = ()
    headers: dict[HeaderName, HeaderValue] = msgspec.field(default_factory=dict)
    filters: Filters = Filters()
    batching: Batching | None = None
    rewrite: Rewrite | None = None
    request_headers: RequestHeaders = RequestHeaders()


class Metrics(Struct, frozen=True):
    """``buckets`` in seconds, from a cached classification to a long generation."""

    buckets: tuple[Annotated[float, msgspec.Meta(gt=0)], ...] = (
        0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 300, 1800,
    )  # fmt: skip


class Tracing(Struct, frozen=True):
    """Spans over OTLP/HTTP. ``sample`` 1 %: an unsampled request costs no span object."""

    otlp: Url
    sample: Share = 0.01
    service_name: str = "tailrace"


class AccessLog(Struct, frozen=True):
    """``path`` is ``stdout``, ``stderr`` or a file."""

    format: Literal["json", "text"] = "json"
    sample: Share = 1.0
    path: str = "stdout"


class Telemetry(Struct, frozen=True):
    """``debug_headers`` adds endpoint, attempts and queue time to answers; off, because they tell
    a client what stands behind the gateway."""

    metrics: Metrics = Metrics()
    tracing: Tracing | None = None
    access_log: AccessLog | None = AccessLog()
    debug_headers: bool = False


class Config(Struct, frozen=True):
    """One configuration file, complete. Everything but ``clusters`` and ``routes`` has a default.

    ``listen`` is loopback because whoever wants the network to reach a model says so. ``trust``
    is whose ``Forwarded``, priority and deadline headers are believed: a sidecar's neighbours.
    """

    clusters: dict[Name, Cluster]
    routes: tuple[Route, ...]
    listen: tuple[Listener, ...] = (Listener(address="127.0.0.1:8080"),)
    admin: Admin | None = Admin()
    trust: tuple[Cidr, ...] = ("127.0.0.0/8", "::1/128")
    limits: Limits = Limits()
    timeouts: Timeouts = Timeouts()
    drain: Drain = Drain()
    filters: Filters = Filters()
    telemetry: Telemetry = Telemetry()
