"""triton: a real Triton Inference Server on the CPU, with models of ``loadtests/models``."""

from __future__ import annotations

import os
import shutil
import sysconfig
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from loadtests.oip.install import python_stub, triton_folder
from loadtests.oip.server import Server
from loadtests.processes import LOOPBACK

TEMPLATES = Path(__file__).parents[1] / "models"
SHARED_MEMORY = Path("/dev/shm")


@dataclass(frozen=True)
class Model:
    """A model as this server has it. ``template``: of ``loadtests/models``. ``more``: what follows
    in its config.pbtxt."""

    name: str
    template: str
    parameters: Mapping[str, str] = field(default_factory=dict)
    more: str = ""

    def write(self, repository: Path, packages: Path) -> None:
        """``packages``: where its NumPy is."""
        config = (TEMPLATES / f"{self.template}.pbtxt").read_text() + self.more
        for key, value in self.parameters.items():
            config += f'parameters {{ key: "{key}" value {{ string_value: "{value}" }} }}\n'
        folder = repository / self.name
        (folder / "1").mkdir(parents=True)
        (folder / "config.pbtxt").write_text(config)
        # The backend's Python heeds no PYTHONPATH, so each model says itself where to look.
        text = (TEMPLATES / f"{self.template}.py").read_text()
        path = f"import sys\nsys.path.insert(0, {str(packages)!r})\n"
        (folder / "1/model.py").write_text(path + text)


def elementwise(
    name: str = "elementwise",
    *,
    per_call: float = 0.0,
    per_row: float = 0.0,
    batched: bool = False,
    delay: float = 0.0,
) -> Model:
    """``per_call``, ``per_row``: seconds. ``batched``: with Triton's dynamic batcher, which waits
    for ``delay`` seconds after a first request, and in any case while the model is busy."""
    more = f"dynamic_batching {{ max_queue_delay_microseconds: {delay * 1e6:.0f} }}\n"
    parameters = {"per_call": repr(per_call), "per_row": repr(per_row)}
    return Model(name, "elementwise", parameters, more if batched else "")


def masked(name: str = "masked") -> Model:
    return Model(name, "masked")


def poison(name: str = "poison", *, batched: bool = False) -> Model:
    return Model(name, "poison", more="dynamic_batching { }\n" if batched else "")


def echo(name: str = "echo") -> Model:
    return Model(name, "echo")


class TritonServer(Server):
    """Only HTTP: no gRPC, no metrics. ``options``: of ``tritonserver``, more of them.

    Raises MissingError where it is not installed, at once.
    """

    name = "triton"

    def __init__(
        self,
        models: Sequence[Model],
        *,
        port: int = 0,
        folder: Path | None = None,
        options: Sequence[str] = (),
    ) -> None:
        self._wheel = triton_folder()
        stub = python_stub(self._wheel)
        super().__init__(port, folder)
        self._options = options
        # The stub is looked for beside the backend, and its wheel may not be ours to write to.
        backend = self.folder / "backends/python"
        shutil.copytree(self._wheel / "pytriton/tritonserver/backends/python", backend)
        shutil.copy2(stub, backend / stub.name)
        for model in models:
            model.write(self.folder / "models", self._wheel)
        # Of the regions between the server and its models' processes, which a killed one leaves.
        self._prefix = f"tailrace-triton-{os.getpid()}-{self.port}-"

    def command(self) -> Sequence[str]:
        return [
            str(self._wheel / "pytriton/tritonserver/bin/tritonserver"),
            f"--model-repository={self.folder / 'models'}",
            f"--backend-directory={self.folder / 'backends'}",
            f"--http-address={LOOPBACK}",
            f"--http-port={self.port}",
            "--allow-grpc=false",
            "--allow-metrics=false",
            "--exit-timeout-secs=5",
            f"--backend-config=python,shm-region-prefix-name={self._prefix}",
            *self._options,
        ]

    def environment(self) -> Mapping[str, str]:
        libraries = [str(self._wheel / "nvidia_pytriton.libs"), sysconfig.get_config_var("LIBDIR")]
        return {
            "LD_LIBRARY_PATH": ":".join(filter(None, libraries)),
            "PYTHONDONTWRITEBYTECODE": "1",
            "OPENBLAS_NUM_THREADS": "1",
        }

    def clean(self) -> None:
        for path in SHARED_MEMORY.glob(f"{self._prefix}*"):
            path.unlink(missing_ok=True)
