"""Everything about the GPU in one command, for a machine that has one; CI has none.

    python -m loadtests.gpu_check [--quick] [--json FILE] [--device N] [--seed N]

Needs NumPy, CuPy and this repository, no other package and no server; takes a minute or two. It
prints JSON: the hardware, what was checked (exit code 1 if a check failed) and the figures, which
are reported and never fail. Without a GPU that CuPy works with it prints one line of JSON that says
so, and exits with 2. ``docs/gpu.md`` says what each of them means.
"""

from __future__ import annotations

import argparse
import datetime
import json
import os
import platform
import sys
import time
import traceback
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from gpu_batcher.device import CupyDevice, DeviceError, load_cupy


def hardware(cupy: Any, index: int) -> dict[str, str]:
    """What the figures were taken on: a figure without its machine says nothing."""
    import numpy as np

    runtime = cupy.cuda.runtime
    properties = runtime.getDeviceProperties(index)
    free, total = runtime.memGetInfo()
    return {
        "gpu": properties["name"].decode(),
        "compute_capability": f"{properties['major']}.{properties['minor']}",
        "gpu_memory": f"{total >> 20} MiB, {free >> 20} free",
        "driver": _driver(),
        "cuda_driver": str(runtime.driverGetVersion()),
        "cuda_runtime": str(runtime.runtimeGetVersion()),
        "cupy": cupy.__version__,
        "numpy": np.__version__,
        "python": platform.python_version(),
        "cpu": _cpu(),
        "cores": str(len(os.sched_getaffinity(0))),
        "kernel": f"{platform.system()} {platform.release()}",
        "date": datetime.datetime.now(datetime.UTC).strftime("%Y-%m-%d %H:%M UTC"),
    }


def _driver() -> str:
    try:
        return Path("/proc/driver/nvidia/version").read_text().split("\n", 1)[0].strip()
    except OSError:
        return "unknown"


def _cpu() -> str:
    for line in Path("/proc/cpuinfo").read_text().splitlines():
        key, _, value = line.partition(":")
        if key.strip() == "model name":
            return value.strip()
    return "unknown"


def attempt(work: Callable[[], dict[str, Any]]) -> dict[str, Any]:
    """The result and the seconds it took; one that breaks does not keep the others from running."""
    began = time.perf_counter()
    try:
        result = work()
    except Exception:
        result = {"ok": False, "error": traceback.format_exc(limit=-4)}
    return {**result, "seconds": round(time.perf_counter() - began, 2)}


def run(cupy: Any, index: int, quick: bool, seed: int) -> dict[str, Any]:
    """All checks, and then all figures."""
    from loadtests import gpu_cases, gpu_share, gpu_speed

    began = time.perf_counter()
    device = CupyDevice(index)
    started = round(time.perf_counter() - began, 3)
    with cupy.cuda.Device(index):
        from gpu_batcher.kernels import Kernels

        compiled = Kernels(cupy)
        cases, batches = (40, 40) if quick else (400, 400)
        repeats = 20 if quick else 200
        leaks = 1000 if quick else 10_000
        checks = {
            "kernels": lambda: gpu_cases.check_kernels(cupy, compiled, cases, seed),
            "devices": lambda: gpu_cases.check_devices(device, batches, seed),
            "ipc": lambda: gpu_share.check_ipc(cupy, device, seed),
            "leaks": lambda: gpu_share.check_leaks(cupy, device, leaks, seed),
        }
        large = (64 if quick else 512) << 20
        figures = {
            "packing": lambda: gpu_speed.packing(cupy, index, repeats, seed),
            "gather": lambda: gpu_speed.gathering(cupy, index, repeats, seed, large),
            "overlap": lambda: gpu_speed.overlap(cupy, index, repeats, seed),
        }
        report: dict[str, Any] = {
            "ran": True,
            "hardware": hardware(cupy, index),
            "start_seconds": started,
            "checks": {name: attempt(check) for name, check in checks.items()},
            "figures": {name: attempt(figure) for name, figure in figures.items()},
        }
    device.close()
    report["ok"] = all(check["ok"] for check in report["checks"].values())
    return report


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--quick", action="store_true", help="fewer cases and repetitions")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the report there as well")
    parser.add_argument("--device", type=int, default=0, metavar="N", help="which GPU")
    parser.add_argument("--seed", type=int, default=1, metavar="N", help="of the random cases")
    options = parser.parse_args(arguments)
    try:
        cupy = load_cupy(options.device)
        report = run(cupy, options.device, options.quick, options.seed)
    except DeviceError as error:
        print(json.dumps({"ok": False, "ran": False, "reason": str(error)}))
        return 2
    text = json.dumps(report, indent=2)
    print(text)
    if options.json is not None:
        options.json.write_text(text + "\n")
    return 0 if report["ok"] else 1


if __name__ == "__main__":
    sys.exit(main())
