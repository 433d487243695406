"""No file, however broken, gets anything but ``ConfigErrors`` out of the loader."""

from pathlib import Path
from tempfile import TemporaryDirectory

from hypothesis import given, settings
from hypothesis import strategies as st

from filters.admission import Config as Admission
from filters.admission import Queue
from filters.budget import Config as Budget
from filters.deadline import Config as Deadline
from filters.hedge import Config as Hedge
from filters.load_shed import Config as LoadShed
from filters.outlier import Config as Outlier
from filters.priority import Config as Priority
from filters.rate_limit import Config as RateLimit
from filters.retry import Config as Retry
from gateway.config import (
    AccessLog,
    Admin,
    Balance,
    Cluster,
    Config,
    Connections,
    Drain,
    Endpoint,
    Expect,
    Filters,
    Health,
    Limits,
    Listener,
    Rewrite,
    Route,
    Telemetry,
    Timeouts,
    Tracing,
    UpstreamTls,
)
from gateway.config_problem import ConfigErrors
from gateway.config_source import effective, load

REFERENCE = (Path(__file__).parent.parent / "configs" / "reference.yaml").read_text()
LINES = [line.partition(" #")[0] for line in REFERENCE.splitlines() if line.strip()]
LINES = [line for line in LINES if line.strip() and not line.lstrip().startswith("#")]
TOKENS = [
    *"[]{}:,&*!|>'\"%@`-?#\n\t \0",
    *("<<", "*x", "&x ", "!!int ", "---\n", "...\n", "no", "12:30", "0o7", "off", "~", "${", "${A"),
    *("${A}", "$${", "file:/dev/zero", "file:", "1e999", ".inf", ".nan", "9" * 50, "\u2028", "é"),
    *(
        "unix:/",
        "http://[",
        "\ud7ff",
        "\U0001f600",
        "0x",
        "-1",
        "2024-13-45",
        "2024-01-01",
        "=",
        "",
    ),
]


def outcome(text: str | bytes) -> Config | ConfigErrors:
    with TemporaryDirectory() as folder:
        file = Path(folder) / "a.yaml"
        file.write_bytes(text if isinstance(text, bytes) else text.encode())
        try:
            return load(file, {"A": "off"})
        except ConfigErrors as errors:
            failed = errors
    assert failed.problems
    assert all(str(each) for each in failed.problems)
    return failed


@st.composite
def mutated(draw: st.DrawFn) -> str:
    lines = list(LINES)
    for _ in range(draw(st.integers(1, 6))):
        at = draw(st.integers(0, len(lines) - 1))
        kind = draw(st.sampled_from(["drop", "repeat", "move", "insert", "replace", "cut"]))
        line = lines[at]
        place = draw(st.integers(0, len(line)))
        if kind == "drop" and len(lines) > 1:
            del lines[at]
        elif kind == "repeat":
            lines.insert(at, line)
        elif kind == "move":
            lines.insert(draw(st.integers(0, len(lines) - 1)), lines.pop(at))
        elif kind == "insert":
            lines[at] = line[:place] + draw(st.sampled_from(TOKENS)) + line[place:]
        elif kind == "replace":
            head, colon, _ = line.partition(": ")
            lines[at] = head + colon + draw(st.sampled_from(TOKENS))
        else:
            lines[at] = line[:place]
    return "\n".join(lines)


@settings(max_examples=300)
@given(mutated())
def test_mutations_of_the_reference(text: str) -> None:
    outcome(text)


@settings(max_examples=100)
@given(st.text(max_size=200) | st.lists(st.sampled_from(TOKENS), max_size=40).map("".join))
def test_any_text(text: str) -> None:
    outcome(text.encode(errors="surrogatepass"))


@settings(max_examples=100)
@given(st.binary(max_size=200))
def test_any_bytes(data: bytes) -> None:
    assert isinstance(outcome(data), ConfigErrors)


def test_the_unmutated_lines_load() -> None:
    assert isinstance(outcome("\n".join(LINES)), Config)


def pairs(each: st.SearchStrategy[float]) -> st.SearchStrategy[list[float]]:
    """Two of them, the smaller one first."""
    return st.tuples(each, each).map(sorted)


names = st.from_regex(r"[a-z][a-z0-9_.-]{0,10}", fullmatch=True)
seconds = st.floats(min_value=0.001, max_value=86400)
shares = st.floats(min_value=1e-6, max_value=1)
sizes = st.integers(0, 2**50)
counts = st.integers(1, 1000)
texts = st.text(
    st.characters(codec="utf-8", exclude_categories=["C", "Z"]) | st.just(" ") | st.just("$"),
    min_size=1,
    max_size=20,
)
paths = st.from_regex(r"/[a-z0-9/_-]{0,10}", fullmatch=True)
hosts = st.from_regex(r"(\*\.)?[a-z][a-z0-9]{0,5}(\.[a-z]{2,4})?", fullmatch=True)
ports = st.integers(1, 65535)
filters = st.builds(
    Filters,
    deadline=st.none()
    | st.builds(
        Deadline, default=st.none() | seconds, max=seconds, first_byte=seconds, stall=seconds
    ),
    priority=st.none() | st.builds(Priority, default=st.sampled_from(["critical", "sheddable"])),
    rate_limit=st.none()
    | st.builds(
        RateLimit,
        key=st.sampled_from(["client", "route", "header:x-a"]),
        rate=st.floats(min_value=1 / 86400, max_value=1e6),
        burst=counts,
        dry_run=st.booleans(),
    ),
    retry=st.none()
    | st.builds(
        Retry,
        attempts=st.integers(1, 10),
        on=st.lists(st.sampled_from(["connect", "reset", "timeout", 429, 503])).map(tuple),
        idempotent=st.sampled_from(["auto", "always", "never"]),
    ),
    admission=st.none()
    | st.builds(
        Admission,
        limit=st.just("adaptive") | counts,
        min=st.integers(1, 512),
        max=st.integers(512, 10_000),
        queue=st.builds(Queue, size=counts, timeout=seconds),
        dry_run=st.booleans(),
    ),
    load_shed=st.none()
    | st.builds(LoadShed, loop_lag=st.none() | seconds, memory=st.none() | shares),
    hedge=st.none()
    | st.builds(Hedge, after=st.integers(500, 999).map(lambda n: n / 1000), min=seconds),
    budget=pairs(shares).map(lambda pair: Budget(hedges=pair[0], ratio=pair[1])),
)
clusters = st.builds(
    Cluster,
    endpoints=st.lists(
        st.builds(
            Endpoint,
            url=ports.map(lambda port: f"http://h:{port}"),
            weight=st.floats(min_value=1e-9, max_value=1000),
        ),
        min_size=1,
        max_size=3,
        unique_by=lambda endpoint: endpoint.url,
    ).map(tuple),
    balance=st.builds(Balance, policy=st.sampled_from(["round_robin", "consistent_hash"])),
    connect_timeout=seconds,
    outlier=st.none()
    | pairs(seconds).map(lambda pair: Outlier(base_ejection=pair[0], max_ejection=pair[1])),
    connections=st.builds(Connections, max=counts, idle=seconds),
    tls=st.none() | st.builds(UpstreamTls, verify=st.booleans(), server_name=st.none() | hosts),
    health=st.none()
    | st.builds(
        Health,
        path=paths,
        timeout=seconds,
        expect=st.builds(
            Expect,
            status=st.lists(st.integers(100, 599), min_size=1).map(tuple),
            body=st.none() | texts,
        ),
    ),
)


@st.composite
def configs(draw: st.DrawFn) -> Config:
    found = draw(st.dictionaries(names, clusters, min_size=1, max_size=3))
    # Each path under a segment of its own, so that no route takes another's requests.
    routes = tuple(
        Route(
            cluster=draw(st.sampled_from(sorted(found))),
            path=f"/{number}{draw(paths)}",
            host=draw(st.none() | hosts),
            methods=draw(st.sampled_from([(), ("GET",), ("POST", "PUT")])),
            filters=draw(filters),
            rewrite=draw(st.none() | st.builds(Rewrite, prefix=paths)),
        )
        for number in range(draw(st.integers(1, 3)))
    )
    return Config(
        clusters=found,
        routes=routes,
        listen=(Listener(address=f"10.0.0.1:{draw(ports)}"),),
        admin=draw(st.none() | st.just(Admin(listen=None, probes="10.0.0.2:1"))),
        limits=Limits(headers=draw(counts), body_bytes=draw(sizes)),
        timeouts=draw(st.builds(Timeouts, head=seconds, idle=seconds, body_idle=seconds)),
        drain=draw(st.builds(Drain, grace=seconds, timeout=seconds)),
        filters=draw(filters),
        telemetry=Telemetry(
            tracing=draw(st.none() | st.builds(Tracing, otlp=st.just("http://c:1/v1"))),
            access_log=draw(st.none() | st.builds(AccessLog, sample=shares, path=texts)),
        ),
    )


@settings(max_examples=100)
@given(configs())
def test_every_configuration_is_written_back_and_read_again(config: Config) -> None:
    again = outcome(effective(config))
    assert again == config, str(again)
