"""The references of metrics, reason codes and the configuration, written from the code:
``docs/metrics.md``, ``docs/reasons.md`` and ``docs/configuration.md``.

    python -m gateway.reference [FOLDER]

Run it in the root of the repository: the words beside each field are those of
``configs/reference.yaml``.

A test holds the files against what this writes.
"""

from __future__ import annotations

import asyncio
import sys
from pathlib import Path
from typing import TYPE_CHECKING

from filters.api import Priority, Reason
from filters.hedge import Refusal
from filters.race import End
from filters.retry import Stop
from filters.standing import Cause
from gateway import config
from gateway.collect import STATES, collect
from gateway.exposition import machine
from gateway.metrics import SERIES
from gateway.reasons import MEANINGS
from gateway.reference_config import configuration
from gateway.replies import TABLE
from gateway.server import Server
from gpu_batcher.flight import Why

if TYPE_CHECKING:
    from collections.abc import Iterable

    from gateway.exposition import Family

RUNNERS = ("http", "system_shared_memory", "cuda_shared_memory", "python")
WRITTEN = "<!-- Written by `python -m gateway.reference`. Do not edit. -->"


async def families() -> list[Family]:
    """Every metric that there is, of a gateway that was started for this and has seen nothing."""
    endpoint = config.Endpoint(url="http://127.0.0.1:9")
    server = Server(
        config.Config(
            listen=(config.Listener(address="127.0.0.1:0"),),
            admin=None,
            clusters={"c": config.Cluster(endpoints=(endpoint,))},
            routes=(config.Route(cluster="c", path="/"),),
            telemetry=config.Telemetry(access_log=None),
        )
    )
    await server.start()
    try:
        return [*collect(server), *machine()]
    finally:
        await server.stop()


def values() -> dict[str, str]:
    """What each label may say."""
    retry = _list(["budget", *(each.value for each in Stop if each is not Stop.FINAL)])
    hedge = _list(each.value for each in Refusal)
    return {
        "route": "The route's `name` or, without one, what it matches: `/`, `llm.test/v1`, "
        "`/v1[POST]`; `-` for what no route matches. At most "
        f"{SERIES}, what comes later is `other`",
        "cluster": "The cluster's name; `-` for what no route matches",
        "endpoint": f"HOST:PORT, or `unix:PATH`. At most {SERIES}, what comes later is `other`",
        "code": "The class of the status: `2xx`",
        "reason": "A [reason code](reasons.md), or empty",
        "priority": _list(each.name.lower() for each in Priority),
        "state": f"Of an endpoint: {_list(STATES)}. Of a connection: `idle`, `busy`. Of a batch's "
        "buffer: `in_use`, `free`, `lost` (never given back, and not lent again)",
        "why": f"Of a retry: {retry}. Of a hedge: {hedge} (`samples`: too little is known of the "
        f"route). Of a batch: {_list(each.value for each in Why)}",
        "how": "`joined`; `alone`: not understood whole, or too large; `malformed`",
        "runner": _list(RUNNERS),
        "outcome": "Of the second attempt: " + _list(each.value for each in End),
        "cause": _list(each.value for each in Cause),
        "would": "The reason code of the refusal, `queue` or `hedge`",
        "result": "Of a reload: `success`, `failure`. Of a span: `exported`, `failed` (the "
        "collector did not take it), `dropped` (too many waited)",
        "version": "That of the gateway",
    }


def _list(names: Iterable[str]) -> str:
    return ", ".join(f"`{each}`" for each in names)


def metrics(found: list[Family]) -> str:
    """``docs/metrics.md``."""
    buckets = ", ".join(f"{bound:g}" for bound in config.Metrics().buckets)
    lines = [
        "# Metrics",
        "",
        WRITTEN,
        "",
        "`GET /metrics` on the admin listener and on `admin.probes`, in Prometheus' text format.",
        "[configs/grafana/tailrace.json](../configs/grafana/tailrace.json) is a dashboard of them,",
        "[configs/prometheus/alerts.yaml](../configs/prometheus/alerts.yaml) are alerts.",
        "",
        "| metric | kind | labels | |",
        "| --- | --- | --- | --- |",
        *(
            f"| `{each.name}` | {each.kind} | {', '.join(each.labels)} | {each.doc} |"
            for each in found
        ),
        "",
        "## Labels",
        "",
        "Nothing that a client or a model server sends becomes a label: paths, hosts, methods,",
        "models, keys and tenants are in the log and in traces.",
        "",
        "| label | |",
        "| --- | --- |",
        *(f"| `{name}` | {text} |" for name, text in values().items()),
        "",
        "## Histograms",
        "",
        "The buckets, in seconds, `telemetry.metrics.buckets`:",
        f"{buckets}.",
        "A reload with other buckets begins the histograms again. Those of batches are fixed.",
        "",
        "## Saturation, for autoscaling",
        "",
        "Two figures for two questions. `tailrace_saturation` is how full the gateway itself is:",
        "the highest of its CPU over the last seconds, as a share of the one core that an event",
        "loop can use, of open connections as a share of `limits.connections`, and of",
        "`tailrace_memory_ratio` and `tailrace_open_files_ratio`. More gateways lower it, so it",
        "scales gateways that stand alone.",
        "",
        "`tailrace_admission_saturation` is how full the model servers are: what is in flight and",
        "what waits, divided by the route's limit. 0 when nothing happens, 1 when every permit is",
        "given out, 1.5 when half as many wait as are served. Scale model servers so that it stays",
        "at about 0.8. A fixed limit says from the start where 1 is; an adaptive one begins at",
        "`admission.initial` (512) and finds the server's best concurrency only when there is more",
        "to do than that, so until then the figure is low: in front of servers whose slots are",
        "known, write the limit, or `initial`. Refused exchanges neither wait nor are in flight:",
        "while `tailrace_overloaded` is 1, the figure is at least about 1 and says no more of how",
        "much comes. Requests that are batched take no permit.",
    ]
    return "\n".join(lines) + "\n"


def reasons() -> str:
    """``docs/reasons.md``."""
    lines = [
        "# Reason codes",
        "",
        WRITTEN,
        "",
        "One closed list for `x-tailrace-reason`, the body's `code`, the access log, the metrics",
        "and the admin listener. From the symptom to the code:",
        "[At three in the morning](filters.md#at-three-in-the-morning).",
        "",
        "*again*: whether trying again can help, and so whether the answer carries `Retry-After`",
        "(at least so many seconds) or `x-should-retry: false`.",
        "",
        "| code | status | again | what it is | remedy |",
        "| --- | --- | --- | --- | --- |",
    ]
    for each in Reason:
        reply, meaning = TABLE[each], MEANINGS[each]
        again = "no" if reply.retry is None else f"{reply.retry:g} s"
        lines.append(
            f"| `{each.value}` | {reply.status} | {again} | {meaning.what} | {meaning.remedy} |"
        )
    return "\n".join(lines) + "\n"


def write(folder: Path) -> None:
    found = asyncio.run(families())
    (folder / "metrics.md").write_text(metrics(found))
    (folder / "reasons.md").write_text(reasons())
    commented = (Path("configs") / "reference.yaml").read_text()
    (folder / "configuration.md").write_text(configuration(commented))


if __name__ == "__main__":
    write(Path(sys.argv[1] if len(sys.argv) > 1 else "docs"))
