"""The bytes that the model server stand-in answers with: OpenAI-shaped JSON and event streams."""

import time

import msgspec

MODEL = "stand-in"
_CREATED = int(time.time())
_STREAM_HEAD = (
    b"HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\ncache-control: no-cache\r\n%b"
    b"transfer-encoding: chunked\r\n\r\n"
)
_CHUNK_HEAD = (
    b'data: {"id":"chatcmpl-1","object":"chat.completion.chunk","created":%d,"model":"%b",'
    b'"sent_ns":' % (_CREATED, MODEL.encode())
)
_TOKEN = b',"choices":[{"index":0,"delta":{"content":"token "},"finish_reason":null}]}\n\n'
_LAST_TOKEN = b',"choices":[{"index":0,"delta":{"content":"end"},"finish_reason":"stop"}]}\n\n'
DONE = b"e\r\ndata: [DONE]\n\n\r\n0\r\n\r\n"
_PHRASES = {
    200: b"OK",
    400: b"Bad Request",
    404: b"Not Found",
    429: b"Too Many Requests",
    500: b"Internal Server Error",
    502: b"Bad Gateway",
    503: b"Service Unavailable",
}


def head(status: int, length: int, fields: bytes = b"", *, keep_alive: bool = True) -> bytes:
    """A head of an answer with a length; ``fields`` are whole lines."""
    closing = b"" if keep_alive else b"connection: close\r\n"
    return b"HTTP/1.1 %d %b\r\ncontent-type: application/json\r\ncontent-length: %d\r\n%b%b\r\n" % (
        status,
        _PHRASES.get(status, b"Status"),
        length,
        fields,
        closing,
    )


def stream_head(fields: bytes = b"") -> bytes:
    return _STREAM_HEAD % fields


def told(service: float) -> bytes:
    """The field that tells a load generator how much work this request was."""
    return b"x-service-us: %d\r\n" % round(service * 1e6)


def chunk(*, last: bool) -> bytes:
    """One token, with the monotonic clock at this moment in it."""
    event = b"%b%d%b" % (_CHUNK_HEAD, time.monotonic_ns(), _LAST_TOKEN if last else _TOKEN)
    return b"%x\r\n%b\r\n" % (len(event), event)


def completion(tokens: int) -> bytes:
    text = "token " * min(tokens, 4096)
    choice = {
        "index": 0,
        "finish_reason": "stop",
        "message": {"role": "assistant", "content": text},
    }
    usage = {"prompt_tokens": 1, "completion_tokens": tokens, "total_tokens": tokens + 1}
    return msgspec.json.encode(
        {
            "id": "chatcmpl-1",
            "object": "chat.completion",
            "created": _CREATED,
            "model": MODEL,
            "choices": [choice],
            "usage": usage,
        }
    )


def models() -> bytes:
    model = {"id": MODEL, "object": "model", "created": _CREATED, "owned_by": "loadtests"}
    return msgspec.json.encode({"object": "list", "data": [model]})


def error(message: str, kind: str) -> bytes:
    return msgspec.json.encode({"error": {"message": message, "type": kind}})
