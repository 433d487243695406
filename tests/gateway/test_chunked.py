"""Chunked bodies: any pieces give the same body, and llhttp agrees with what is accepted."""

from itertools import pairwise

import httptools
import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from filters.api import Reject
from gateway.chunked import Decoder, encode, encode_end, may_trail

chunks = st.lists(st.binary(min_size=1, max_size=40), max_size=6)


def pieces_of(data: bytes, cuts: list[int]) -> list[bytes]:
    edges = sorted({0, len(data), *(cut % (len(data) + 1) for cut in cuts)})
    return [data[a:b] for a, b in pairwise(edges)]


def decode(data: bytes, cuts: list[int]) -> tuple[bytes, Decoder]:
    decoder = Decoder()
    body = b""
    rest = b""
    for piece in pieces_of(data, cuts):
        if decoder.done:
            rest += piece
        else:
            body += decoder.feed(piece)
            rest += decoder.rest
    decoder.rest = rest
    return body, decoder


@given(chunks, st.lists(st.integers(0, 1000), max_size=8), st.binary(max_size=9))
def test_any_pieces_give_the_same_body(parts: list[bytes], cuts: list[int], rest: bytes) -> None:
    wire = b"".join(map(encode, parts)) + encode_end([(b"X-Sum", b"1"), (b"Host", b"evil")]) + rest
    body, decoder = decode(wire, cuts)
    assert decoder.done
    assert body == b"".join(parts)
    assert decoder.trailers == [(b"X-Sum", b"1")]
    assert decoder.rest == rest


class Oracle:
    def __init__(self) -> None:
        self.body = b""
        self.done = False

    def on_body(self, data: bytes) -> None:
        self.body += data

    def on_message_complete(self) -> None:
        self.done = True


PLAIN = b"5;a=b\r\nhello\r\n10\r\n0123456789abcdef\r\n0\r\nX-T: 1\r\n\r\n"


@st.composite
def mutated(draw: st.DrawFn) -> bytes:
    out = PLAIN
    for _ in range(draw(st.integers(0, 3))):
        at = draw(st.integers(0, len(out)))
        gone = draw(st.integers(0, 2))
        new = draw(
            st.sampled_from([b"", b"\r", b"\n", b"\r\n", b" ", b"0", b"x", b";", b"+", b"\0"])
        )
        out = out[:at] + new + out[at + gone :]
    return out


@given(mutated(), st.lists(st.integers(0, 1000), max_size=4))
@example(b"5 ;a\r\nhello\r\n0\r\n\r\n", [])
@example(b"5; a=b\r\nhello\r\n0\r\n\r\n", [])
@example(b"0x5\r\nhello\r\n0\r\n\r\n", [])
def test_what_is_accepted_llhttp_reads_the_same_way(data: bytes, cuts: list[int]) -> None:
    try:
        body, decoder = decode(data, cuts)
    except Reject:
        return
    if not decoder.done:
        return
    oracle = Oracle()
    parser = httptools.HttpRequestParser(oracle)
    parser.feed_data(b"POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n")
    parser.feed_data(data[: len(data) - len(decoder.rest)])
    assert oracle.done
    assert oracle.body == body


@given(mutated(), st.lists(st.integers(0, 1000), max_size=6))
def test_pieces_never_change_the_verdict(data: bytes, cuts: list[int]) -> None:
    def verdict(where: list[int]) -> object:
        try:
            body, decoder = decode(data, where)
        except Reject:
            return "refused"
        return (body, decoder.rest) if decoder.done else "unfinished"

    whole, pieces = verdict([]), verdict(cuts)
    # A beginning can already be hopeless; then the pieces are refused before the whole would be.
    assert pieces == whole or (whole, pieces) == ("unfinished", "refused")


@pytest.mark.parametrize("size", [b"1" * 17, b"8000000000000000", b"ffffffffffffffff"])
def test_sizes_that_overflow_are_refused(size: bytes) -> None:
    with pytest.raises(Reject):
        Decoder().feed(size + b"\r\n")


def test_many_small_chunks_are_joined() -> None:
    assert Decoder().feed(b"1\r\nx\r\n" * 1000) == b"x" * 1000


@pytest.mark.parametrize("name", [b"Content-Length", b"transfer_encoding", b"X-Forwarded-For"])
def test_trailers_cannot_be_control_fields(name: bytes) -> None:
    assert not may_trail(name)
