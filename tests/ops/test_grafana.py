"""The dashboard against what a gateway exports: every expression is run by a real Prometheus."""

from __future__ import annotations

import json
import re
from typing import TYPE_CHECKING, Any

import pytest

from gateway.reference import families
from tests.ops.observed import observed
from tests.ops.prometheus import grouped, named, program, prometheus, run, selected
from tests.tidy import ROOT

if TYPE_CHECKING:
    from pathlib import Path

DASHBOARD: dict[str, Any] = json.loads((ROOT / "configs/grafana/tailrace.json").read_text())
PANELS: list[dict[str, Any]] = [each for each in DASHBOARD["panels"] if each["type"] != "row"]
TARGETS = [(panel["title"], each) for panel in PANELS for each in panel["targets"]]
EXPRESSIONS = [(title, target["expr"]) for title, target in TARGETS]
SCRAPED = {"job", "instance"}
"""Labels that Prometheus adds."""
MAY_BE_EMPTY = {"tailrace_dry_run_total", "tailrace_memory_ratio"}
"""No filter with ``dry_run`` here; and not every machine has a cgroup with a limit."""


def concrete(expression: str) -> str:
    """As Grafana asks it, everything selected."""
    expression = expression.replace("$__rate_interval", "1m")
    return re.sub(r"\$(job|instance|route|cluster)\b", ".*", expression)


async def known() -> dict[str, set[str]]:
    """The labels of each series' name, buckets and sums included."""
    found: dict[str, set[str]] = {}
    for each in await families():
        labels = set(each.labels)
        if each.kind == "histogram":
            found[each.name + "_bucket"] = labels | {"le"}
            found[each.name + "_sum"] = found[each.name + "_count"] = labels
        else:
            found[each.name] = labels
    return found


async def test_every_name_and_label_is_exported() -> None:
    labels = await known()
    for title, expression in EXPRESSIONS:
        names = named(expression)
        assert names, f"{title}: {expression}"
        assert names <= set(labels), title
        for name, asked in selected(expression):
            assert asked <= labels[name] | SCRAPED, f"{title}: {name}"
        everywhere = set().union(*(labels[each] for each in names))
        assert grouped(expression) <= everywhere | SCRAPED, title


async def test_every_metric_is_on_the_dashboard() -> None:
    shown = {name for _, expression in EXPRESSIONS for name in named(expression)}
    exported = set(await known())
    hidden = {each for each in exported if each.startswith("tailrace_")} - shown
    histograms = ("_sum", "_count", "_bucket")
    # What else the dashboard says of the same; a histogram is shown by one of its three.
    assert {each for each in hidden if not each.endswith(histograms)} == set()


def test_legends_name_labels_that_are_left() -> None:
    for title, target in TARGETS:
        for label in re.findall(r"\{\{(\w+)\}\}", target["legendFormat"]):
            groups = grouped(target["expr"]) | SCRAPED
            assert label in groups, f"{title}: {label}"


def test_panels_lie_side_by_side_and_are_told_apart() -> None:
    ids = [each["id"] for each in DASHBOARD["panels"]]
    assert len(set(ids)) == len(ids)
    taken: set[tuple[int, int]] = set()
    for panel in DASHBOARD["panels"]:
        place = panel["gridPos"]
        assert place["x"] + place["w"] <= 24
        cells = {
            (x, y)
            for x in range(place["x"], place["x"] + place["w"])
            for y in range(place["y"], place["y"] + place["h"])
        }
        assert not cells & taken, panel["title"]
        taken |= cells
    for panel in PANELS:
        assert panel["description"], panel["title"]
        refs = [each["refId"] for each in panel["targets"]]
        assert len(set(refs)) == len(refs)


def test_nothing_is_tied_to_one_installation() -> None:
    variables = {each["name"] for each in DASHBOARD["templating"]["list"]}
    assert variables == {"datasource", "job", "instance", "route", "cluster"}
    sources = [panel["datasource"] for panel in PANELS] + [
        each["datasource"] for _, each in TARGETS
    ]
    assert all(each == {"type": "prometheus", "uid": "${datasource}"} for each in sources)
    assert "__inputs" not in DASHBOARD
    used = set(re.findall(r"\$\{?(\w+)\}?", json.dumps(PANELS)))
    assert used <= variables | {"__rate_interval"}


def test_promtool_accepts_every_expression(tmp_path: Path) -> None:
    promtool = program("promtool")
    rules = [
        {"record": f"panel:{number}", "expr": concrete(expression)}
        for number, (_, expression) in enumerate(EXPRESSIONS)
    ]
    file = tmp_path / "rules.yaml"
    file.write_text(json.dumps({"groups": [{"name": "panels", "rules": rules}]}))
    run(promtool, "check", "rules", str(file))


@pytest.mark.timeout(180)
async def test_every_expression_has_an_answer(tmp_path: Path) -> None:
    program("prometheus")
    async with observed() as running:
        admin = running.server.admin
        assert admin is not None
        bound = admin.probe_addresses[0]
        async with prometheus(tmp_path, f"{bound[0]}:{bound[1]}") as server:
            await server.scraped(2)
            await running.everything()
            await server.scraped(3)
            for title, expression in EXPRESSIONS:
                found = await server.query(concrete(expression))
                if not named(expression) & MAY_BE_EMPTY:
                    assert found, f"nothing for {title}: {expression}"
            for each in DASHBOARD["templating"]["list"][1:]:
                asked = re.fullmatch(r"label_values\((.+), (\w+)\)", each["definition"])
                assert asked is not None
                selector, label = asked[1], asked[2]
                found = await server.query(f"count by ({label}) ({concrete(selector)})")
                assert all(label in one["metric"] for one in found)
                assert found
