"""The ways in which the chart is installed in tests, and what Helm makes of them."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from tests.ops import tools
from tests.tidy import ROOT

if TYPE_CHECKING:
    from tests.ops.rules import Manifest

CHART = ROOT / "configs" / "helm" / "tailrace"
Values = dict[str, Any]

MODEL: Values = {
    "image": "vllm/vllm-openai:v0.29.0",
    "args": ["--model=m", "--host=0.0.0.0", "--port=8000"],
    "ports": [{"name": "model", "containerPort": 8000}],
    "readinessProbe": {"httpGet": {"path": "/health", "port": "model"}},
    "resources": {"requests": {"cpu": "4", "memory": "16Gi"}, "limits": {"memory": "16Gi"}},
}
EVERYTHING: Values = {
    "autoscaling": {"enabled": True},
    "networkPolicy": {"enabled": True, "egress": [{"ports": [{"protocol": "UDP", "port": 53}]}]},
    "serviceMonitor": {"enabled": True, "labels": {"release": "prometheus"}},
    "serviceAccount": {"annotations": {"a": "b"}},
    "service": {"annotations": {"a": "b"}},
    "image": {"digest": "sha256:" + "0" * 64, "pullSecrets": [{"name": "s"}]},
    "extraEnv": [{"name": "A", "value": "b"}],
    "extraVolumes": [{"name": "tls", "secret": {"secretName": "tls"}}],
    "extraVolumeMounts": [{"name": "tls", "mountPath": "/etc/tls", "readOnly": True}],
    "podLabels": {"team": "search"},
    "podAnnotations": {"a": "b"},
    "nodeSelector": {"a": "b"},
    "tolerations": [{"operator": "Exists"}],
    "affinity": {"nodeAffinity": {}},
    "topologySpreadConstraints": [
        {"maxSkew": 1, "topologyKey": "zone", "whenUnsatisfiable": "ScheduleAnyway"}
    ],
    "priorityClassName": "high",
    "runtimeClassName": "nvidia",
}
INSTALLATIONS: dict[str, Values] = {
    "defaults": {},
    "everything": EVERYTHING,
    "sidecar": {"sidecar": {"enabled": True, "model": MODEL}},
    "sidecar with everything": {**EVERYTHING, "sidecar": {"enabled": True, "model": MODEL}},
    "sidecar with curl": {"sidecar": {"enabled": True, "drainHook": "curl", "model": MODEL}},
    "sidecar that sleeps": {"sidecar": {"enabled": True, "drainHook": "sleep", "model": MODEL}},
    "shared memory": {
        "sidecar": {
            "enabled": True,
            "model": {
                **MODEL,
                "securityContext": {"runAsUser": 1000},
                "volumeMounts": [{"name": "shm", "mountPath": "/dev/shm"}],
            },
        },
        "shareProcessNamespace": True,
        "podSecurityContext": {"runAsUser": 1000, "fsGroup": 1000},
        "extraVolumes": [{"name": "shm", "emptyDir": {"medium": "Memory", "sizeLimit": "1Gi"}}],
        "extraVolumeMounts": [{"name": "shm", "mountPath": "/dev/shm"}],
    },
    "a configuration of its own": {
        "config": {
            "clusters": {"a": {"endpoints": ["http://10.0.0.1:8000"]}},
            "routes": [{"path": "/", "cluster": "a"}],
            "filters": {"admission": {"queue": {"size": 1_000_000}}, "budget": {"ratio": "5%"}},
            "limits": {"body_bytes": 5_000_000_000},
        },
        "ports": {"http": 18080, "probes": 18081, "admin": 18082},
        "drain": {"grace": 20, "timeout": 600},
    },
    "from outside": {"service": {"type": "LoadBalancer"}, "serviceMonitor": {"enabled": True}},
}


def rendered(values: Values, name: str = "demo") -> list[Manifest]:
    """The objects of an installation, without the pod of `helm test`."""
    found = documents(values, name)
    return [each for each in found if "helm.sh/hook" not in each["metadata"].get("annotations", {})]


def documents(values: Values, name: str = "demo") -> list[Manifest]:
    helm = tools.module("helm_python")
    with helm.Chart.load(CHART) as chart:
        chart.validate_schema(values)
        texts: dict[str, str] = chart.render(values, name=name, namespace="models")
    return [
        each for path, text in texts.items() if path.endswith(".yaml")
        for each in tools.documents(text)
    ]  # fmt: skip
