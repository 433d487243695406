"""openai_embeddings: ``POST /v1/embeddings`` of the OpenAI API. Pure.

``input`` is a string, a list of strings, a list of token ids, which is ONE input, or a list of such
lists. Texts and token ids are never mixed in one request, because servers take only one kind.

**Numbers.** A server says an embedding as base64 of float32 (little-endian) or as a list of
numbers. Base64 is exact, a quarter of the size and no work to divide, so a joined request asks for
it whatever its callers want, and whoever wants numbers gets them made here: for each float32 the
shortest decimal that reads back as that float32 (``0.1``, where the exact value would be
``0.10000000149011612``), as servers in C++ and Rust write it. Nothing is lost, and it is half as
long. Never the other way round: where a server answers numbers although it was asked for base64,
its numbers go to the callers as they are, which is also what each would have got directly.
"""

from __future__ import annotations

from base64 import b64encode
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Annotated, Any, cast

import msgspec
from msgspec import Meta, Raw

from gpu_batcher.api import BadAnswerError, BadRequestError, Call, Message, Reply, Tensor
from gpu_batcher.codecs.json_body import (
    FAULTS,
    JOINED_HEAD,
    JSON_HEAD,
    answer_fields,
    answer_text,
    encode,
    for_all,
    is_json,
    key_of,
    read_fields,
    values_of,
    what,
)
from gpu_batcher.codecs.shortest_float import shortest

MAX_INPUTS = 2048
"""Inputs in one request, as OpenAI has it."""
CHARACTERS_PER_TOKEN = 4
"""Rule of thumb of OpenAI's own documentation for English. Used only to guess a text's length."""
EXPECTED = "a string, a list of strings, a list of token ids, or a list of such lists"

FOR_ALL = frozenset({"object", "model", "created"})
"""Fields of an answer that are for all of its callers. Not ``id``: vLLM makes it of the
``x-request-id`` of the caller whose headers went with the batch."""
_WANTS_NUMBERS = {b"null": True, b'"float"': True, b'"base64"': False}
_INT64 = 2**63 - 1
_QUOTE = ord('"')
_NULL = Raw(b"null")

_Token = Annotated[int, Meta(ge=0, le=_INT64)]
# msgspec allows one kind of list in a union, so that a list is all of one kind is checked below.
_input: msgspec.json.Decoder[Any] = msgspec.json.Decoder(str | list[str | _Token | list[_Token]])
_bytes = msgspec.json.Decoder(bytes)  # From a string in base64.
_wanted: msgspec.json.Decoder[int | None] = msgspec.json.Decoder(
    Annotated[int, Meta(ge=1, le=_INT64)] | None
)
_usage = msgspec.json.Decoder(dict[str, Any] | None)


class _Row(msgspec.Struct, gc=False):
    """An element of ``data`` in an answer."""

    index: Annotated[int, Meta(ge=0, le=_INT64)]
    embedding: Raw


class _Mine(msgspec.Struct, gc=False, tag_field="object", tag="embedding"):
    """An element of ``data`` in a reply."""

    index: int
    embedding: object


_rows = msgspec.json.Decoder(list[_Row])


@dataclass(slots=True, frozen=True)
class Notes:
    """``numbers``: the caller wants those rather than base64. ``weight``: of its inputs together,
    in tokens where they are tokens and otherwise in characters; never 0. ``fields``: of its
    request, for joining, without ``input`` (and what else a joined request has its own way)."""

    numbers: bool
    tokens: bool
    weight: int
    fields: dict[str, Raw]


class OpenAiEmbeddings:
    """Calls are joined if their target, their kind of input and every other field are equal, by
    its bytes: ``model``, ``dimensions``, ``user`` (which is one caller's, and must not be said of
    another's input) and whatever a server has of its own.

    ``upstream_base64``: joined requests ask for base64, and callers that want base64 and those
    that want numbers are joined. Without it ``encoding_format`` is one more field of the key and
    goes to the server as it is; for servers that refuse the field.

    Alone go: other paths, content types and encodings, an ``encoding_format`` not known here, and
    requests with an empty input (no inputs, ``""`` or ``[]``): OpenAI refuses those, but vLLM
    embeds an empty text, so whether it is an error is the server's to say, and to say to this
    caller only; where there is none (``sole``) it is one. The caller's mistake (400) is whatever no
    server accepts, and more than ``max_inputs``. A batch is to have no more than that either, which
    is the plan's part.
    """

    __slots__ = ("_base64", "_most", "_sole")

    name = "openai_embeddings"

    def __init__(
        self, *, upstream_base64: bool = True, max_inputs: int = MAX_INPUTS, sole: bool = False
    ) -> None:
        self._base64 = upstream_base64
        self._most = max_inputs
        self._sole = sole

    def read(self, target: bytes, head: Mapping[bytes, bytes], body: memoryview) -> Call | None:
        """See ``Codec``. ``items`` are texts (str) or lists of token ids, one for each input;
        ``length`` is in tokens, for texts a guess. O(bytes)."""
        if not target.partition(b"?")[0].endswith(b"/v1/embeddings") or not is_json(head):
            return None
        fields = read_fields(body)
        if fields is None:
            raise BadRequestError("body: expected a JSON object")
        if "input" not in fields:
            raise BadRequestError(f"input: expected {EXPECTED}; it is missing")
        written = fields.pop("input")
        items = _inputs(written)
        if len(items) > self._most:
            raise BadRequestError(
                f"input: expected a list of at most {self._most}, got one of {len(items)}"
            )
        numbers = _WANTS_NUMBERS.get(bytes(fields.get("encoding_format", _NULL)))
        if numbers is None or not items or not all(items):
            if self._sole:
                raise BadRequestError(
                    "encoding_format: expected float or base64"
                    if numbers is None
                    else "input: expected no empty ones"
                )
            return None
        if self._base64:
            fields.pop("encoding_format", None)
        tokens = isinstance(items[0], list)
        lengths = [len(item) for item in items]
        longest = max(lengths) if tokens else -(-max(lengths) // CHARACTERS_PER_TOKEN)
        return Call(
            key=(self.name, target, tokens, key_of(fields)),
            rows=len(items),
            size=memoryview(written).nbytes,
            length=longest,
            items=items,
            notes=Notes(numbers, tokens, sum(lengths), fields),
        )

    def join(self, calls: Sequence[Call]) -> Message:
        """The inputs of all in order, with the other fields, which are the same for all."""
        fields: dict[str, object] = {"input": [item for call in calls for item in call.items]}
        fields.update(_notes(calls[0]).fields)
        if self._base64:
            fields["encoding_format"] = "base64"
        return Message([encode(fields)], dict(JOINED_HEAD))

    def divide(self, calls: Sequence[Call], answer: Message) -> list[Reply]:
        """To each call its embeddings, in the order of its inputs and with indexes from 0, and its
        share of ``usage``. The other fields of the answer go to a caller that is alone; where there
        are several, those in ``FOR_ALL``. Those that an element of ``data`` may have
        besides the API's three go to nobody.

        Raises BadAnswerError unless each index from 0 to the sum of inputs stands there exactly
        once, for an embedding that is neither a string nor a list, base64 that is none or no
        float32, embeddings of different widths, and, where there are several callers, another
        field that holds a list.
        """
        fields = answer_fields(answer_text(answer))
        vectors = _vectors(fields.get("data"), sum(call.rows for call in calls))
        usages = _shares(fields.pop("usage", None), [_notes(call).weight for call in calls])
        if len(calls) > 1:
            fields = for_all(fields, "data", FOR_ALL)
        parts = []
        end = 0
        for call in calls:
            start, end = end, end + call.rows
            parts.append((_notes(call).numbers, vectors[start:end]))
        asked = [each for wants, part in parts if wants for each in part]
        numbers = _numbers([each for each in asked if _is_text(each)])
        mine: dict[str, object] = dict(fields)
        replies = []
        for (wants, part), usage in zip(parts, usages, strict=True):
            mine["data"] = [
                _Mine(index, next(numbers) if wants and _is_text(each) else each)
                for index, each in enumerate(part)
            ]
            if usage is not None:
                mine["usage"] = usage
            replies.append(Reply(answer.status, dict(JSON_HEAD), encode(mine)))
        return replies

    def reply(self, call: Call, outputs: Sequence[Tensor]) -> Reply:
        """From ``outputs[0]``, float32 of shape [rows, width].

        ``usage`` counts what an output ``prompt_tokens`` (INT32 or INT64, one for each row) says;
        without it the token ids that were sent, and for texts 0, because only the model knows.
        ``dimensions`` is seen to here, as the model is not told of it: embeddings are cut to so
        many and brought to length 1 again, as OpenAI does; 400 for more than there are. Raises
        BadAnswerError.
        """
        if not outputs:
            raise BadAnswerError("outputs: the model gave none")
        first = outputs[0]
        width = first.shape[1] if len(first.shape) == 2 else 0
        data = bytes(first.data)
        expected = ("FP32", (call.rows, width), 4 * call.rows * width)
        if not width or (first.datatype, first.shape, len(data)) != expected:
            raise BadAnswerError(
                f"{first.name}: expected FP32 of shape ({call.rows}, width), got {first.datatype} "
                f"of shape {first.shape} in {len(data)} bytes"
            )
        notes = _notes(call)
        wanted = _dimensions(notes.fields.get("dimensions", _NULL), width)
        if wanted is None:
            return Reply(400, dict(JSON_HEAD), _refused(f"dimensions: expected 1 to {width}"))
        if wanted < width:
            data, width = shortened(data, width, wanted), wanted
        vectors: list[object]
        if notes.numbers:
            vectors = list(shortest(data).reshape(call.rows, width).tolist())
        else:
            size = 4 * width
            vectors = [b64encode(data[at : at + size]).decode() for at in range(0, len(data), size)]
        used = _counted(call, outputs[1:])
        fields = {
            "object": "list",
            "data": [_Mine(index, each) for index, each in enumerate(vectors)],
            "model": notes.fields.get("model", ""),
            "usage": {"prompt_tokens": used, "total_tokens": used},
        }
        return Reply(200, dict(JSON_HEAD), encode(fields))


def _notes(call: Call) -> Notes:
    return cast("Notes", call.notes)


def _inputs(written: Raw) -> list[str] | list[list[int]]:
    """The inputs of a request, all of one kind. Raises BadRequestError."""
    try:
        value = _input.decode(written)
    except FAULTS as error:
        raise BadRequestError(f"input: expected {EXPECTED}: {error}") from error
    if isinstance(value, str):
        return [value]
    kinds = set(map(type, value))
    if len(kinds) > 1:
        raise BadRequestError(f"input: expected {EXPECTED}, got a mixture")
    if kinds == {int}:
        return [value]
    return cast("list[str] | list[list[int]]", value)


# -- dividing --------------------------------------------------------------------------------------


def _vectors(data: Raw | None, total: int) -> list[Raw]:
    """The embeddings of an answer in the order of the inputs. Raises BadAnswerError."""
    if data is None:
        raise BadAnswerError("data: missing from the answer")
    try:
        rows = _rows.decode(data)
    except FAULTS as error:
        raise BadAnswerError(f"data: expected a list of embeddings: {what(error)}") from None
    if len(rows) != total:
        raise BadAnswerError(f"data: {len(rows)} embeddings for {total} inputs")
    found: list[Raw | None] = [None] * total
    for row in rows:
        if row.index >= total or found[row.index] is not None:
            raise BadAnswerError(f"data: index {row.index} is too large or stands there twice")
        if memoryview(row.embedding)[0] not in b'"[':
            raise BadAnswerError(f"data: embedding {row.index} is neither base64 nor a list")
        found[row.index] = row.embedding
    return cast("list[Raw]", found)  # As many as there are indexes, and none twice: so all.


def _is_text(embedding: Raw) -> bool:
    return memoryview(embedding)[0] == _QUOTE


def _numbers(embeddings: Sequence[Raw]) -> Iterator[list[float]]:
    """Embeddings in base64 as numbers, one after the other. Raises BadAnswerError.

    All are converted together, because a call into NumPy costs as much as hundreds of elements,
    but they become Python floats (four times the size) one embedding at a time.
    """
    try:
        pieces = [_bytes.decode(each) for each in embeddings]
    except FAULTS as error:
        raise BadAnswerError(f"data: an embedding is not base64: {what(error)}") from None
    sizes = {len(piece) for piece in pieces}
    if len(sizes) > 1 or any(not size or size % 4 for size in sizes):
        raise BadAnswerError(f"data: embeddings of {sorted(sizes)[:4]} bytes, expected float32")
    values = shortest(b"".join(pieces))
    end = 0
    for piece in pieces:
        start, end = end, end + len(piece) // 4
        yield values[start:end].tolist()


def _shares(usage: Raw | None, weights: Sequence[int]) -> list[object]:
    """What stands under ``usage`` in each reply; None: nothing. Raises BadAnswerError.

    Every count (an integer) is apportioned, so that what the callers are told adds up to what the
    server counted. Null stays, and what is neither (details in an object) is left out, since
    there is no telling which caller's it is. A single caller gets what the server wrote.
    """
    if usage is None or len(weights) == 1:
        return [usage] * len(weights)
    try:
        counts = _usage.decode(usage)
    except FAULTS as error:
        raise BadAnswerError(f"usage: expected an object: {what(error)}") from None
    if counts is None:
        return [usage] * len(weights)
    shares: list[dict[str, int | None]] = [{} for _ in weights]
    for name, count in counts.items():
        if type(count) is int and 0 <= count <= _INT64:
            for mine, share in zip(shares, apportion(count, weights), strict=True):
                mine[name] = share
        elif count is None:
            for mine in shares:
                mine[name] = None
    return list(shares)


def apportion(total: int, weights: Sequence[int]) -> list[int]:
    """``total`` (not negative) in whole parts that add up to it, by weights that are positive.

    Largest remainder (Hamilton's method): each gets its part rounded down, and what is left goes,
    one each, to those who lost most by that; of equals to the first. If the weights add up to the
    total, as with token ids that the server counts as they are, the parts are the weights.
    O(n log n).
    """
    whole = sum(weights)
    parts = [total * weight // whole for weight in weights]
    lost = [total * weight % whole for weight in weights]
    first = sorted(range(len(weights)), key=lambda at: -lost[at])
    for at in first[: total - sum(parts)]:
        parts[at] += 1
    return parts


def _dimensions(asked: Raw, width: int) -> int | None:
    """How many of ``width`` a caller gets. None: what it asks for cannot be."""
    try:
        wanted = _wanted.decode(asked)
    except FAULTS:
        return None
    return width if wanted is None else wanted if wanted <= width else None


def _refused(text: str) -> bytes:
    error = {"message": text, "type": "invalid_request_error", "param": None, "code": None}
    return encode({"error": error})


def shortened(data: bytes, width: int, wanted: int) -> bytes:
    """Embeddings of ``width`` float32, cut to the first ``wanted`` and brought to length 1; one of
    nothing but 0 stays that."""
    import numpy as np  # Few callers ask for it.

    cut = np.frombuffer(data, "<f4").reshape(-1, width)[:, :wanted].astype(np.float64)
    lengths = np.sqrt((cut * cut).sum(axis=1, keepdims=True))
    return (cut / np.where(lengths, lengths, 1)).astype("<f4").tobytes()


def _counted(call: Call, outputs: Sequence[Tensor]) -> int:
    """Tokens that the model says it read for a call. Raises BadAnswerError."""
    for output in outputs:
        if output.name == "prompt_tokens" and output.datatype in ("INT32", "INT64"):
            counts = cast("list[int]", values_of(output, call.rows))
            if min(counts) < 0:
                raise BadAnswerError("prompt_tokens: negative")
            return sum(counts)
    notes = _notes(call)
    return notes.weight if notes.tokens else 0
