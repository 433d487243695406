"""kserve_v1: the predict calls of TF Serving and KServe v1, ``{"instances": [...]}``. Pure.

What an instance is, only the model knows. So none is converted: each stays the piece of JSON that
its caller wrote, and a prediction the piece that the server wrote. Integers beyond 2^53, the digits
of a number and the order of an object's fields all survive. Joined and divided are only the lists
around them, at the cost of two scans and one copy of the bytes.

After https://www.tensorflow.org/tfx/serving/api_rest and KServe's v1 protocol. KServe's own batcher
answers 200 with an error text in place of predictions, to every member, whenever the answer does
not fit. Here that is a ``BadAnswerError``.
"""

from __future__ import annotations

import re
import struct
from base64 import b64encode
from collections.abc import Mapping, Sequence
from math import prod
from typing import cast

import msgspec
from msgspec import Raw

from gpu_batcher.api import SIZES, BadAnswerError, BadRequestError, Call, Message, Reply, Tensor
from gpu_batcher.codecs import tensor_bytes
from gpu_batcher.codecs.tensor_json import FORMATS

JSON_HEAD: Mapping[bytes, bytes] = {b"content-type": b"application/json"}
JOINED_HEAD: Mapping[bytes, bytes] = {**JSON_HEAD, b"accept-encoding": b"identity"}
"""Of a joined request: a compressed answer could not be divided."""
FAULTS = (msgspec.MsgspecError, ValueError, RecursionError)
"""What msgspec raises for JSON from outside: malformed or of another type, not UTF-8 or an integer
too long for Python, nested too deeply."""

_PREDICT = re.compile(
    rb"(?:/[^?#]*)?/v1/models/[^/?#]+?(?:/(?:versions|labels)/[^/?#:]+)?:predict(?:\?[^#]*)?"
)
_WORD = re.compile(rb"\b(?:NaN|Infinity)\b")
# A string, to step over it, or a number that JSON does not have. Possessive, and its end is
# optional: a string that never ends is then one match, not one attempt for each quote in it.
_NUMBER = re.compile(rb'"[^"\\]*+(?:\\.[^"\\]*+)*+"?|(-?(?:NaN|Infinity))', re.DOTALL)

_fields = msgspec.json.Decoder(dict[str, Raw])
_items = msgspec.json.Decoder(list[Raw])
_anything = msgspec.json.Decoder()
encode = msgspec.json.Encoder().encode


class KServeV1:
    """``POST /v1/models/M[/versions/V]:predict``, in row form.

    The key of a call is its whole target and every field besides ``instances`` by its bytes: calls
    whose ``signature_name`` differs, or is only written differently, are not joined.

    Alone go: other verbs, columns (``inputs``), bodies without instances, bodies that are no JSON
    object, other content types, compressed bodies, and bodies with NaN or Infinity, which TF
    Serving reads although JSON has no such numbers. Where a field stands twice the last one counts,
    and what is sent on holds it once.

    ``items`` are ``msgspec.Raw``. They keep the body alive, and may not be changed.
    """

    __slots__ = ()

    name = "kserve_v1"

    def read(self, target: bytes, head: Mapping[bytes, bytes], body: memoryview) -> Call | None:
        """See ``Codec``. O(bytes), without copying the instances."""
        if not _PREDICT.fullmatch(target) or not is_json(head):
            return None
        try:
            fields = read_fields(body)
        except BadRequestError:
            if _WORD.search(body):
                return None
            raise
        if fields is None or "instances" not in fields or "inputs" in fields:
            return None
        instances = fields.pop("instances")
        try:
            items = _items.decode(instances)
        except msgspec.ValidationError:
            return None
        if not items:
            return None
        key = (self.name, target, key_of(fields))
        size = memoryview(instances).nbytes
        return Call(key, rows=len(items), size=size, items=items, notes=fields)

    def join(self, calls: Sequence[Call]) -> Message:
        """The instances of all in order, and the other fields, which are the same for all."""
        fields = cast("dict[str, Raw]", calls[0].notes)
        items = [item for call in calls for item in call.items]
        return Message([encode({"instances": items, **fields})], dict(JOINED_HEAD))

    def divide(self, calls: Sequence[Call], answer: Message) -> list[Reply]:
        """To each call its predictions; the other fields of the answer go to all of them.

        NaN and Infinity come out as they went in: TF Serving writes them, and one caller's NaN is
        no reason to fail the others.

        Raises BadAnswerError where predictions are missing or not one for each instance, and where
        another field holds a list while there are several callers (see ``refuse_lists``).
        """
        text = answer_text(answer)
        mark = b""
        if b"NaN" in text or b"Infinity" in text:
            mark, text = _masked(text)
        fields = answer_fields(text)
        if "predictions" not in fields:
            raise BadAnswerError("predictions: missing from the answer")
        try:
            items = _items.decode(fields["predictions"])
        except FAULTS as error:
            raise BadAnswerError(f"predictions: expected a list: {error}") from error
        total = sum(call.rows for call in calls)
        if len(items) != total:
            raise BadAnswerError(f"predictions: {len(items)} of them for {total} instances")
        if len(calls) > 1:
            refuse_lists({name: raw for name, raw in fields.items() if name != "predictions"})
        mine: dict[str, object] = dict(fields)
        replies = []
        end = 0
        for call in calls:
            start, end = end, end + call.rows
            mine["predictions"] = items[start:end]
            body = encode(mine)
            if mark:
                body = re.sub(b'"' + mark + rb'(-?\w+)"', rb"\1", body)
            replies.append(Reply(answer.status, dict(JSON_HEAD), body))
        return replies

    def reply(self, call: Call, outputs: Sequence[Tensor]) -> Reply:
        """One output: its rows are the predictions. Several: an object by output name for each
        row, as TF Serving has it. NaN becomes null; bytes that are not UTF-8 ``{"b64": ...}``."""
        if not outputs:
            raise BadAnswerError("outputs: the model gave none")
        rows = {output.name: rows_of(output, call.rows) for output in outputs}
        predictions: list[object] = [
            dict(zip(rows, row, strict=True)) for row in zip(*rows.values(), strict=True)
        ]
        if len(outputs) == 1:
            predictions = rows[outputs[0].name]
        return Reply(200, dict(JSON_HEAD), encode({"predictions": predictions}))


def _masked(text: bytes) -> tuple[bytes, bytes]:
    """(mark, text): with each NaN and Infinity outside strings put in quotes behind a mark.

    The mark is a hash of the text with a seed that only this process knows, so nobody can write it
    into an answer beforehand. O(bytes).
    """
    mark = b"%016x:" % (hash(text) & 0xFFFF_FFFF_FFFF_FFFF)
    if mark in text:
        raise BadAnswerError("predictions: NaN that cannot be told from text")
    opening = b'"' + mark
    return mark, _NUMBER.sub(lambda m: m[0] if m[1] is None else opening + m[1] + b'"', text)


# -- what the JSON formats share ------------------------------------------------------------------


def is_json(head: Mapping[bytes, bytes]) -> bool:
    """Whether a body is plain JSON in UTF-8, going by its head. No content type counts as JSON."""
    if head.get(b"content-encoding", b"").strip().lower() not in (b"", b"identity"):
        return False
    kind, _, parameters = head.get(b"content-type", b"application/json").partition(b";")
    charset = parameters.replace(b'"', b"").strip().lower()
    return kind.strip().lower() == b"application/json" and charset in (b"", b"charset=utf-8")


def read_fields(body: memoryview) -> dict[str, Raw] | None:
    """The fields of a request's JSON object, each still JSON; None for JSON that is no object.

    The fields point into the body, and only bytes can promise to stay as they are; a view of
    anything else is copied. Where a name stands twice, the last one counts. Raises BadRequestError.
    """
    owner = body.obj
    whole = isinstance(owner, bytes) and body.c_contiguous and body.nbytes == len(owner)
    text = cast("bytes", owner) if whole else body.tobytes()
    try:
        if not text.isascii():
            str(text, "utf-8")  # Raw fields are not decoded, so nobody else would look.
        return _fields.decode(text)
    except msgspec.ValidationError:
        return None
    except UnicodeDecodeError as error:
        raise BadRequestError(f"body: expected UTF-8: {error.reason} at {error.start}") from error
    except FAULTS as error:
        raise BadRequestError(f"body: expected JSON: {error}") from error


def key_of(fields: Mapping[str, Raw]) -> tuple[tuple[str, bytes], ...]:
    """Fields as part of a key: equal if they have the same names and the same bytes."""
    return tuple(sorted((name, bytes(raw)) for name, raw in fields.items()))


def answer_text(answer: Message) -> bytes:
    """The bytes of an answer. Raises BadAnswerError where they are compressed."""
    encoding = answer.head.get(b"content-encoding", b"").strip().lower()
    if encoding not in (b"", b"identity"):
        raise BadAnswerError("body: the answer is compressed, though it was not to be")
    return answer.joined()


def answer_fields(text: bytes) -> dict[str, Raw]:
    """The fields of an answer's JSON object, in order. Raises BadAnswerError."""
    try:
        return _fields.decode(text)
    except FAULTS as error:
        raise BadAnswerError(f"body: the answer is no JSON object: {error}") from error


def refuse_lists(fields: Mapping[str, Raw]) -> None:
    """Raises BadAnswerError for a field that is, or holds, a list with something in it.

    For fields that are to go to every caller. Nobody can say whether such a list has something for
    each caller, and then each would be given that of the others.
    """
    for name, raw in fields.items():
        text = bytes(raw)
        try:
            held = b"[" in text and _holds_a_list(_anything.decode(text))
        except FAULTS as error:
            raise BadAnswerError(f"{name}: cannot be read: {error}") from error
        if held:
            raise BadAnswerError(f"{name}: holds a list, and nobody can say whose items these are")


def _holds_a_list(value: object) -> bool:
    if isinstance(value, dict):
        return any(_holds_a_list(each) for each in value.values())
    return isinstance(value, list) and bool(value)


def rows_of(output: Tensor, rows: int) -> list[object]:
    """A tensor as nested lists, one for each row. A row without elements is an empty list, whatever
    its other dimensions, since those could claim any size. Raises BadAnswerError."""
    if not output.shape or output.shape[0] != rows:
        raise BadAnswerError(f"{output.name}: shape {output.shape} for {rows} rows")
    count = prod(output.shape)
    nested = values_of(output, count)
    if not count:
        return [[] for _ in range(rows)]
    for size in reversed(output.shape[1:]):
        nested = [nested[at : at + size] for at in range(0, len(nested), size)]
    return nested


def values_of(output: Tensor, count: int) -> list[object]:
    """The ``count`` elements of a tensor as Python values. Raises BadAnswerError."""
    data = bytes(output.data)
    kind = output.datatype
    if kind == "BYTES":
        view = memoryview(data)
        try:
            tensor_bytes.ends(view, [count])
        except tensor_bytes.DataError as error:
            raise BadAnswerError(f"{output.name}: {error}") from error
        return [_string(bytes(each)) for each in tensor_bytes.elements(view)]
    if kind not in SIZES or len(data) != count * SIZES[kind]:
        raise BadAnswerError(f"{output.name}: {len(data)} bytes for {count} elements of {kind}")
    if kind == "BF16":  # The upper half of a float32.
        upper = struct.unpack(f"<{count}H", data)
        data = struct.pack(f"<{count}I", *(bits << 16 for bits in upper))
        kind = "FP32"
    return list(struct.unpack(f"<{count}{FORMATS[kind]}", data))


def _string(element: bytes) -> object:
    try:
        return element.decode()
    except UnicodeDecodeError:
        return {"b64": b64encode(element).decode()}
