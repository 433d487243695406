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
from collections.abc import Mapping, Sequence
from typing import cast

import msgspec
from msgspec import Raw

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
    rows_of,
    what,
)

FOR_ALL = frozenset({"model_name", "model_version"})
"""Fields of an answer that are about the model, whoever asked."""

_PREDICT = re.compile(
    rb"(?:/[^?#]*)?/v1/models/[^/?#]+?(?:/(?:versions|labels)/[^/?#:]+)?:predict(?:\?[^#]*)?"
)
_WORD = re.compile(rb"\b(?:NaN|Infinity)\b")
# A string, to step over it, or a number that JSON does not have. Possessive, and its end is
# optional: a string that never ends is then one match, not one attempt for each quote in it.
_NUMBER = re.compile(rb'"[^"\\]*+(?:\\.[^"\\]*+)*+"?|(-?(?:NaN|Infinity))', re.DOTALL)

_items = msgspec.json.Decoder(list[Raw])


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
        """To each call its predictions. The other fields of the answer go to a caller that is
        alone; where there are several, those about the model go to all, and the rest to nobody
        (see ``for_all``).

        NaN and Infinity come out as they went in: TF Serving writes them, and one caller's NaN is
        no reason to fail the others.

        Raises BadAnswerError where predictions are missing or not one for each instance, and where
        another field holds a list while there are several callers.
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
            raise BadAnswerError(f"predictions: expected a list: {what(error)}") from None
        total = sum(call.rows for call in calls)
        if len(items) != total:
            raise BadAnswerError(f"predictions: {len(items)} of them for {total} instances")
        if len(calls) > 1:
            fields = for_all(fields, "predictions", FOR_ALL)
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
