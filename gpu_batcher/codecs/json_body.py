"""json_body: what the formats have in common whose bodies are JSON that nobody here understands.

Fields stay the pieces of JSON that somebody wrote (``msgspec.Raw``), so that nothing is lost by
reading and writing them. Pure.
"""

from __future__ import annotations

import struct
from base64 import b64encode
from collections.abc import Container, Mapping
from math import prod
from typing import cast

import msgspec
from msgspec import Raw

from gpu_batcher.api import SIZES, BadAnswerError, BadRequestError, Message, Tensor
from gpu_batcher.codecs import tensor_bytes
from gpu_batcher.codecs.tensor_json import FORMATS

JSON_HEAD: Mapping[bytes, bytes] = {b"content-type": b"application/json"}
JOINED_HEAD: Mapping[bytes, bytes] = {**JSON_HEAD, b"accept-encoding": b"identity"}
"""Of a joined request: a compressed answer could not be divided."""
PLAIN = frozenset({b"", b"identity"})
"""Values of ``content-encoding`` that mean nothing."""
FAULTS = (msgspec.MsgspecError, ValueError, RecursionError)
"""What msgspec raises for JSON from outside: malformed or of another type, not UTF-8 or an integer
too long for Python, nested too deeply."""

_fields = msgspec.json.Decoder(dict[str, Raw])
_anything = msgspec.json.Decoder()
encode = msgspec.json.Encoder().encode


def is_json(head: Mapping[bytes, bytes]) -> bool:
    """Whether a body is plain JSON in UTF-8, going by its head. No content type counts as JSON."""
    kind = head.get(b"content-type", b"application/json").partition(b";")[0]
    return kind.strip().lower() == b"application/json" and is_readable(head)


def is_readable(head: Mapping[bytes, bytes]) -> bool:
    """Whether a body is neither compressed nor text in another charset than UTF-8."""
    if head.get(b"content-encoding", b"").strip().lower() not in PLAIN:
        return False
    for each in head.get(b"content-type", b"").split(b";")[1:]:
        name, _, value = each.partition(b"=")
        if name.strip().lower() == b"charset":
            return value.strip(b' \t"').lower() in (b"utf-8", b"utf8")
    return True


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
    if answer.head.get(b"content-encoding", b"").strip().lower() not in PLAIN:
        raise BadAnswerError("body: the answer is compressed, though it was not to be")
    return answer.joined()


def answer_fields(text: bytes) -> dict[str, Raw]:
    """The fields of an answer's JSON object, in order. Raises BadAnswerError."""
    try:
        if not text.isascii():
            str(text, "utf-8")  # See ``read_fields``: a reply is to be JSON as well.
        return _fields.decode(text)
    except FAULTS as error:
        raise BadAnswerError(f"body: the answer is no JSON object: {what(error)}") from None


def what(error: Exception) -> str:
    """What is wrong with an answer, in words that hold nothing of it: the text goes to every caller
    in its batch, and Python's own words for bad UTF-8 hold a byte of what somebody else was sent.
    ``error`` is one of ``FAULTS``."""
    if isinstance(error, RecursionError):
        return "it is nested too deep"
    if isinstance(error, msgspec.MsgspecError):
        return str(error)
    return "it is not UTF-8, or has an integer of thousands of digits"


def for_all(fields: Mapping[str, Raw], divided: str, known: Container[str]) -> dict[str, Raw]:
    """The fields of an answer that every one of several callers may be given: ``divided``, for its
    place, and those ``known`` to be about the model, unless they hold an object. Nobody can say
    whom another is about (an id made of the first caller's, a warning that quotes an input), so
    nobody gets it.

    Raises BadAnswerError for a field that is, or holds, a list with something in it: it may have
    something for each caller, and an answer without that is not what they asked for.
    """
    found = {}
    for name, raw in fields.items():
        if name == divided:
            found[name] = raw
            continue
        text = bytes(raw)
        try:
            held = b"[" in text and _holds_a_list(_anything.decode(text))
        except FAULTS as error:
            raise BadAnswerError(f"a field besides {divided}: {what(error)}") from None
        if held:
            raise BadAnswerError(
                f"a field besides {divided} holds a list, and nobody can say whose items these are"
            )
        if name in known and text[:1] not in (b"{", b"["):
            found[name] = raw
    return found


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
