"""The processes of ``bench_batch``: a model server, and a gateway in front of it.

Nobody is pinned to a core. The model sleeps for its price, so server, gateway and load share the
cores as they would beside a GPU; to pin the gateway would take a core from the direct runs.
"""

from __future__ import annotations

import asyncio
import contextlib
import http.client
import json
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import yaml

from loadtests.bench import LoadError
from loadtests.oip import mlserver
from loadtests.oip.triton import Model, TritonServer, elementwise, poison
from loadtests.processes import LOOPBACK, Child, free_port
from loadtests.proxies import REPOSITORY

if TYPE_CHECKING:
    from loadtests.oip.server import Server

PER_CALL, PER_ROW = 0.002, 20e-6
"""Seconds: the price of the model."""
MAX_DELAY = 0.005
WIDE = 256
"""Columns of FP32: rows of 1 KB."""


@dataclass(frozen=True)
class Wide(Model):
    """The model with rows of 1 KB."""

    def write(self, repository: Path, packages: Path) -> None:
        super().write(repository, packages)
        config = repository / self.name / "config.pbtxt"
        config.write_text(config.read_text().replace("dims: [ 16 ]", f"dims: [ {WIDE} ]"))


@dataclass(frozen=True)
class Priced(Model):
    """A model with the same price as the others: without one there is nothing to be batched for,
    and batches stay small."""

    def write(self, repository: Path, packages: Path) -> None:
        super().write(repository, packages)
        code = repository / self.name / "1/model.py"
        with code.open("a") as file:
            file.write(_PRICE)


_PRICE = f"""

import time


class Free(TritonPythonModel):
    pass


class TritonPythonModel(Free):
    def execute(self, requests):
        rows = sum(pb.get_input_tensor_by_name(each, "X").shape()[0] for each in requests)
        time.sleep({PER_CALL} + {PER_ROW} * rows)
        return super().execute(requests)
"""


@dataclass(frozen=True)
class Backend:
    """A model server that runs. ``binary``: it knows the binary extension. ``cpu_seconds``: of all
    its processes, so far."""

    name: str
    port: int
    binary: bool
    cpu_seconds: Callable[[], float]

    def counted(self, model: str) -> tuple[int, int] | None:
        """Rows and calls of a model so far, as Triton counts them; None where nobody counts. A
        call that fails counts as one."""
        if not self.binary:
            return None
        stats = ask(self.port, f"/v2/models/{model}/stats")["model_stats"][0]
        failed = int(stats["inference_stats"]["fail"]["count"])
        return int(stats["inference_count"]), int(stats["execution_count"]) + failed


def triton_models() -> list[Model]:
    price = {"per_call": PER_CALL, "per_row": PER_ROW}
    models = [elementwise("free")]
    for batched in (False, True):
        narrow = elementwise(named("elementwise", batched), **price, batched=batched)
        wide = elementwise(named("wide", batched), **price, batched=batched)
        models += [narrow, Wide(wide.name, wide.template, wide.parameters, wide.more)]
    bad = poison()
    return [*models, Priced(bad.name, bad.template)]


def mlserver_models() -> list[mlserver.MlModel]:
    return [
        mlserver.elementwise(
            named("elementwise", batched), per_call=PER_CALL, per_row=PER_ROW, batched=batched
        )
        for batched in (False, True)
    ]


def named(model: str, batched: bool) -> str:
    return f"{model}_batched" if batched else model


@contextlib.contextmanager
def triton() -> Iterator[Backend]:
    """Raises MissingError, StartError."""
    with _running(TritonServer(triton_models()), binary=True) as backend:
        yield backend


@contextlib.contextmanager
def ml_server() -> Iterator[Backend]:
    """Raises MissingError, StartError."""
    with _running(mlserver.MlServer(mlserver_models()), binary=False) as backend:
        yield backend


@contextlib.contextmanager
def _running(server: Server, *, binary: bool) -> Iterator[Backend]:
    asyncio.run(server.start())
    try:
        assert server.child is not None
        yield Backend(server.name, server.port, binary, server.child.cpu_seconds)
    finally:
        asyncio.run(server.stop())


# -- the gateway -----------------------------------------------------------------------------------

ALONE, HTTP, SHARED = "alone", "http", "shared"
"""Routes of the gateway: without batching, and with it by runner."""
RUNNERS = {HTTP: "http", SHARED: "system_shared_memory"}


@dataclass(frozen=True)
class Gateway:
    child: Child
    port: int
    admin: int

    def starved_seconds(self) -> float:
        """How long its event loop was ready to run and had no core, so far."""
        try:
            told = Path(f"/proc/{self.child.process.pid}/schedstat").read_text()
        except OSError:
            return 0.0
        return int(told.split()[1]) / 1e9

    def runner(self, route: str) -> str:
        """In use for a route at this moment."""
        told: str = ask(self.admin, "/filters")["routes"][route]["batching"]["runner"]
        return told

    def wait_for_runner(self, route: str, seconds: float) -> None:
        """Raises LoadError where it is not the one that was configured."""
        until = time.monotonic() + seconds
        while True:
            try:
                if (runner := self.runner(route)) == RUNNERS[route]:
                    return
                why = f"route {route} goes by {runner}: {self.child.tail()}"
            except LoadError as error:  # the admin page comes up after the listener
                why = str(error)
            if time.monotonic() > until:
                raise LoadError(why)
            time.sleep(0.05)


def configuration(backend: Backend, port: int, admin: int, routes: Sequence[str]) -> dict[str, Any]:
    """Every default as it is, but for what is measured; without batching nobody is shed."""
    described: list[dict[str, Any]] = []
    for name in routes:
        route: dict[str, Any] = {"name": name, "path": f"/{name}/", "cluster": "models"}
        route["rewrite"] = {"prefix": "/"}
        if name in RUNNERS:
            route["batching"] = {
                "format": "kserve_v2",
                "max_rows": 64,
                "max_delay": f"{MAX_DELAY * 1e3:.0f}ms",
                "runner": RUNNERS[name],
                "binary": backend.binary,
            }
        else:
            # Clients that come again at once are an overload to a model that is not batched.
            route["filters"] = {"load_shed": "off"}
        described.append(route)
    return {
        "listen": f"{LOOPBACK}:{port}",
        "admin": {"listen": f"{LOOPBACK}:{admin}"},
        "clusters": {"models": {"endpoints": [f"http://{LOOPBACK}:{backend.port}"]}},
        "routes": described,
    }


@contextlib.contextmanager
def gateway(backend: Backend, scratch: Path, routes: Sequence[str]) -> Iterator[Gateway]:
    """``python -m gateway run``, its log in a file. Raises StartError."""
    port, admin = free_port(), free_port()
    config = scratch / f"gateway-{backend.name}.yaml"
    config.write_text(yaml.safe_dump(configuration(backend, port, admin, routes)))
    command = [sys.executable, "-m", "gateway", "run", str(config)]
    log = scratch / f"gateway-{backend.name}.log"
    with Child.start("tailrace", command, log, port=port, cwd=REPOSITORY) as child:
        child.wait_listening()
        yield Gateway(child, port, admin)


def ask(port: int, path: str) -> Any:
    """JSON of a GET on loopback. Raises LoadError."""
    connection = http.client.HTTPConnection(LOOPBACK, port, timeout=5)
    try:
        connection.request("GET", path)
        answer = connection.getresponse()
        body = answer.read()
        if answer.status != 200:
            raise LoadError(f"{path}: {answer.status} {body[:200]!r}")
        return json.loads(body)
    except (OSError, http.client.HTTPException, ValueError) as error:
        raise LoadError(f"{path}: {error}") from error
    finally:
        connection.close()
