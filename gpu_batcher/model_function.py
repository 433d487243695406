"""model_function: finds and loads the function of ``runner: python``.

It is looked for on Python's path, where whoever runs the process has put the folder of the models.
A module is imported once in the life of a process, however often it is loaded.
"""

from __future__ import annotations

import logging
import sys
import time
from collections.abc import Callable
from importlib import import_module, invalidate_caches
from typing import Any, cast

log = logging.getLogger("tailrace")

Function = Callable[[Any], Any]


class LoadError(Exception):
    """There is no such function."""


def load(name: str) -> Function:
    """``module:function`` or ``module:Class``, of which an object is made; dots after the colon
    lead into objects. Runs the module, and so takes as long as that does. Raises LoadError."""
    module_name, _, path = name.partition(":")
    if not module_name or not path:
        raise LoadError(f"{name!r}: expected module:function")
    try:
        invalidate_caches()  # It may have come since somebody last looked.
        found = import_module(module_name)
    except ModuleNotFoundError as error:
        raise LoadError(f"{name!r}: no module {error.name!r}") from error
    except BaseException as error:  # SystemExit too: it is not to end the gateway
        raise LoadError(f"{name!r}: importing the module failed: {_shown(error)}") from error
    for part in path.split("."):
        try:
            found = getattr(found, part)
        except AttributeError:
            raise LoadError(f"{name!r}: there is no {part!r} in it") from None
    if isinstance(found, type):
        try:
            found = found()
        except BaseException as error:
            raise LoadError(f"{name!r}: making one failed: {_shown(error)}") from error
    if not callable(found):
        raise LoadError(f"{name!r}: it is not callable")
    return cast("Function", found)


def load_and_tell(name: str) -> Function:
    """``load``, and a line in the log: what was found where, or why not."""
    began = time.monotonic()
    try:
        function = load(name)
    except LoadError as error:
        missing = isinstance(error.__cause__, ModuleNotFoundError)
        log.error(
            "no model, its requests get 503: %s",
            error,
            exc_info=None if missing else error.__cause__,
        )
        raise
    file = getattr(sys.modules.get(name.partition(":")[0]), "__file__", None)
    log.info("model %s of %s loaded in %.1f s", name, file, time.monotonic() - began)
    return function


def _shown(error: BaseException) -> str:
    return f"{type(error).__name__}: {error}"
