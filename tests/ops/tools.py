"""What the extra ``ops`` installs. Without it its tests are skipped, but never on a build machine:
there a check that did not run would look like one that passed."""

from __future__ import annotations

import importlib
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

ON_BUILD_MACHINE = bool(os.environ.get("CI"))


def missing(what: str) -> None:
    """Skip, or fail where it must be there."""
    if ON_BUILD_MACHINE:
        pytest.fail(f"not here: {what}")
    pytest.skip(f"not here: {what}")


def program(name: str) -> str:
    """The path of a program that came with the environment."""
    path = Path(sys.prefix) / "bin" / name
    if not path.exists():
        missing(f"{name}, which `make ops` installs")
    return str(path)


def module(name: str) -> Any:
    try:
        return importlib.import_module(name)
    except ImportError:
        return missing(f"{name}, which `make ops` installs")


def output(*command: str | Path) -> str:
    """What a command that must succeed prints."""
    run = subprocess.run([*map(str, command)], capture_output=True, text=True, check=False)
    assert run.returncode == 0, run.stdout + run.stderr
    return run.stdout


def documents(text: str) -> list[dict[str, Any]]:
    return [each for each in yaml.safe_load_all(text) if each]


def walk(value: Any) -> Iterator[Any]:
    """A value and everything in it."""
    yield value
    if isinstance(value, dict | list):
        for each in value.values() if isinstance(value, dict) else value:
            yield from walk(each)
