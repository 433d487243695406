"""kserve_v2_request: reads requests of the Open Inference Protocol v2. Pure.

Three ends: a ``Call`` that may be joined; None for what is not understood well enough, which goes
alone and untouched, for the server to judge; BadRequestError for what no server should accept.

Clients send the same JSON before ever new tensors, so what was read from it is kept, and found
again by all of its bytes. Nothing can pass from one caller to another by that: what is kept is a
function of exactly the bytes that the caller sent. JSON with data in it is not kept, and an id at
its beginning is put aside first.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Annotated, Any, NamedTuple, TypeAlias
from urllib.parse import unquote

import msgspec

from gpu_batcher.api import SIZES, BadRequestError, Call, Tensor
from gpu_batcher.codecs import tensor_bytes, tensor_json
from gpu_batcher.codecs.json_body import is_readable
from gpu_batcher.codecs.tensor_bytes import DataError

HEADER_LENGTH = b"inference-header-content-length"
MOST_DIMENSIONS = tensor_json.DEEPEST
LONGEST_KEPT = 2048
"""Bytes of target and JSON that are kept."""
MOST_KEPT = 256

_TARGET = re.compile(rb"/v2/models/([^/?#]+)(?:/versions/([^/?#]+))?/infer")
_ID = re.compile(rb' *\{ *"id" *: *"([ !#-\[\]-~]*)" *, *')
_NO_DATA = msgspec.Raw()
# Parameters that are about this one request, so that they have no place in a joined one.
_OWN_PARAMETER = re.compile(r"sequence_.*|triton_.*|priority|timeout|headers", re.DOTALL)
_OWN_INPUT = re.compile(r"shared_memory_.*", re.DOTALL)
_OWN_OUTPUT = re.compile(r"shared_memory_.*|classification", re.DOTALL)

Extras: TypeAlias = tuple[tuple[str, bytes], ...]
"""Parameters that mean nothing to us: name and JSON text, by name. Text, because 1, 1.0 and true
are equal in Python and not to a server."""
Dimension: TypeAlias = Annotated[int, msgspec.Meta(ge=0, le=2**63 - 1)]


class _Input(msgspec.Struct, forbid_unknown_fields=True):
    name: str
    shape: tuple[Dimension, ...]
    datatype: str
    parameters: dict[str, Any] | None = None
    data: msgspec.Raw = _NO_DATA


class _Output(msgspec.Struct, forbid_unknown_fields=True):
    name: str
    parameters: dict[str, Any] | None = None


class _Request(msgspec.Struct, forbid_unknown_fields=True):
    inputs: list[_Input]
    outputs: list[_Output] | None = None
    parameters: dict[str, Any] | None = None
    id: str | None = None
    model_name: str | None = None


_REQUEST = msgspec.json.Decoder(_Request)


class Asked(NamedTuple):
    """An output that the caller named."""

    name: str
    binary: bool
    extras: Extras


@dataclass(slots=True)
class Ask:
    """What of a request its reply and the joined request need. Equal requests share it, so it is
    not to be changed. ``binary``: of the outputs, where none is named. ``outputs``: in the caller's
    order; none: all that there are, in the server's. ``inputs``: parameters by name of the input,
    for those that have any."""

    model: str
    version: str
    id: str | None
    binary: bool
    outputs: tuple[Asked, ...]
    parameters: Extras
    inputs: Mapping[str, Extras]

    def named(self, own_id: str) -> Ask:
        return Ask(
            self.model,
            self.version,
            own_id,
            self.binary,
            self.outputs,
            self.parameters,
            self.inputs,
        )


class _AloneError(Exception):
    """Not understood well enough to be joined."""


@dataclass(slots=True)
class _Part:
    """An input: from ``start`` to ``stop`` of what follows the JSON, or its ``data`` in it."""

    name: str
    datatype: str
    shape: tuple[int, ...]
    count: int
    start: int
    stop: int
    data: bytes | None
    extras: Extras


@dataclass(slots=True)
class _Plan:
    """What was read from the JSON of a request, in a form that quickly makes a Call of the rest.
    ``follows``: the bytes that must come after the JSON."""

    key: tuple[object, ...]
    rows: int
    size: int
    length: int
    follows: int
    parts: list[_Part]
    ask: Ask

    def call(self, rest: memoryview, own_id: str | None, *, texts: bool) -> Call:
        """``texts``: the data will be sent as JSON."""
        if len(rest) != self.follows:
            raise BadRequestError(
                f"{len(rest)} bytes follow the JSON where the binary_data_size of the inputs add up"
                f" to {self.follows}"
            )
        inputs = []
        for part in self.parts:
            data: bytes | memoryview | None = part.data
            if data is None:
                data = rest[part.start : part.stop]
                if part.datatype == "BYTES":
                    _check_elements(part, data)
                if texts:
                    _check_text(part, data)
            inputs.append(Tensor(part.name, part.datatype, part.shape, data))
        ask = self.ask
        if own_id is not None and ask.id is None:
            ask = ask.named(own_id)
        return Call(self.key, self.rows, self.size, self.length, tuple(inputs), (), ask)


class Reader:
    """Requests to Calls. ``variable``: input name -> axes whose lengths may differ within a batch.
    ``in_json``: the datatypes that JSON may carry. ``json_only``: what the server is sent is JSON,
    in whatever form it came."""

    def __init__(
        self, variable: Mapping[str, tuple[int, ...]], in_json: frozenset[str], *, json_only: bool
    ) -> None:
        for name, axes in variable.items():
            if any(axis < 1 for axis in axes):
                raise ValueError(f"the variable axes of {name!r} count from 1: 0 is the batch")
        self._variable = {name: frozenset(axes) for name, axes in variable.items()}
        self._in_json = in_json
        self._json_only = json_only
        self._kept: dict[tuple[bytes, bytes], _Plan] = {}

    def read(self, target: bytes, head: Mapping[bytes, bytes], body: memoryview) -> Call | None:
        """About 3 us for JSON that was seen before, whatever the size of a binary tensor; BYTES
        take 0.1 us an element. Raises BadRequestError."""
        if not is_readable(head):
            return None
        claimed = head.get(HEADER_LENGTH)
        try:
            length = header_length(claimed, len(body))
        except DataError as error:
            raise BadRequestError(str(error)) from None
        if claimed is not None and length == 0:
            return None  # A raw request: the whole body is the one input, of a shape not told.
        text = bytes(body[:length])
        own_id = None
        if found := _ID.match(text):
            # The rest is JSON exactly if the whole was, and says the same but for the id.
            own_id = found[1].decode()
            text = b"{" + text[found.end() :]
        plan = self._kept.get((target, text)) if length <= LONGEST_KEPT else None
        try:
            if plan is None:
                plan = self._plan(target, text)
                self._keep(target, text, plan)
            return plan.call(body[length:], own_id, texts=self._json_only)
        except _AloneError:
            return None

    def _keep(self, target: bytes, text: bytes, plan: _Plan) -> None:
        if plan.ask.id is not None or len(target) + len(text) > LONGEST_KEPT:
            return
        if any(part.data is not None for part in plan.parts):
            return
        if len(self._kept) >= MOST_KEPT:
            # Whoever sends ever new JSON costs the others one reading each, now and then.
            self._kept.clear()
        self._kept[target, text] = plan

    def _plan(self, target: bytes, text: bytes) -> _Plan:
        place = _TARGET.fullmatch(target)
        if place is None:
            raise _AloneError
        model, version = [unquote((each or b"").decode("latin-1")) for each in place.groups()]
        request = _decoded(text)
        if request.model_name not in (None, model):
            raise _AloneError
        parts: list[_Part] = []
        follows = 0
        for each in request.inputs:
            parts.append(self._part(each, follows))
            follows = parts[-1].stop
        rows = _rows(parts)
        parts.sort(key=lambda part: part.name)
        ask = _ask(request, parts, model, version)
        shapes, longest = self._shapes(parts)
        key = (
            target,
            tuple([(part.name, part.datatype, part.extras) for part in parts]),
            shapes,
            # Whether as JSON or binary makes no difference to what the server is asked.
            tuple(sorted([(each.name, each.extras) for each in ask.outputs])),
            ask.parameters,
        )
        size = follows + sum([len(part.data) for part in parts if part.data is not None])
        return _Plan(key, rows, size, longest, follows, parts, ask)

    def _part(self, given: _Input, start: int) -> _Part:
        name = shown(given.name)
        parameters = given.parameters or {}
        ways = [each in parameters for each in ("binary_data_size", "shared_memory_region")]
        in_json = given.data is not _NO_DATA
        if in_json + sum(ways) != 1:
            raise BadRequestError(
                f"input {name} is to have exactly one of data, binary_data_size and"
                " shared_memory_region"
            )
        extras = _extras(parameters, "binary_data_size", _OWN_INPUT)
        if not given.shape or given.datatype not in SIZES:
            raise _AloneError
        if len(given.shape) > MOST_DIMENSIONS:
            raise BadRequestError(f"input {name} has more than {MOST_DIMENSIONS} dimensions")
        count = math.prod(given.shape)
        data = None
        size = 0
        if in_json:
            data = self._data(given, count)
        else:
            size = parameters["binary_data_size"]
            if type(size) is not int or size < 0:
                raise BadRequestError(
                    f"binary_data_size of input {name} is to be a number of bytes"
                )
            each = SIZES[given.datatype]
            if each and size != count * each:
                raise BadRequestError(
                    f"binary_data_size of input {name} is {size} where its shape and datatype"
                    f" have {count * each} bytes"
                )
        return _Part(
            given.name, given.datatype, given.shape, count, start, start + size, data, extras
        )

    def _data(self, given: _Input, count: int) -> bytes:
        if given.datatype not in self._in_json:
            raise BadRequestError(
                f"input {shown(given.name)} has the datatype {given.datatype}, which is to be"
                " sent as binary data"
            )
        try:
            return tensor_json.decode(given.datatype, given.data, count)
        except DataError as error:
            raise BadRequestError(f"input {shown(given.name)} {error}") from None

    def _shapes(self, parts: list[_Part]) -> tuple[tuple[tuple[int | None, ...], ...], int]:
        """The dimensions that all of a batch must share, None for the others, and the largest of
        those."""
        if not self._variable:
            return tuple([part.shape[1:] for part in parts]), 1
        shapes: list[tuple[int | None, ...]] = []
        longest = 1
        for part in parts:
            axes = self._variable.get(part.name, frozenset())
            longest = max([longest, *[part.shape[at] for at in axes if at < len(part.shape)]])
            tail = [None if at in axes else size for at, size in enumerate(part.shape)]
            shapes.append(tuple(tail[1:]))
        return tuple(shapes), longest


def header_length(claimed: bytes | None, size: int) -> int:
    """Bytes of JSON at the beginning of a body of ``size``. Raises DataError."""
    if claimed is None:
        return size
    if not claimed.isdigit() or len(claimed) > 18:
        raise DataError("Inference-Header-Content-Length is to be a number of bytes")
    length = int(claimed)
    if length > size:
        raise DataError(f"Inference-Header-Content-Length is {length}, but the body has {size}")
    return length


def _decoded(text: bytes) -> _Request:
    try:
        return _REQUEST.decode(text)
    except RecursionError:
        raise BadRequestError("the JSON is nested too deep") from None
    except msgspec.ValidationError as error:
        if "unknown field" in str(error):
            raise _AloneError from None
        raise BadRequestError(f"not an inference request: {error}") from None
    except (msgspec.MsgspecError, ValueError) as error:
        if b"NaN" in text or b"Infinity" in text:
            # No JSON, but Triton and its client take it so; and a missing value is often told so.
            raise _AloneError from None
        # ValueError: not UTF-8, or an integer of thousands of digits.
        raise BadRequestError(f"malformed JSON: {error}") from None


def _rows(parts: list[_Part]) -> int:
    if len({part.name for part in parts}) < len(parts):
        raise BadRequestError("two inputs have the same name")
    rows = {part.shape[0] for part in parts}
    if len(rows) != 1 or 0 in rows:
        # No common first dimension, so none that is the batch; or an empty one.
        raise _AloneError
    return rows.pop()


def _ask(request: _Request, parts: list[_Part], model: str, version: str) -> Ask:
    parameters = request.parameters or {}
    binary = _flag(parameters, "binary_data_output", default=False)
    outputs = []
    for each in request.outputs or ():
        given = each.parameters or {}
        form = _flag(given, "binary_data", default=binary)
        outputs.append(Asked(each.name, form, _extras(given, "binary_data", _OWN_OUTPUT)))
    if len({each.name for each in outputs}) < len(outputs):
        raise _AloneError
    extras = _extras(parameters, "binary_data_output", _OWN_PARAMETER)
    inputs = {part.name: part.extras for part in parts if part.extras}
    return Ask(model, version, request.id, binary, tuple(outputs), extras, inputs)


def _flag(parameters: dict[str, Any], name: str, *, default: bool) -> bool:
    value = parameters.get(name, default)
    if not isinstance(value, bool):
        raise BadRequestError(f"{name} is to be true or false")
    return value


def _extras(parameters: dict[str, Any], ours: str, alone: re.Pattern[str]) -> Extras:
    """All parameters but ``ours``. A request with one that matches ``alone``, or that is not a
    number, a string or true or false, is not joined."""
    extras = []
    for name in sorted(parameters):
        if name == ours:
            continue
        value = parameters[name]
        if alone.fullmatch(name) or not isinstance(value, (str, int, float)):
            raise _AloneError
        if isinstance(value, int) and not -(2**63) <= value < 2**64:
            raise _AloneError
        extras.append((name, msgspec.json.encode(value)))
    return tuple(extras)


def _check_elements(part: _Part, data: memoryview) -> None:
    try:
        tensor_bytes.ends(data, (part.count,))
    except DataError as error:
        raise BadRequestError(f"input {shown(part.name)} {error}") from None


def _check_text(part: _Part, data: memoryview) -> None:
    try:
        text = tensor_json.encode(part.datatype, data)
    except DataError:
        raise _AloneError from None
    if part.datatype != "BYTES" and b"null" in text:
        raise _AloneError  # NaN or an infinity.


def shown(name: str) -> str:
    """A name for a message, which need not be as long as the request."""
    return repr(name if len(name) <= 64 else name[:61] + "...")
