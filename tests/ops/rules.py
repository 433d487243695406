"""What must be true of every pod that is shipped with a gateway in it, beyond what Kubernetes
itself would refuse. Each rule takes the objects of one installation and yields what is wrong."""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeAlias

from gateway.config_problem import ConfigErrors
from gateway.config_source import load_with_warnings

if TYPE_CHECKING:
    from gateway.config import Config

Manifest: TypeAlias = dict[str, Any]
Rule: TypeAlias = "Callable[[list[Manifest]], Iterator[str]]"

PROBE_PATHS = {"startupProbe": "/livez", "readinessProbe": "/readyz", "livenessProbe": "/livez"}
STOPPING_S = 10
"""What is left of the grace period after a drain that took its whole time, at least."""


@dataclass(frozen=True)
class Deployed:
    """A Deployment's pods. ``model`` is None where the gateway stands alone."""

    manifest: Manifest
    config: Config

    @property
    def pod(self) -> Manifest:
        spec: Manifest = self.manifest["spec"]["template"]["spec"]
        return spec

    @property
    def labels(self) -> dict[str, str]:
        labels: dict[str, str] = self.manifest["spec"]["template"]["metadata"]["labels"]
        return labels

    @property
    def gateway(self) -> Manifest:
        return next(each for each in containers(self.pod) if each["name"] == "tailrace")

    @property
    def model(self) -> Manifest | None:
        return next((each for each in containers(self.pod) if each["name"] == "model"), None)


def containers(pod: Manifest) -> list[Manifest]:
    return [*pod.get("initContainers", []), *pod["containers"]]


def kind(manifests: list[Manifest], name: str) -> list[Manifest]:
    return [each for each in manifests if each["kind"] == name]


def deployed(manifests: list[Manifest]) -> list[Deployed]:
    """The Deployments, each with the configuration that its gateway starts with."""
    return [
        Deployed(each, configuration(manifests, each)) for each in kind(manifests, "Deployment")
    ]


def file(manifests: list[Manifest], deployment: Manifest) -> str:
    """The text of the gateway's configuration file, found the way the kubelet finds it."""
    pod = deployment["spec"]["template"]["spec"]
    gateway = next(each for each in containers(pod) if each["name"] == "tailrace")
    run, path = gateway["args"]
    assert run == "run"
    folder, _, name = path.rpartition("/")
    (mount,) = [each for each in gateway["volumeMounts"] if each["mountPath"] == folder]
    assert "subPath" not in mount, "a subPath never sees a change"
    (volume,) = [each for each in pod["volumes"] if each["name"] == mount["name"]]
    maps = {each["metadata"]["name"]: each for each in kind(manifests, "ConfigMap")}
    text: str = maps[volume["configMap"]["name"]]["data"][name]
    return text


def configuration(manifests: list[Manifest], deployment: Manifest) -> Config:
    """Load it. Errors and warnings fail: what is shipped has neither."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "tailrace.yaml"
        path.write_text(file(manifests, deployment))
        try:
            config, warnings = load_with_warnings(path, {})
        except ConfigErrors as errors:
            raise AssertionError(str(errors)) from None
    assert [str(each) for each in warnings] == []
    return config


def resources(manifests: list[Manifest]) -> Iterator[str]:
    """Requests for both, a limit on memory; none on the gateway's CPU, which would throttle it."""
    for each in deployed(manifests):
        for container in containers(each.pod):
            given = container.get("resources", {})
            if not {"cpu", "memory"} <= given.get("requests", {}).keys():
                yield f"{container['name']}: requests"
            if "memory" not in given.get("limits", {}):
                yield f"{container['name']}: no limit on memory"
        if "cpu" in each.gateway["resources"].get("limits", {}):
            yield "tailrace: a limit on CPU"


def security(manifests: list[Manifest]) -> Iterator[str]:
    """Nobody has privileges, the gateway cannot write, the API's token is in no pod."""
    for each in deployed(manifests):
        if each.pod.get("automountServiceAccountToken") is not False:
            yield "the API's token is mounted"
        for container in containers(each.pod):
            context = container.get("securityContext", {})
            wanted = {
                "runAsNonRoot": True,
                "allowPrivilegeEscalation": False,
                "capabilities": {"drop": ["ALL"]},
                "seccompProfile": {"type": "RuntimeDefault"},
                "readOnlyRootFilesystem": container["name"] == "tailrace",
            }
            for field, value in wanted.items():
                if context.get(field) != value:
                    yield f"{container['name']}: {field}"
            if "runAsUser" in context and context["runAsUser"] < 1:
                yield f"{container['name']}: runs as root"
        if "runAsUser" not in {**each.pod["securityContext"], **each.gateway["securityContext"]}:
            yield "tailrace: no user"


def probes(manifests: list[Manifest]) -> Iterator[str]:
    """All three of the gateway's ask ``admin.probes``, which never waits for the model and needs
    no permit; the data port would say no when it is full."""
    for each in deployed(manifests):
        admin = each.config.admin
        assert admin is not None
        address = admin.probes or ""
        if not address.startswith("0.0.0.0:"):
            yield "admin.probes is not where the kubelet asks"
        for name, path in PROBE_PATHS.items():
            asked = each.gateway.get(name, {}).get("httpGet", {})
            if asked.get("path") != path or "host" in asked:
                yield f"{name}: asks for {asked}"
            if str(_port(each.gateway, asked.get("port"))) != address.rpartition(":")[2]:
                yield f"{name}: another port than admin.probes"
        if admin.listen is not None and not admin.listen.startswith("127.0.0.1:"):
            yield "admin.listen is open to the network"
        listening = {int(each.address.rpartition(":")[2]) for each in each.config.listen}
        if _port(each.gateway, "http") not in listening:
            yield "the port named http is not the listener's"


def sidecar(manifests: list[Manifest]) -> Iterator[str]:
    """A gateway beside a model starts before it and stops after it."""
    for each in deployed(manifests):
        beside = each.gateway in each.pod.get("initContainers", [])
        if beside != (each.model is not None):
            yield "the gateway is not an init container beside a model, or is one alone"
        if beside and each.gateway.get("restartPolicy") != "Always":
            yield "an init container that ends"


def drain(manifests: list[Manifest]) -> Iterator[str]:
    """The whole drain fits into the grace period, and the model server outlives it."""
    for each in deployed(manifests):
        whole = each.config.drain.grace + each.config.drain.timeout
        if each.pod.get("terminationGracePeriodSeconds", 30) < whole + STOPPING_S:
            yield "the pod ends before the drain may"
        if each.model is None:
            continue
        if "livenessProbe" in each.model:
            yield "a livenessProbe on the model runs the drain hook when it fails"
        hook = each.model.get("lifecycle", {}).get("preStop", {})
        if "sleep" in hook:
            begun = each.gateway.get("lifecycle", {}).get("preStop", {}).get("exec", {})
            if hook["sleep"]["seconds"] < whole or "/drain" not in str(begun):
                yield "the model only sleeps, and nobody drains"
            continue
        command = " ".join(hook.get("exec", {}).get("command", []))
        if "/drain?wait=true" not in command or "POST" not in command:
            yield "preStop does not POST /drain?wait=true"  # an httpGet cannot
        assert each.config.admin is not None
        if (each.config.admin.listen or "off").rpartition(":")[2] not in command:
            yield "preStop asks another port than admin.listen"


def model(manifests: list[Manifest]) -> Iterator[str]:
    """The gateway's endpoint is a port of the model container, which tells when it is loaded."""
    for each in deployed(manifests):
        if each.model is None:
            continue
        ports = {port["containerPort"] for port in each.model.get("ports", [])}
        urls = [e.url for c in each.config.clusters.values() for e in c.endpoints]
        if urls != [f"http://127.0.0.1:{port}" for port in ports]:
            yield f"endpoints {urls}, ports {ports}"
        asked = each.model.get("readinessProbe", {}).get("httpGet", {})
        if _port(each.model, asked.get("port")) not in ports:
            yield "the model does not tell when it is ready"


def references(manifests: list[Manifest]) -> Iterator[str]:
    """What names something names something that is there."""
    found = {(each["kind"], each["metadata"]["name"]) for each in manifests}
    pods = deployed(manifests)
    for each in pods:
        account = each.pod.get("serviceAccountName", "default")
        if account != "default" and ("ServiceAccount", account) not in found:
            yield f"no ServiceAccount {account}"
        if not selects(each.manifest["spec"]["selector"]["matchLabels"], each.labels):
            yield "the Deployment does not select its pods"
        volumes = {volume["name"] for volume in each.pod["volumes"]}
        mounts = {m["name"] for c in containers(each.pod) for m in c.get("volumeMounts", [])}
        if mounts != volumes:
            yield f"volumes {sorted(volumes ^ mounts)}"
    for scaler in kind(manifests, "HorizontalPodAutoscaler"):
        target = scaler["spec"]["scaleTargetRef"]
        if (target["kind"], target["name"]) not in found:
            yield f"the autoscaler's {target['name']} is not there"
        scaled = [pod for pod in pods if pod.manifest["metadata"]["name"] == target["name"]]
        if any("replicas" in pod.manifest["spec"] for pod in scaled):
            yield "every apply sets back what the autoscaler has decided"
    for manifest in manifests:
        yield from _selection(manifest, pods, manifests)


def _selection(each: Manifest, pods: list[Deployed], manifests: list[Manifest]) -> Iterator[str]:
    spec = each.get("spec", {})
    if each["kind"] == "Service":
        chosen = [pod for pod in pods if selects(spec["selector"], pod.labels)]
        if len(chosen) != 1:
            yield f"Service {each['metadata']['name']} leads to {len(chosen)} Deployments"
        for port in spec["ports"]:
            if chosen and _port(chosen[0].gateway, port["targetPort"]) is None:
                yield f"Service port {port['name']} leads past the gateway"
    wanted = {"PodDisruptionBudget": "selector", "NetworkPolicy": "podSelector"}.get(each["kind"])
    if wanted and [selects(spec[wanted]["matchLabels"], pod.labels) for pod in pods] != [True]:
        yield f"{each['kind']} {each['metadata']['name']} selects no pod"
    if each["kind"] == "ServiceMonitor":
        (endpoint,) = spec["endpoints"]
        services = [
            s for s in kind(manifests, "Service")
            if selects(spec["selector"]["matchLabels"], s["metadata"]["labels"])
            and endpoint["port"] in [port["name"] for port in s["spec"]["ports"]]
        ]  # fmt: skip
        if len(services) != 1:
            yield f"the ServiceMonitor finds {len(services)} Services"


def policy(manifests: list[Manifest]) -> Iterator[str]:
    """Whoever comes in over the network comes to the gateway."""
    for each in kind(manifests, "NetworkPolicy"):
        (pod,) = deployed(manifests)
        own = {port["containerPort"] for port in pod.gateway["ports"]}
        opened = {port["port"] for rule in each["spec"]["ingress"] for port in rule["ports"]}
        if opened != own or "Ingress" not in each["spec"]["policyTypes"]:
            yield f"ports {sorted(opened)} are open, {sorted(own)} are the gateway's"


def selects(selector: dict[str, str], labels: dict[str, str]) -> bool:
    return bool(selector) and selector.items() <= labels.items()


def _port(container: Manifest, port: object) -> int | None:
    """The number of a container's port, given by name or number; None if it has no such port."""
    for each in container.get("ports", []):
        if port in (each["name"], each["containerPort"]):
            number: int = each["containerPort"]
            return number
    return None


RULES: tuple[Rule, ...] = (
    resources, security, probes, sidecar, drain, model, references, policy,
)  # fmt: skip


def broken(manifests: list[Manifest]) -> list[str]:
    """Everything that is wrong."""
    return [f"{rule.__name__}: {problem}" for rule in RULES for problem in rule(manifests)]
