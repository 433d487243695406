"""The alerts: each fires when it should and not when it must not, by ``promtool test rules``; what
they name is exported."""

from __future__ import annotations

import re
import shutil
from typing import TYPE_CHECKING, Any

import pytest
import yaml

from filters.api import Reason
from tests.ops.prometheus import grouped, named, program, run, selected
from tests.ops.test_grafana import known
from tests.tidy import ROOT

if TYPE_CHECKING:
    from pathlib import Path

FOLDER = ROOT / "configs" / "prometheus"
RULES: list[dict[str, Any]] = [
    rule
    for group in yaml.safe_load((FOLDER / "alerts.yaml").read_text())["groups"]
    for rule in group["rules"]
]
TESTS: list[dict[str, Any]] = yaml.safe_load((FOLDER / "alerts_test.yaml").read_text())["tests"]
NOT_OURS = {"up"}


async def test_every_name_and_label_is_exported() -> None:
    labels = await known()
    for rule in RULES:
        expression = rule["expr"]
        names = named(expression)
        assert names <= set(labels)
        assert names or set(re.findall(r"^\w+", expression)) <= NOT_OURS, rule["alert"]
        for name, asked in selected(expression):
            assert asked <= labels[name] | {"job", "instance"}, rule["alert"]
        everywhere = set().union(*(labels[each] for each in names), {"job", "instance"})
        assert grouped(expression) <= everywhere, rule["alert"]
        told = set(re.findall(r"\$labels\.(\w+)", str(rule["annotations"])))
        assert told <= (grouped(expression) or everywhere), rule["alert"]


def test_every_reason_that_is_named_exists() -> None:
    known_reasons = {each.value for each in Reason}
    for rule in RULES:
        for codes in re.findall(r'reason=~?"([^"]*)"', rule["expr"]):
            assert set(codes.split("|")) <= known_reasons, rule["alert"]


@pytest.mark.parametrize("rule", RULES, ids=lambda rule: rule["alert"])
def test_an_alert_says_what_is_wrong_and_is_tested_both_ways(rule: dict[str, Any]) -> None:
    assert rule["labels"]["severity"] in ("page", "ticket")
    assert set(rule["annotations"]) == {"summary", "description"}
    fired = [
        bool(each["exp_alerts"])
        for test in TESTS
        for each in test["alert_rule_test"]
        if each["alertname"] == rule["alert"]
    ]
    assert set(fired) == {True, False}


def test_promtool_runs_the_tests_of_the_alerts() -> None:
    promtool = program("promtool")
    run(promtool, "check", "rules", str(FOLDER / "alerts.yaml"))
    run(promtool, "test", "rules", str(FOLDER / "alerts_test.yaml"))


def test_these_tests_can_fail(tmp_path: Path) -> None:
    promtool = program("promtool")
    shutil.copytree(FOLDER, tmp_path, dirs_exist_ok=True)
    rules = tmp_path / "alerts.yaml"
    for right, wrong in (("> 0.9\n", "> 9\n"), ("== 0\n        for: 1m", ">= 0\n        for: 1m")):
        text = (FOLDER / "alerts.yaml").read_text()
        assert right in text
        rules.write_text(text.replace(right, wrong))
        with pytest.raises(AssertionError, match="FAILED"):
            run(promtool, "test", "rules", str(tmp_path / "alerts_test.yaml"))
