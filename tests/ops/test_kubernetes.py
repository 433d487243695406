"""configs/kubernetes as kustomize builds it: valid, complete, and by our own rules."""

from __future__ import annotations

import copy
import re
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
import yaml

from tests.gateway.test_collect import documented
from tests.ops import rules, tools
from tests.ops.installations import rendered
from tests.tidy import ROOT

if TYPE_CHECKING:
    from tests.ops.rules import Manifest

FOLDER = ROOT / "configs" / "kubernetes"
OVERLAYS = sorted(path.name for path in (FOLDER / "overlays").iterdir())
FOREIGN = {"ServiceMonitor"}
"""Kinds that Kubernetes itself has no schema of."""
VERSIONS = ("1.30.0", "1.37.0")


def built(overlay: str) -> list[Manifest]:
    kubectl = tools.program("kubectl")
    text = tools.output(kubectl, "kustomize", FOLDER / "overlays" / overlay)
    return tools.documents(text)


@pytest.mark.parametrize("version", VERSIONS)
@pytest.mark.parametrize("overlay", OVERLAYS)
def test_every_object_is_valid(overlay: str, version: str) -> None:
    validate = tools.module("kubernetes_validate").validate
    kinds = set()
    for each in built(overlay):
        kinds.add(each["kind"])
        if each["kind"] not in FOREIGN:
            validate(each, version, strict=True)
    assert kinds > {"Deployment", "Service", "ConfigMap", "PodDisruptionBudget", "NetworkPolicy"}


@pytest.mark.parametrize("overlay", OVERLAYS)
def test_every_overlay_keeps_our_own_rules(overlay: str) -> None:
    assert rules.broken(built(overlay)) == []


def test_overlays_in_one_namespace_do_not_meet() -> None:
    """Neither by name nor by label: a Service of one must not lead to the pods of another."""
    everything = [(name, each) for name in OVERLAYS for each in built(name)]
    named = [(each["kind"], each["metadata"]["name"]) for _, each in everything]
    assert len(set(named)) == len(named)
    for name, each in everything:
        spec = each.get("spec", {})
        selector = spec.get("selector") or spec.get("podSelector") or {}
        selector = selector.get("matchLabels", selector)
        for other, deployment in everything:
            if deployment["kind"] == "Deployment" and selector:
                labels = deployment["spec"]["template"]["metadata"]["labels"]
                assert rules.selects(selector, labels) <= (other == name)


def test_every_file_is_part_of_an_overlay() -> None:
    """By following what the kustomization files name, in plain Python."""
    seen: set[Path] = set()

    def visit(folder: Path) -> None:
        file = folder / "kustomization.yaml"
        seen.add(file)
        spec = yaml.safe_load(file.read_text())
        names = [*spec.get("resources", []), *spec.get("components", [])]
        names += [each["path"] for each in spec.get("patches", [])]
        names += [name for each in spec.get("configMapGenerator", []) for name in each["files"]]
        for name in names:
            path = (folder / name).resolve()
            assert path.exists(), path
            seen.add(path)
            if path.is_dir():
                visit(path)

    for overlay in OVERLAYS:
        visit(FOLDER / "overlays" / overlay)
    assert {path for path in FOLDER.rglob("*") if path.is_file()} <= seen


def test_the_image_is_of_this_version() -> None:
    version = re.search(r'^version = "(.+)"', (ROOT / "pyproject.toml").read_text(), re.M)
    assert version
    for overlay in OVERLAYS:
        for each in rules.deployed(built(overlay)):
            assert each.gateway["image"] == f"tailrace:{version[1]}"
            assert all(":" in container["image"] for container in rules.containers(each.pod))


def test_triton_and_its_gateway_share_memory_and_user() -> None:
    (pods,) = rules.deployed(built("triton"))
    assert pods.model is not None
    assert pods.pod["shareProcessNamespace"] is True
    shm = next(each for each in pods.pod["volumes"] if each["name"] == "shm")
    assert shm["emptyDir"]["medium"] == "Memory"
    users = set()
    for container in (pods.gateway, pods.model):
        assert {"name": "shm", "mountPath": "/dev/shm"} in container["volumeMounts"]
        users.add(container["securityContext"]["runAsUser"])
    assert len(users) == 1
    assert "--allow-client-shm=true" in pods.model["args"]


def test_the_autoscalers_ask_for_metrics_of_ours() -> None:
    asked = {
        metric["pods"]["metric"]["name"].removeprefix("tailrace_")
        for overlay in OVERLAYS
        for each in rules.kind(built(overlay), "HorizontalPodAutoscaler")
        for metric in each["spec"]["metrics"]
    }
    assert asked == {"saturation", "admission_saturation"}
    assert asked <= documented().keys()


# -- the rules can fail -----------------------------------------------------------------------

MISTAKES: dict[str, tuple[str, str, str, object]] = {
    # which rule sees it, where it is made, at which place, what stands there then (None: nothing)
    "no limit on memory": ("resources", "model", "resources.limits", None),
    "a throttled gateway": ("resources", "gateway", "resources.limits.cpu", "1"),
    "a model with capabilities": ("security", "model", "securityContext.capabilities", None),
    "a gateway that writes": (
        "security",
        "gateway",
        "securityContext.readOnlyRootFilesystem",
        False,
    ),
    "root": ("security", "model", "securityContext.runAsUser", 0),
    "the API's token": ("security", "pod", "automountServiceAccountToken", None),
    "a probe of the data port": ("probes", "gateway", "readinessProbe.httpGet.port", "http"),
    "readiness as liveness": ("probes", "gateway", "livenessProbe.httpGet.path", "/readyz"),
    "no startup probe": ("probes", "gateway", "startupProbe", None),
    "probes elsewhere": ("probes", "file", "0.0.0.0:9902", "0.0.0.0:9903"),
    "an open admin": ("probes", "file", "127.0.0.1:9901", "0.0.0.0:9901\n  token: t"),
    "an init container that ends": ("sidecar", "gateway", "restartPolicy", None),
    "a short grace period": ("drain", "pod", "terminationGracePeriodSeconds", 105),
    "a long drain": ("drain", "file", "timeout: 100s", "timeout: 150s"),
    "no drain": ("drain", "model", "lifecycle", None),
    "a GET": ("drain", "model", "lifecycle.preStop", {"httpGet": {"path": "/drain?wait=true"}}),
    "a sleep, no drain": ("drain", "model", "lifecycle.preStop", {"sleep": {"seconds": 105}}),
    "a liveness probe": ("drain", "model", "livenessProbe", {"tcpSocket": {"port": 8000}}),
    "another endpoint": ("model", "file", "127.0.0.1:8000", "127.0.0.1:8001"),
    "no readiness of the model": ("model", "model", "readinessProbe", None),
    "past the gateway": ("references", "Service", "spec.ports.0.targetPort", 8000),
    "a Service of nobody": ("references", "Service", "spec.selector.a", "b"),
    "a budget of nobody": ("references", "PodDisruptionBudget", "spec.selector.matchLabels.a", "b"),
    "a monitor of nothing": ("references", "ServiceMonitor", "spec.endpoints.0.port", "x"),
    "scaling nothing": ("references", "HorizontalPodAutoscaler", "spec.scaleTargetRef.name", "x"),
    "replicas": ("references", "Deployment", "spec.replicas", 3),
    "an unused volume": ("references", "pod", "volumes.0.name", "x"),
    "an open model": ("policy", "NetworkPolicy", "spec.ingress.0.ports.0.port", 8000),
}


def mistaken(manifests: list[Manifest], where: str, place: str, value: object) -> list[Manifest]:
    """A copy with one thing changed; ``file`` is the text of the gateway's configuration."""
    changed = copy.deepcopy(manifests)
    if where == "file":
        (found,) = rules.kind(changed, "ConfigMap")
        text = found["data"]["tailrace.yaml"]
        assert place in text
        found["data"]["tailrace.yaml"] = text.replace(place, str(value))
        return changed
    (pods,) = rules.deployed(changed)
    inside: Any = {"gateway": pods.gateway, "model": pods.model, "pod": pods.pod}.get(where)
    *path, last = place.split(".")
    inside = inside or rules.kind(changed, where)[0]
    for each in path:
        inside = inside[int(each)] if each.isdigit() else inside[each]
    if value is None:
        del inside[last]
    else:
        inside[last] = value
    return changed


@pytest.fixture(scope="module")
def vllm() -> list[Manifest]:
    return built("vllm")


@pytest.mark.parametrize("mistake", MISTAKES)
def test_the_rules_see(mistake: str, vllm: list[Manifest]) -> None:
    rule, where, place, value = MISTAKES[mistake]
    problems = rules.broken(mistaken(vllm, where, place, value))
    assert {problem.partition(":")[0] for problem in problems} >= {rule}


def test_a_configuration_that_does_not_load_is_seen(vllm: list[Manifest]) -> None:
    with pytest.raises(AssertionError, match="intervall"):
        rules.broken(mistaken(vllm, "file", "interval: 2s", "intervall: 2s"))


def test_what_the_guide_shows_is_what_is_shipped() -> None:
    """The YAML of docs/kubernetes.md: a probe, the adapter's rule, the chart's values."""
    guide = (ROOT / "docs" / "kubernetes.md").read_text()
    probe, adapter, values = map(yaml.safe_load, re.findall(r"```yaml\n(.+?)```", guide, re.S))
    assert probe["livenessProbe"]["terminationGracePeriodSeconds"] < 30
    (rule,) = adapter["rules"]
    named = re.search(r'__name__=~"(.+?)"', rule["seriesQuery"])
    assert named
    for metric in ("tailrace_saturation", "tailrace_admission_saturation"):
        assert re.fullmatch(named[1], metric)
    assert rules.broken(rendered(values)) == []
    shipped = rules.deployed(built("vllm"))[0].model
    shown = rules.deployed(rendered(values))[0].model
    assert shipped is not None
    assert shown is not None
    assert (shown["image"], shown["args"]) == (shipped["image"], shipped["args"])
