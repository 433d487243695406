"""configs/helm/tailrace as Helm renders it: linted, valid, and by our own rules, for each way in
which it can be installed; and what its schema refuses."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest
import yaml

from tests.ops import rules, tools
from tests.ops.installations import (
    CHART,
    EVERYTHING,
    INSTALLATIONS,
    MODEL,
    Values,
    documents,
    rendered,
)
from tests.tidy import ROOT

VERSIONS = ("1.30.0", "1.37.0")


def test_lint_has_nothing_to_say() -> None:
    helm = tools.module("helm_python")
    for values in INSTALLATIONS.values():
        report = helm.lint(CHART, values, strict=True)
        assert report["errors"] == []
        told = [each["error"] for each in report["messages"]]
        assert told == ["icon is recommended"]  # an icon is an address, and there is none


@pytest.mark.parametrize("version", VERSIONS)
@pytest.mark.parametrize("installation", INSTALLATIONS)
def test_every_object_is_valid(installation: str, version: str) -> None:
    validate = tools.module("kubernetes_validate").validate
    for each in documents(INSTALLATIONS[installation]):
        assert each["metadata"]["name"].startswith("demo-tailrace")
        if each["kind"] != "ServiceMonitor":
            validate(each, version, strict=True)


@pytest.mark.parametrize("installation", INSTALLATIONS)
def test_every_installation_keeps_our_own_rules(installation: str) -> None:
    problems = rules.broken(rendered(INSTALLATIONS[installation]))
    if installation == "from outside":
        # The second Service, for Prometheus alone.
        assert rules.kind(rendered(INSTALLATIONS[installation]), "Service")[1]["spec"]["clusterIP"]
    assert problems == []


def test_what_is_switched_on_is_there() -> None:
    kinds = {each["kind"] for each in rendered(INSTALLATIONS["everything"])}
    assert {"HorizontalPodAutoscaler", "NetworkPolicy", "ServiceMonitor"} <= kinds
    assert not kinds & {"Secret", "Role", "ClusterRole"}
    few = {each["kind"] for each in rendered({})}
    assert {"Deployment", "Service", "ConfigMap", "ServiceAccount", "PodDisruptionBudget"} == few


def test_a_configuration_of_its_own_arrives_as_it_is() -> None:
    (pods,) = rules.deployed(rendered(INSTALLATIONS["a configuration of its own"]))
    admission = pods.config.filters.admission
    assert admission is not None
    assert admission.queue.size == 1_000_000
    assert pods.config.limits.body_bytes == 5_000_000_000
    assert set(pods.config.clusters) == {"a"}
    assert pods.config.drain.timeout == 600
    assert pods.pod["terminationGracePeriodSeconds"] > 620


def test_the_autoscaler_asks_for_what_it_can_change() -> None:
    """More gateways help a full gateway; more of the pods with a model help a full model."""
    for values, metric in (
        ({}, "tailrace_saturation"),
        ({"sidecar": {"enabled": True, "model": MODEL}}, "tailrace_admission_saturation"),
    ):
        (found,) = rules.kind(rendered({**EVERYTHING, **values}), "HorizontalPodAutoscaler")
        assert found["spec"]["metrics"][0]["pods"]["metric"]["name"] == metric


def test_the_test_pod_is_no_gateway() -> None:
    """A Service that led to it would send it traffic."""
    (pod,) = rules.kind(documents({}), "Pod")
    for each in rules.kind(rendered({}), "Service"):
        assert not rules.selects(each["spec"]["selector"], pod["metadata"]["labels"])
    context = pod["spec"]["containers"][0]["securityContext"]
    assert context["runAsNonRoot"]
    assert context["readOnlyRootFilesystem"]


def test_two_releases_do_not_meet() -> None:
    one, two = rendered({}, "one"), rendered({}, "two")
    names = [{(e["kind"], e["metadata"]["name"]) for e in each} for each in (one, two)]
    assert not names[0] & names[1]
    (service,) = rules.kind(one, "Service")
    (pods,) = rules.deployed(two)
    assert not rules.selects(service["spec"]["selector"], pods.labels)


REFUSED: dict[str, Values] = {
    "an unknown value": {"replica": 2},
    "an unknown value inside": {"image": {"name": "x"}},
    "a port that is none": {"ports": {"http": 0}},
    "a grace of no number": {"drain": {"grace": "5s"}},
    "a digest that is none": {"image": {"digest": "latest"}},
    "listen, which ports has": {"config": {"listen": "0.0.0.0:1"}},
    "clusters without routes": {"config": {"clusters": {}}},
    "a hook that there is not": {"sidecar": {"drainHook": "wget"}},
    "a sidecar of nothing": {"sidecar": {"enabled": True}},
    "a model without resources": {"sidecar": {"enabled": True, "model": {"image": "x"}}},
    "a lifecycle of its own": {"sidecar": {"model": {"lifecycle": {}}}},
    "nobody behind": {"upstreams": []},
}


@pytest.mark.parametrize("case", REFUSED)
def test_the_schema_refuses(case: str) -> None:
    helm = tools.module("helm_python")
    with helm.Chart.load(CHART) as chart, pytest.raises(helm.HelmValuesError):
        chart.validate_schema(REFUSED[case])


def test_the_schema_has_every_value_and_no_other() -> None:
    schema = json.loads((CHART / "values.schema.json").read_text())
    values = yaml.safe_load((CHART / "values.yaml").read_text())
    assert schema["properties"].keys() - {"global"} == values.keys()
    for name, each in schema["properties"].items():
        if each.get("additionalProperties") is False:
            extra = {"claims"} if name == "resources" else set()
            assert each["properties"].keys() - extra == values[name].keys(), name


def test_the_versions_are_those_of_the_project() -> None:
    project = re.search(r'^version = "(.+)"', (ROOT / "pyproject.toml").read_text(), re.M)
    assert project
    chart = yaml.safe_load((CHART / "Chart.yaml").read_text())
    assert chart["version"] == chart["appVersion"] == project[1]


def test_nothing_lies_in_the_chart_that_helm_would_not_read() -> None:
    known = {"Chart.yaml", "values.yaml", "values.schema.json", ".helmignore", "NOTES.txt"}
    found = {path for path in CHART.rglob("*") if path.is_file()}
    templates: set[Path] = set(CHART.glob("templates/**/*.yaml")) | set(CHART.glob("**/*.tpl"))
    assert {path.name for path in found - templates} == known
