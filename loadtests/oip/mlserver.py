"""mlserver: a real MLServer with the model of ``loadtests/models/mlserver_runtime.py``."""

from __future__ import annotations

import json
import shutil
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from loadtests.oip.install import mlserver_program
from loadtests.oip.server import Server
from loadtests.oip.triton import TEMPLATES
from loadtests.processes import LOOPBACK

RUNTIME = "mlserver_runtime"


@dataclass(frozen=True)
class MlModel:
    """``per_call``, ``per_row``: seconds. ``max_batch`` rows at most, after ``delay`` seconds, go
    together by MLServer's own "adaptive batching"; 0: none do."""

    name: str
    per_call: float = 0.0
    per_row: float = 0.0
    max_batch: int = 0
    delay: float = 0.0

    def write(self, folder: Path) -> None:
        settings: dict[str, Any] = {
            "name": self.name,
            "implementation": f"{RUNTIME}.Elementwise",
            "inputs": [{"name": "X", "datatype": "FP32", "shape": [-1, 16]}],
            "outputs": [{"name": "Y", "datatype": "FP32", "shape": [-1, 16]}],
            "parameters": {"extra": {"per_call": self.per_call, "per_row": self.per_row}},
            "max_batch_size": self.max_batch,
            "max_batch_time": self.delay,
        }
        place = folder / self.name
        place.mkdir()
        (place / "model-settings.json").write_text(json.dumps(settings))


def elementwise(
    name: str = "elementwise",
    *,
    per_call: float = 0.0,
    per_row: float = 0.0,
    batched: bool = False,
    delay: float = 0.005,
) -> MlModel:
    max_batch = 64 if batched else 0
    return MlModel(name, per_call, per_row, max_batch, delay if batched else 0.0)


class MlServer(Server):
    """HTTP only, JSON only, all models in the one process of the server. Raises MissingError where
    it is not installed, at once."""

    name = "mlserver"

    def __init__(
        self, models: Sequence[MlModel], *, port: int = 0, folder: Path | None = None
    ) -> None:
        self._program = mlserver_program()
        super().__init__(port, folder)
        settings = {
            "host": LOOPBACK,
            "http_port": self.port,
            # It has no switch for these two; 0 gives them a port that is free.
            "grpc_port": 0,
            "metrics_endpoint": None,
            "parallel_workers": 0,
            "debug": False,
            "load_models_at_startup": True,
            "logging_settings": None,
        }
        place = self.folder / "models"
        place.mkdir()
        (place / "settings.json").write_text(json.dumps(settings))
        shutil.copyfile(TEMPLATES / f"{RUNTIME}.py", place / f"{RUNTIME}.py")
        for model in models:
            model.write(place)

    def command(self) -> Sequence[str]:
        return [str(self._program), "start", str(self.folder / "models")]
