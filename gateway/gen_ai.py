"""Pure: what a span says of a request in OpenAI's format, in the words of the semantic conventions
for generative AI.

The operation follows from the path. The model, whether the answer is streamed and the bound on its
tokens stand in the body, which nothing else reads: so it is read at the end of a sampled exchange
only, if it is here whole and small. Never a word of what was asked: prompts are nobody's business.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Any, TypeAlias

import msgspec

if TYPE_CHECKING:
    from filters.api import Exchange

BODY_BYTES = 64 * 1024
"""Bodies above are not read: about 0.1 ms at this size, on the event loop."""
_MODEL_TEXT = 256
"""Characters of a model's name that an attribute takes."""
_OPERATIONS = {
    b"/v1/chat/completions": ("chat", "chat_completions"),
    b"/v1/completions": ("text_completion", ""),
    b"/v1/embeddings": ("embeddings", ""),
    b"/v1/responses": ("chat", "responses"),
}
Attributes: TypeAlias = dict[str, str | int | float | bool]
_Tokens: TypeAlias = Annotated[int, msgspec.Meta(ge=0, le=2**31)]


class _Asked(msgspec.Struct):
    """The fields of the body that are told. Of another type, the whole body is nobody's format."""

    model: str = ""
    stream: bool | None = None
    max_tokens: _Tokens | None = None
    max_completion_tokens: _Tokens | None = None
    max_output_tokens: _Tokens | None = None


_decode = msgspec.json.Decoder(_Asked).decode


def of_path(method: bytes, path: bytes) -> Attributes:
    """What the path says: the operation; empty when it is not of OpenAI's. O(1).

    A prefix in front is a matter of routing. ``openai`` names the format, as the conventions have
    it, whoever it is that answers.
    """
    if method != b"POST":
        return {}
    at = path.rfind(b"/v1/")
    found = _OPERATIONS.get(path[at:]) if at >= 0 else None
    if found is None:
        return {}
    operation, api = found
    told: Attributes = {"gen_ai.operation.name": operation, "gen_ai.provider.name": "openai"}
    if api:
        told["openai.api.type"] = api
    return told


def of_body(body: bytes) -> Attributes:
    """What a body of at most ``BODY_BYTES`` says; empty when it cannot be read. O(bytes)."""
    if not body or len(body) > BODY_BYTES:
        return {}
    try:
        asked = _decode(body)
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError):
        return {}
    told: dict[str, Any] = {
        "gen_ai.request.model": asked.model[:_MODEL_TEXT] or None,
        "gen_ai.request.stream": asked.stream,
        "gen_ai.request.max_tokens": _first(
            asked.max_completion_tokens, asked.max_output_tokens, asked.max_tokens
        ),
    }
    return {name: value for name, value in told.items() if value is not None}


def of_exchange(exchange: Exchange) -> Attributes:
    """Of an exchange that has ended and whose body is not released yet. Empty where the request is
    not in OpenAI's format."""
    request = exchange.request
    told = of_path(request.method, request.path)
    body: Any = exchange.body
    if not told or body.received > BODY_BYTES:
        return told
    told |= of_body(body.peek() or b"")
    if told.get("gen_ai.request.stream") and exchange.first_byte is not None:
        told["gen_ai.response.time_to_first_chunk"] = exchange.first_byte - exchange.arrived
    return told


def _first(*values: int | None) -> int | None:
    return next((each for each in values if each is not None), None)
