"""Pure: what is wrong, in words. The first thing on the dashboard and in ``tailrace top``.

The sentences are in order of what an operator does first: nobody serves, somebody is out, callers
are refused, callers see failures, the configuration is not the one that was meant.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, NamedTuple

from gateway.dashboard_sample import CLASSES, REFUSED

if TYPE_CHECKING:
    from gateway.dashboard_sample import Sample

BAD, WARN, GOOD = "bad", "warn", "good"
NOTABLE = 0.005
"""Refused or failed shares below this are no news."""
FEW = 10
"""Ended exchanges below which a share says nothing."""
OUT = ("ejected", "unhealthy", "probing")
MOST = 8

WHY = {
    "no_route": "no route matches",
    "deadline": "the deadline passed",
    "deadline_unreachable": "the deadline cannot be met",
    "rate_limited": "over the rate limit",
    "shed": "more comes than is served",
    "strained": "the gateway itself is strained",
    "queue_full": "the queue is full",
    "queue_timeout": "waited too long in the queue",
    "no_endpoint": "no endpoint serves",
    "quarantined": "requests that spoil batches",
    "connections": "too many connections",
    "connect_failed": "endpoints refuse connections",
    "connect_timeout": "connecting takes too long",
    "pool_exhausted": "all connections to endpoints are busy",
    "upstream_reset": "endpoints break off",
    "upstream_protocol": "endpoints answer nonsense",
    "upstream_truncated": "answers end too early",
    "upstream_status": "endpoints answer with errors",
    "first_byte_timeout": "no first byte in time",
    "stall": "answers stall",
    "poison": "requests that break endpoints",
    "bisection_budget": "too many spoiled batches to find out by whom",
    "batch_failed": "whole batches fail",
    "batch_answer": "answers do not fit their batches",
    "internal": "a fault of the gateway, see its log",
    "5xx": "endpoints answer with errors",
}


class Line(NamedTuple):
    level: str
    text: str


def headline(state: dict[str, Any], recent: Sample) -> list[Line]:
    """At least one line, worst first. ``state`` as in ``dashboard_state.py``; ``recent``: the last
    seconds together. O(endpoints + routes)."""
    lines: list[Line] = []
    if state["draining"]:
        lines.append(Line(WARN, "draining: not ready, finishing what is under way"))
    for cluster in state["clusters"]:
        lines += _cluster(cluster)
    lines += _refused(recent)
    lines += _failed(recent)
    lines += [
        Line(WARN, f"{route['name']}: {route['waiting']} wait for one of {route['limit']} permits")
        for route in state["routes"]
        if route.get("overloaded")
    ]
    error = state["config"]["last_error"]
    if error:
        lines.append(Line(WARN, f"the last reload failed, the old configuration stays: {error}"))
    strained = state["gateway"].get("strained")
    if strained:
        lines.append(Line(BAD, f"the gateway itself is strained: {strained}"))
    order = {BAD: 0, WARN: 1, GOOD: 2}
    lines.sort(key=lambda line: order[line.level])
    return lines[:MOST] or [_fine(state, recent)]


def _cluster(cluster: dict[str, Any]) -> list[Line]:
    endpoints = cluster["endpoints"]
    total, name = cluster["total"], cluster["name"]
    out = [each for each in endpoints if each["state"] in OUT]
    serve = total - cluster["out"]
    found = []
    if out and not serve:
        why = _short(out[0]["why"])
        text = f"the only endpoint of {name} is out: {why}"
        if total > 1:
            all_the_same = "; they are tried all the same" if cluster["tried"] else ""
            text = f"all {total} endpoints of {name} are out: {why}{all_the_same}"
        found.append(Line(BAD, text))
    elif len(out) > 3:
        first = _short(out[0]["why"])
        text = f"{cluster['out']} endpoints of {name} are out; {serve} of {total} serve; {first}"
        found.append(Line(BAD if serve * 2 < total else WARN, text))
    else:
        level = BAD if serve * 2 < total else WARN
        found += [
            Line(
                level,
                f"endpoint {each['endpoint']} is {each['state']}: {_short(each['why'])}; "
                f"{serve} of {total} serve",
            )
            for each in out
        ]
    if cluster["doubted"]:
        found.append(Line(BAD, f"every endpoint of {name} looks bad, so none is ejected"))
    pushing = [each for each in endpoints if each["pushed_back"] and each["state"] == "healthy"]
    if pushing:
        who = pushing[0]["endpoint"] if len(pushing) == 1 else f"{len(pushing)} endpoints"
        verb = "pushes" if len(pushing) == 1 else "push"
        found.append(Line(WARN, f"{who} of {name} {verb} back: they ask for less load"))
    return found


def _refused(recent: Sample) -> list[Line]:
    """One line for the classes that are refused, with the commonest reason."""
    if recent.ended < FEW or recent.refused < NOTABLE * recent.ended:
        return []
    shares = []
    worst = WARN
    for name in reversed(CLASSES):
        came, refused = recent.classes.get(name, (0, 0))
        if came and refused >= NOTABLE * came:
            shares.append(f"{_percent(refused / came)} of {name}")
            if name.startswith("critical"):
                worst = BAD
    refusals = {code: n for code, n in recent.reasons.items() if code in REFUSED}
    code = max(refusals, key=refusals.__getitem__, default="")
    whom = " and ".join(shares[:2]) or _percent(recent.refused / recent.ended)
    why = f": {WHY.get(code, code)} ({code})" if code else ""
    return [Line(worst, f"refusing {whom}{why}")]


def _failed(recent: Sample) -> list[Line]:
    if recent.ended < FEW or recent.failed < NOTABLE * recent.ended:
        return []
    failures = {
        code: n for code, n in recent.reasons.items() if code not in REFUSED and code in WHY
    }
    code = max(failures, key=failures.__getitem__, default="")
    why = f": {WHY[code]} ({code})" if code else ""
    return [Line(BAD, f"{_percent(recent.failed / recent.ended)} of answers are failures{why}")]


def _fine(state: dict[str, Any], recent: Sample) -> Line:
    total = sum(each["total"] for each in state["clusters"])
    serve = "1 endpoint serves" if total == 1 else f"all {total} endpoints serve"
    if not recent.ended or not recent.seconds:
        return Line(GOOD, f"everything is fine: {serve}, no traffic now")
    rate = recent.ended / recent.seconds
    return Line(GOOD, f"everything is fine: {serve}, {rate:,.0f} requests/s")


def _percent(share: float) -> str:
    return f"{share:.0%}" if share >= 0.095 else f"{share:.1%}"


def _short(why: str) -> str:
    """Without what changes every second."""
    return why.partition("; for ")[0].partition("; the next request")[0][:160]
