"""kserve_v2_answer: divides answers of the Open Inference Protocol v2 among callers. Pure.

What must never happen is that a caller gets another's rows. So rows are cut in one place
(``Column``), and only from a tensor whose first dimension is the sum of the callers' rows and
whose bytes are exactly as many as its shape says.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import msgspec

from gpu_batcher.api import SIZES, BadAnswerError, Call, Message, Reply, Tensor
from gpu_batcher.codecs import tensor_bytes, tensor_json
from gpu_batcher.codecs.json_body import FAULTS, JSON_HEAD, answer_text, what
from gpu_batcher.codecs.kserve_v2_request import (
    HEADER_LENGTH,
    MOST_DIMENSIONS,
    Ask,
    Dimension,
    header_length,
    shown,
)
from gpu_batcher.codecs.tensor_bytes import DataError

_NO_DATA = msgspec.Raw()
_encode = msgspec.json.encode


class _Output(msgspec.Struct):
    name: str
    datatype: str
    shape: tuple[Dimension, ...]
    parameters: dict[str, Any] | None = None
    data: msgspec.Raw = _NO_DATA


class Answer(msgspec.Struct):
    """Fields that are not here are for nobody in particular, so nobody gets them."""

    outputs: list[_Output]
    model_name: str | None = None
    model_version: str | int | None = None
    parameters: dict[str, Any] | None = None


_ANSWER = msgspec.json.Decoder(Answer)


@dataclass(slots=True)
class About:
    """What all callers are told alike: ``fields`` of the answer, and what the server says its
    outputs are, by name (``content_type``, of MLServer). Other parameters could be about one."""

    fields: dict[str, Any]
    kinds: dict[str, str]


def opened(answer: Message) -> tuple[Answer, memoryview]:
    """The JSON of an answer, and what follows it. Raises BadAnswerError."""
    body = memoryview(answer_text(answer))
    try:
        length = header_length(answer.head.get(HEADER_LENGTH), len(body))
        return _ANSWER.decode(body[:length]), body[length:]
    except DataError as error:
        raise BadAnswerError(f"not an inference answer: {error}") from None
    except FAULTS as error:
        raise BadAnswerError(f"not an inference answer: {what(error)}") from None


def about(given: Answer) -> About:
    fields: dict[str, Any] = {}
    if given.model_name is not None:
        fields["model_name"] = given.model_name
    if given.model_version is not None:
        fields["model_version"] = given.model_version
    if kind := _content_type(given.parameters):
        fields["parameters"] = {"content_type": kind}
    return About(fields, {each.name: _content_type(each.parameters) for each in given.outputs})


def tensors(given: Answer, rest: memoryview) -> list[Tensor]:
    """The outputs of an answer; ``rest`` is what follows its JSON. Raises BadAnswerError."""
    found = []
    at = 0
    for each in given.outputs:
        if len(each.shape) > MOST_DIMENSIONS:
            raise BadAnswerError(f"output {shown(each.name)} has {len(each.shape)} dimensions")
        size = (each.parameters or {}).get("binary_data_size")
        data: bytes | memoryview = b""
        if size is not None:
            if type(size) is not int or not 0 <= size <= len(rest) - at:
                raise BadAnswerError(
                    f"output {shown(each.name)} has a binary_data_size that is no number of bytes"
                    f" up to the {len(rest) - at} that are left"
                )
            data = rest[at : at + size]
            at += size
        elif each.data is not _NO_DATA:
            data = _from_json(each)
        found.append(Tensor(each.name, each.datatype, each.shape, data))
    if at != len(rest):
        raise BadAnswerError(f"{len(rest) - at} bytes follow the outputs of the answer")
    return found


def divided(
    calls: Sequence[Call],
    outputs: Sequence[Tensor],
    told: About,
    in_json: frozenset[str],
    own: Mapping[str, Sequence[Tensor]] | None = None,
) -> list[Reply]:
    """A reply for each call, in order. ``in_json``: the datatypes that JSON may carry. ``own``: see
    ``TensorCodec.deal``. Raises BadAnswerError. O(bytes), and about 3 us for each call with binary
    outputs. The bodies are copies."""
    if not outputs:
        raise BadAnswerError("the answer has no outputs")
    own = own or {}
    counts = [call.rows for call in calls]
    columns = {
        each.name: Column.apart(each, own[each.name], counts)
        if each.name in own
        else Column.of(each, counts)
        for each in outputs
    }
    if len(columns) != len(outputs):
        raise BadAnswerError("the answer has two outputs of the same name")
    if not columns.keys() >= own.keys():
        raise BadAnswerError("there are parts of an output that the answer does not have")
    forms: dict[object, _Form] = {}
    replies = []
    for place, call in enumerate(calls):
        ask = call.notes
        assert isinstance(ask, Ask)
        form = forms.get((ask.outputs, ask.binary))
        if form is None:
            form = _Form.of(ask, columns, told, in_json)
            forms[ask.outputs, ask.binary] = form
        replies.append(form.reply(place, call.rows, ask.id))
    return replies


@dataclass(slots=True)
class Column:
    """An output, and the ``views`` of it that belong to each caller, in the callers' order, as
    tensors of the dimensions ``tails`` behind the rows. ``alike``: all have the same ones."""

    tensor: Tensor
    views: list[memoryview]
    tails: Sequence[tuple[int, ...]]
    alike: bool

    @classmethod
    def of(cls, tensor: Tensor, counts: Sequence[int]) -> Column:
        """The rows of each caller, one caller's after the other's. ``counts``: how many each has.
        Raises BadAnswerError."""
        data = _whole(tensor, sum(counts))
        tail = tensor.shape[1:]
        per_row = math.prod(tail)
        stops = []
        if size := SIZES[tensor.datatype]:
            at = 0
            for count in counts:
                at += count * per_row * size
                stops.append(at)
        else:
            stops = _ends(tensor, data, [count * per_row for count in counts])
        starts = [0, *stops[:-1]]
        views = [data[a:b] for a, b in zip(starts, stops, strict=True)]
        return cls(tensor, views, [tail] * len(counts), alike=True)

    @classmethod
    def apart(cls, whole: Tensor, parts: Sequence[Tensor], counts: Sequence[int]) -> Column:
        """A tensor for each caller; of ``whole`` only the datatype counts. Raises
        BadAnswerError."""
        if len(parts) != len(counts):
            raise BadAnswerError(
                f"output {shown(whole.name)} has parts for {len(parts)} callers of {len(counts)}"
            )
        views = []
        for part, count in zip(parts, counts, strict=True):
            if part.datatype != whole.datatype:
                raise BadAnswerError(f"a part of output {shown(whole.name)} has another datatype")
            data = _whole(part, count)
            if not SIZES[part.datatype]:
                _ends(part, data, [math.prod(part.shape)])
            views.append(data)
        return cls(whole, views, [part.shape[1:] for part in parts], alike=False)


def _whole(tensor: Tensor, rows: int) -> memoryview:
    """The bytes of a tensor of so many rows; those of BYTES are still to be walked. Raises
    BadAnswerError."""
    shape = tensor.shape
    if not shape or shape[0] != rows or min(shape) < 0:
        raise BadAnswerError(
            f"output {shown(tensor.name)} has the shape {list(shape)[:MOST_DIMENSIONS]} where"
            f" {rows} rows were asked"
        )
    size = SIZES.get(tensor.datatype)
    if size is None:
        raise BadAnswerError(f"output {shown(tensor.name)} is of a datatype unknown here")
    try:
        data = flat(tensor.data)
    except (TypeError, ValueError):
        raise BadAnswerError(f"output {shown(tensor.name)} has data of a foreign format") from None
    if size and len(data) != math.prod(shape) * size:
        raise BadAnswerError(
            f"output {shown(tensor.name)} has {len(data)} bytes where its shape and datatype have"
            f" {math.prod(shape) * size}"
        )
    return data


def _ends(tensor: Tensor, data: memoryview, counts: Sequence[int]) -> list[int]:
    try:
        return tensor_bytes.ends(data, counts)
    except DataError as error:
        raise BadAnswerError(f"output {shown(tensor.name)} {error}") from None


@dataclass(slots=True)
class _Form:
    """A way in which callers asked for their outputs, with what can be shared among those."""

    chosen: list[tuple[Column, bool]]
    """In the order of the reply; whether as binary data."""
    told: About
    in_json: frozenset[str]
    fixed: bool
    """All binary, of fixed size and dimensions: then the JSON depends on nothing but the rows."""
    texts: dict[int, bytes] = field(default_factory=dict)

    @classmethod
    def of(
        cls, ask: Ask, columns: Mapping[str, Column], told: About, in_json: frozenset[str]
    ) -> _Form:
        if ask.outputs:
            missing = [each.name for each in ask.outputs if each.name not in columns]
            if missing:
                raise BadAnswerError(f"output {shown(missing[0])} is missing from the answer")
            chosen = [(columns[each.name], each.binary) for each in ask.outputs]
        else:
            chosen = [(column, ask.binary) for column in columns.values()]
        fixed = all(
            binary and column.alike and SIZES[column.tensor.datatype] > 0
            for column, binary in chosen
        )
        return cls(chosen, told, in_json, fixed)

    def reply(self, place: int, rows: int, own_id: str | None) -> Reply:
        """Of the caller at ``place``."""
        text = self.texts.get(rows)
        if text is None:
            try:
                text = self._text(place, rows)
            except DataError as error:
                # The caller's own choice of form, and the status that Triton has for it.
                return Reply(400, dict(JSON_HEAD), _encode({"error": str(error)}))
            if self.fixed:
                self.texts[rows] = text
        if own_id:
            text = b'{"id":' + _encode(own_id) + b"," + text[1:]
        views = [column.views[place] for column, binary in self.chosen if binary]
        body = b"".join((text, *views))
        # As Triton does it: without a byte of binary data, it is a JSON answer.
        head = binary_head(text) if len(body) > len(text) else dict(JSON_HEAD)
        return Reply(200, head, body)

    def _text(self, place: int, rows: int) -> bytes:
        """The JSON of a reply, without the id. Raises DataError."""
        outputs = []
        for column, binary in self.chosen:
            tensor = column.tensor
            view = column.views[place]
            entry: dict[str, Any] = {
                "name": tensor.name,
                "datatype": tensor.datatype,
                "shape": (rows, *column.tails[place]),
            }
            parameters: dict[str, Any] = {}
            if kind := self.told.kinds.get(tensor.name):
                parameters["content_type"] = kind
            if binary:
                parameters["binary_data_size"] = len(view)
            if parameters:
                entry["parameters"] = parameters
            if not binary:
                entry["data"] = msgspec.Raw(self._json(tensor, view))
            outputs.append(entry)
        return _encode({**self.told.fields, "outputs": outputs})

    def _json(self, tensor: Tensor, view: memoryview) -> bytes:
        try:
            if tensor.datatype not in self.in_json:
                raise DataError(f"has the datatype {tensor.datatype}, which is not sent as JSON")
            return tensor_json.encode(tensor.datatype, view)
        except DataError as error:
            raise DataError(
                f"output {shown(tensor.name)} {error}; ask for it as binary data"
            ) from None


def flat(data: bytes | bytearray | memoryview) -> memoryview:
    """As bytes, whatever the buffer holds; a copy only where its rows do not follow one another.
    Raises ValueError for elements that are not in this machine's format."""
    view = memoryview(data)
    if view.format == "B" and view.ndim == 1 and view.c_contiguous:
        return view
    if len(view.format.lstrip("@")) != 1:  # As ">f", big-endian.
        raise ValueError(f"elements of the format {view.format!r}")
    if not view.nbytes:  # A view with a dimension of 0 cannot be cast.
        return memoryview(b"")
    return view.cast("B") if view.c_contiguous else memoryview(view.tobytes())


def binary_head(text: bytes) -> dict[bytes, bytes]:
    """The header lines of a body that begins with the JSON ``text``."""
    return {b"content-type": b"application/octet-stream", HEADER_LENGTH: b"%d" % len(text)}


def _from_json(output: _Output) -> bytes:
    try:
        count = math.prod(output.shape)
        return tensor_json.decode(output.datatype, output.data, count, nulls=True)
    except DataError as error:
        raise BadAnswerError(f"output {shown(output.name)} {error}") from None


def _content_type(parameters: Mapping[str, Any] | None) -> str:
    kind = (parameters or {}).get("content_type")
    return kind if isinstance(kind, str) else ""
