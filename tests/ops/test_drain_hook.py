"""The preStop hooks that are shipped, run as the kubelet would against a gateway that runs with
the configuration that is shipped: the model server must not be stopped before its last answer."""

from __future__ import annotations

import asyncio
import os
import shutil
import sys
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
import yaml

from tests.harness import GOOD
from tests.ops import rules, tools
from tests.ops.installations import INSTALLATIONS, rendered
from tests.ops.test_reload_configmap import free_port, metric
from tests.process import process
from tests.tidy import ROOT
from tests.wire.client import Client
from tests.wire.origin import Connection, Origin, Request

if TYPE_CHECKING:
    from tests.ops.rules import Manifest

HELD = ("kustomize", "sidecar", "sidecar with curl")


def installed(name: str) -> list[Manifest]:
    if name != "kustomize":
        return rendered(INSTALLATIONS[name])
    base = ROOT / "configs" / "kubernetes" / "base" / "sidecar"
    text = (base / "tailrace.yaml").read_text()
    found = {"kind": "ConfigMap", "metadata": {"name": "model-tailrace"}}
    return [
        yaml.safe_load((base / "deployment.yaml").read_text()),
        {**found, "data": {"tailrace.yaml": text}},
    ]


def command(hook: Manifest, admin: int) -> list[str]:
    """A hook's, for an admin listener at another port, by the programs of this machine."""
    words = [each.replace("9901", str(admin)) for each in hook["preStop"]["exec"]["command"]]
    if words[0].startswith("python"):
        return [sys.executable, *words[1:]]
    found = shutil.which(words[0])
    if found is None:
        tools.missing(words[0])
    return [str(found), *words[1:]]


class Held:
    """A model server that is healthy, and answers everything else when told to."""

    def __init__(self) -> None:
        self.go = asyncio.Event()
        self.asked = asyncio.Event()

    async def __call__(self, connection: Connection, request: Request) -> None:
        if request.target != b"/health":
            self.asked.set()
            await self.go.wait()
        connection.send(b"HTTP/1.1 200 OK\r\nContent-Length: 4\r\n\r\nlast")


@pytest.mark.parametrize("installation", [*HELD, "sidecar that sleeps"])
async def test_the_hook_lets_the_last_answer_out(installation: str, tmp_path: Path) -> None:
    manifests = installed(installation)
    (pods,) = rules.deployed(manifests)
    assert pods.model is not None
    admin, probes = free_port(), free_port()
    model = Held()
    async with Origin(model) as origin:
        text = rules.file(manifests, pods.manifest)
        for old, new in (
            ("0.0.0.0:8080", "127.0.0.1:0"), ("127.0.0.1:9901", f"127.0.0.1:{admin}"),
            ("0.0.0.0:9902", f"127.0.0.1:{probes}"), ("http://127.0.0.1:8000", origin.url),
            ("grace: 5s", "grace: 0s"),
        ):  # fmt: skip
            assert text.count(old) == 1, old
            text = text.replace(old, new)
        async with process(text, tmp_path) as gateway:
            await metric(probes, "tailrace_ready 1")
            async with await Client.connect(gateway.address) as client:
                await client.send(GOOD)
                await model.asked.wait()
                waits = installation in HELD
                hook = (pods.model if waits else pods.gateway)["lifecycle"]
                # What clusters set for fetching models must not send the hook elsewhere.
                proxies = dict.fromkeys(("http_proxy", "all_proxy"), "http://127.0.0.1:1")
                running = await asyncio.create_subprocess_exec(
                    *command(hook, admin), env={**os.environ, **proxies},
                    stdout=asyncio.subprocess.PIPE,
                )  # fmt: skip
                if waits:
                    await metric(probes, "tailrace_ready 0")
                    assert running.returncode is None, "the model server would be stopped now"
                else:
                    assert await running.wait() == 0
                model.go.set()
                answer = await client.response()
                assert (answer.status, answer.body) == (200, b"last")
            out, _ = await running.communicate()
            assert running.returncode == 0
            assert b'"cut_off": false' in out if waits else out == b""
            # The drain ends the gateway, so no SIGTERM has to.
            assert await asyncio.wait_for(gateway.running.wait(), 30) == 0
