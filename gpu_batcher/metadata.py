"""metadata: what a model says of its outputs, and where they would fit beside a batch's inputs.

Only an output whose size is known before the inference can be given a place in a shared-memory
region. What a model says of itself is asked once, beside the first job rather than before it, and
never trusted: the answer to each job says what really came.
"""

from __future__ import annotations

import asyncio
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from math import prod
from typing import TYPE_CHECKING
from urllib.parse import quote

import msgspec

from gpu_batcher.api import SIZES, Tensor
from gpu_batcher.shared_memory import Control, NotUpError, RefusedError, ask

if TYPE_CHECKING:
    from gpu_batcher.grid import Layout
    from gpu_batcher.packing import Packing

MOST_MODELS = 1000
"""Names come from requests, so there may be any number of them."""


class Output(msgspec.Struct, frozen=True):
    """-1 in ``shape``: it varies."""

    name: str
    datatype: str
    shape: tuple[int, ...]


class _Model(msgspec.Struct):
    outputs: list[Output]


_decode = msgspec.json.Decoder(_Model).decode


@dataclass(frozen=True, slots=True)
class Model:
    """Empty ``version``: whichever the server chooses."""

    name: str
    version: str

    @property
    def path(self) -> str:
        version = f"/versions/{quote(self.version, safe='')}" if self.version else ""
        return f"/v2/models/{quote(self.name, safe='')}{version}"


class Models:
    """The outputs of models, as far as they are known."""

    __slots__ = ("_asking", "_control", "_known")

    def __init__(self, control: Control) -> None:
        self._control = control
        self._known: dict[Model, tuple[Output, ...]] = {}
        self._asking: dict[Model, asyncio.Task[None]] = {}

    def outputs(self, model: Model) -> Sequence[Output]:
        """None for a model that is not known yet, which is then asked."""
        known = self._known.get(model)
        if known is None:
            if model not in self._asking and len(self._asking) < MOST_MODELS:
                self._asking[model] = asyncio.create_task(self._ask(model))
            return ()
        return known

    def distrust(self, model: Model) -> None:
        """Its outputs were not what it says; it has none from now on."""
        self._keep(model, ())

    def forget(self) -> None:
        """The server is another one now."""
        self._known.clear()
        self.close()

    def close(self) -> None:
        for task in self._asking.values():
            task.cancel()
        self._asking.clear()

    async def asked(self) -> None:
        """Returns when all questions are answered."""
        await asyncio.gather(*self._asking.values(), return_exceptions=True)

    def _keep(self, model: Model, outputs: tuple[Output, ...]) -> None:
        if len(self._known) >= MOST_MODELS:
            self._known.clear()
        self._known[model] = outputs

    async def _ask(self, model: Model) -> None:
        task = asyncio.current_task()
        try:
            outputs = _decode(await ask(self._control, model.path)).outputs
        except (NotUpError, RefusedError, msgspec.MsgspecError, ValueError, RecursionError):
            return  # The next job asks again.
        finally:
            if self._asking.get(model) is task:
                del self._asking[model]
        self._keep(model, tuple(outputs))


def expected(
    outputs: Sequence[Output],
    named: Sequence[str],
    layout: Layout,
    packing: Packing,
    follows: Mapping[str, str],
) -> list[Tensor]:
    """The outputs with a place, as they should come, without data. ``named``: by the callers, none:
    all that there are; then all get a place or none, as the server would leave out the others.
    ``follows``: output -> the input that it has its variable dimensions from."""
    found = []
    for output in outputs:
        if named and output.name not in named:
            continue
        shape = _shape(output, layout, packing, follows.get(output.name, ""))
        if shape is not None:
            found.append(Tensor(output.name, output.datatype, shape, b""))
        elif not named:
            return []
    return found


def size_of(tensor: Tensor) -> int:
    """Bytes that its shape says."""
    return prod(tensor.shape) * SIZES[tensor.datatype]


def _shape(output: Output, layout: Layout, packing: Packing, like: str) -> tuple[int, ...] | None:
    """None where the bytes are not known, or there are none."""
    if not output.shape or not SIZES.get(output.datatype) or output.shape[0] >= 0:
        # A first dimension that is fixed is not the batch.
        return None
    entry = next((each for each in layout.entries if each.name == like), None)
    ragged = entry is not None and bool(entry.spans)
    axes = packing.rule(like).axes
    shape = [entry.shape[0] if entry is not None and ragged else layout.rows]
    for axis, length in enumerate(output.shape[1:], 1):
        if length >= 0:
            shape.append(length)
        elif entry is None or ragged or axis >= len(entry.shape) or (axes and axis not in axes):
            return None
        else:
            shape.append(entry.shape[axis])
    return tuple(shape) if prod(shape) else None
