"""Cases 76 to 93: Transfer-Encoding is exactly ``chunked``, once, alone, in HTTP/1.1."""

from __future__ import annotations

import pytest

from tests.wire.table import WAYS, Row, accepted, post, refused, table

BODY = b"5\r\nhello\r\n0\r\n\r\n"


def coding(value: bytes, *more: bytes, name: bytes = b"Transfer-Encoding") -> bytes:
    return post(name + b":" + value, *more, body=BODY)


BAD = [
    Row(76, "length-first", post(b"Content-Length: 5", b"Transfer-Encoding: chunked", body=BODY)),
    Row(76, "coding-first", post(b"Transfer-Encoding: chunked", b"Content-Length: 5", body=BODY)),
    Row(76, "length-zero", coding(b" chunked", b"Content-Length: 0")),
    Row(76, "length-bad", coding(b" chunked", b"Content-Length: x")),
    Row(76, "other-case", coding(b" CHUNKED", b"CONTENT-LENGTH: 5")),
    Row(76, "coding-unknown", coding(b" x", b"Content-Length: 5"), (400, 501)),
    Row(77, "xchunked", coding(b" xchunked")),
    Row(77, "chunkedx", coding(b" chunkedx")),
    Row(78, "then-identity", coding(b" chunked, identity")),
    Row(78, "two-lines-identity", coding(b" chunked", b"Transfer-Encoding: identity")),
    Row(78, "two-lines-identity-first", coding(b" identity", b"Transfer-Encoding: chunked")),
    Row(79, "twice", coding(b" chunked, chunked")),
    Row(79, "two-lines", coding(b" chunked", b"Transfer-Encoding: chunked")),
    Row(80, "identity", coding(b" identity")),
    Row(81, "gzip", coding(b" gzip"), (501,)),
    Row(82, "gzip-chunked", coding(b" gzip, chunked"), (501,)),
    Row(82, "gzip-chunked-lines", coding(b" gzip", b"Transfer-Encoding: chunked"), (400, 501)),
    Row(83, "chunked-gzip", coding(b" chunked, gzip")),
    Row(84, "comma-first", coding(b" ,chunked")),
    Row(84, "comma-last", coding(b" chunked,")),
    Row(84, "comma-alone", coding(b" ,")),
    Row(85, "quoted", coding(b' "chunked"')),
    Row(85, "single-quoted", coding(b" 'chunked'")),
    Row(86, "parameter", coding(b" chunked;q=1")),
    *[
        Row(87, f"byte-{byte:02x}-{where}", coding(value.replace(b"?", bytes([byte]))))
        for byte in (0x0B, 0x0C, 0x00, 0x85, 0xA0)
        for where, value in {"before": b" ?chunked", "after": b" chunked?"}.items()
    ],
    Row(88, "empty", coding(b"")),
    Row(88, "blank", coding(b"  ")),
    Row(88, "empty-then-chunked", coding(b"", b"Transfer-Encoding: chunked")),
    Row(89, "obs-fold", coding(b"\r\n chunked")),
    Row(89, "obs-fold-tab", coding(b" x\r\n\tchunked")),
    Row(90, "space-before-colon", coding(b" chunked", name=b"Transfer-Encoding ")),
    Row(90, "tab-before-colon", coding(b" chunked", name=b"Transfer-Encoding\t")),
    Row(90, "space-before-name", coding(b" chunked", name=b" Transfer-Encoding")),
    Row(91, "chunk", coding(b" chunk")),
    Row(91, "two-words", coding(b" cow chunked")),
    Row(91, "two-words-after", coding(b" chunked cow")),
    Row(92, "1.0", coding(b" chunked").replace(b"HTTP/1.1", b"HTTP/1.0")),
    Row(92, "1.0-identity", coding(b" identity").replace(b"HTTP/1.1", b"HTTP/1.0")),
    Row(
        92,
        "1.0-keep-alive",
        coding(b" chunked", b"Connection: keep-alive").replace(b"/1.1", b"/1.0"),
    ),
    Row(93, "nominated", coding(b" chunked", b"Connection: Transfer-Encoding")),
    Row(93, "nominated-case", coding(b" chunked", b"Connection: close, transfer-ENCODING")),
    Row(
        93,
        "nominated-first",
        post(b"Connection: Transfer-Encoding", b"Transfer-Encoding: chunked", body=BODY),
    ),
]


@table(BAD)
async def test_refused(row: Row, way: str) -> None:
    await refused(row, way)


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("value", [b" chunked", b" Chunked", b" CHUNKED", b"chunked", b" chunked "])
async def test_093_chunked_in_any_case_is_accepted_and_sent_lower_case(
    value: bytes, way: str
) -> None:
    request = await accepted(Row(93, "", coding(value)), way)
    assert request.values("content-length") + request.values("transfer-encoding") in (
        [b"chunked"],
        [b"5"],
    )
    assert request.body == b"hello"
