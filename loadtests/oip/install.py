"""install: what PyPI has of Triton and MLServer, into ``.servers/``.

Triton's wheel (``nvidia-pytriton``: the server, the Python backend, the libraries of both) is taken
without what it depends on. That is for pytriton's own Python code, of which nothing is used, and
asks for older versions of NumPy and protobuf than tailrace may have. A NumPy of its own comes with
it all the same: the Python backend was built before NumPy 2, and with that it silently takes every
array for one of elements without a size.
"""

from __future__ import annotations

import ctypes
import os
import shutil
import subprocess
import sys
import sysconfig
from pathlib import Path

ROOT = Path(__file__).parents[2]
SERVERS = ROOT / ".servers"
TRITON = ("nvidia-pytriton>=0.7,<0.8", "numpy>=1.26,<2")
MLSERVER = "mlserver>=1.7,<1.8"
_DONE = ".installed"
"""Stands in a folder when all of it is there: an install may have been broken off."""
_PIP = ("-m", "pip", "install", "--quiet", "--disable-pip-version-check")


class MissingError(RuntimeError):
    """A server that is not installed, or cannot run here; the text says why and what to do."""


def triton_folder() -> Path:
    """Triton's files, and its NumPy. Raises MissingError."""
    place = SERVERS / "triton"
    if not (place / _DONE).is_file():
        raise MissingError("Triton is not installed: make triton ARGS=--install")
    return place


def python_stub(place: Path) -> Path:
    """The process that runs ``model.py``, for the version of the Python that runs us. Raises
    MissingError."""
    version = f"{sys.version_info.major}.{sys.version_info.minor}"
    stub = place / f"pytriton/tritonserver/python_backend_stubs/{version}"
    stub /= "triton_python_backend_stub"
    if not stub.is_file():
        raise MissingError(f"this Triton knows no Python {version}")
    try:
        ctypes.CDLL(f"libpython{version}.so.1.0")
    except OSError:
        folder = sysconfig.get_config_var("LIBDIR")
        if not Path(folder, f"libpython{version}.so.1.0").is_file():
            raise MissingError(
                f"Triton needs libpython{version}.so.1.0 (Debian: libpython{version})"
            ) from None
    return stub


def install_triton() -> None:
    """Nothing if it is there. About 150 MB. Raises MissingError."""
    try:
        triton_folder()
    except MissingError:
        target = _folder("triton")
        _pip(sys.executable, "--no-deps", "--target", str(target), *TRITON)
        (target / _DONE).touch()
    python_stub(triton_folder())


def mlserver_program() -> Path:
    """Raises MissingError."""
    program = SERVERS / "mlserver/bin/mlserver"
    if not (SERVERS / "mlserver" / _DONE).is_file():
        raise MissingError("MLServer is not installed: make mlserver ARGS=--install")
    return program


def install_mlserver() -> None:
    """Nothing if it is there. An environment of its own, about 330 MB. Raises MissingError."""
    try:
        mlserver_program()
    except MissingError:
        target = _folder("mlserver")
        subprocess.run((sys.executable, "-m", "venv", str(target)), check=True)
        _pip(str(target / "bin/python"), MLSERVER)
        (target / _DONE).touch()


def _folder(name: str) -> Path:
    SERVERS.mkdir(exist_ok=True)
    (SERVERS / ".gitignore").write_text("*\n")
    shutil.rmtree(SERVERS / name, ignore_errors=True)
    return SERVERS / name


def _pip(python: str, *what: str) -> None:
    # pip warns on stderr about whatever else it finds; it is shown only if the install fails.
    run = subprocess.run(
        (python, *_PIP, *what), env=os.environ, capture_output=True, text=True, check=False
    )
    if run.returncode:
        raise MissingError(f"{what[-1]} does not install here: {run.stderr.strip()}")
