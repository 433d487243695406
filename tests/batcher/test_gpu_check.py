"""The check for machines with a GPU: that it runs, and that its checks can fail.

What it says of the stand-in means nothing, but on a machine with a GPU it is to be run, not mended.
"""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from gpu_batcher import kernels
from gpu_batcher.device import CupyDevice
from loadtests import gpu_cases, gpu_check, gpu_share, gpu_speed
from tests.batcher.fake_cupy import COMPILER, FakeCupy

ROOT = Path(__file__).parent.parent.parent


@pytest.fixture
def cupy(monkeypatch: pytest.MonkeyPatch) -> FakeCupy:
    found = FakeCupy(None)
    monkeypatch.setitem(sys.modules, "cupy", found)
    return found


def test_without_a_gpu_it_says_so_in_one_line() -> None:
    hidden = "import sys; sys.modules['cupy'] = None; from loadtests.gpu_check import main"
    program = f"{hidden}; sys.exit(main([]))"
    run = subprocess.run(
        (sys.executable, "-c", program), cwd=ROOT, capture_output=True, text=True, check=False
    )
    said = json.loads(run.stdout)
    assert (run.returncode, run.stderr, run.stdout.count("\n")) == (2, "", 1)
    assert (said["ok"], said["ran"]) == (False, False)
    assert "no CUDA here" in said["reason"]


def test_all_of_it_runs(
    cupy: FakeCupy, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    check_kernels, check_devices = gpu_cases.check_kernels, gpu_cases.check_devices
    check_leaks = gpu_share.check_leaks
    packing, gathering, overlap = gpu_speed.packing, gpu_speed.gathering, gpu_speed.overlap
    few: Any = {
        (gpu_cases, "check_kernels"): lambda c, k, _, s: check_kernels(c, k, 3, s),
        (gpu_cases, "check_devices"): lambda d, _, s: check_devices(d, 10, s),
        (gpu_share, "check_leaks"): lambda c, d, _, s: check_leaks(c, d, 10, s),
        (gpu_share, "check_ipc"): lambda *_: {"ok": True},  # It needs another process's GPU.
        (gpu_speed, "packing"): lambda c, i, _, s: packing(c, i, 1, s),
        (gpu_speed, "gathering"): lambda c, i, _, s, __: gathering(c, i, 1, s, 8 << 20),
        (gpu_speed, "overlap"): lambda c, i, _, s: overlap(c, i, 2, s),
    }
    for (module, name), work in few.items():
        monkeypatch.setattr(module, name, work)
    monkeypatch.setattr(gpu_share, "SETTLING", 5)
    monkeypatch.setattr(gpu_speed, "WARM_UP", 1)
    monkeypatch.setattr(gpu_speed, "IN_A_ROW", 1)
    code = gpu_check.main(["--quick"])
    report = json.loads(capsys.readouterr().out)
    parts = {**report["checks"], **report["figures"]}
    assert [part for part in parts.values() if "error" in part] == []
    assert (code, report["ok"]) == (0, True)


@pytest.mark.skipif(COMPILER is None, reason="no C++ compiler")
def test_the_kernels_pass_it(cupy: FakeCupy, tmp_path: Path) -> None:
    real = FakeCupy(tmp_path)
    found = gpu_cases.check_kernels(real, kernels.Kernels(real), 20, 1)
    assert found["wrong"] == []


@pytest.mark.parametrize("name", ["pack", "unpack"])
def test_it_finds_a_kernel_that_leaves_a_byte_wrong(
    cupy: FakeCupy, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    real = getattr(kernels.Kernels, name)

    def wrong(self: Any, raw: int, packed: int, table: int, grid: Any, *rest: int) -> None:
        """A side mistaken."""
        grid.left = not grid.left
        real(self, raw, packed, table, grid, *rest)
        grid.left = not grid.left

    monkeypatch.setattr(kernels.Kernels, name, wrong)
    assert not gpu_cases.check_kernels(cupy, kernels.Kernels(cupy), 10, 1)["ok"]
    assert not gpu_cases.check_devices(CupyDevice(), 20, 1)["ok"]
