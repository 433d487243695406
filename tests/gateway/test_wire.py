"""The strict layer against llhttp as an oracle: what is accepted here, it reads the same way."""

import httptools
import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from filters.api import Reason, Reject
from gateway import wire
from gateway.fields import lines_of, pairs
from gateway.head_buffer import HeadBuffer

LIMITS = {"target_bytes": 8190, "headers": 100}
HEAD = b"POST /v1/x?y=1 HTTP/1.1\r\nHost: a.test:80\r\nX-One: 1\r\nContent-Length: 5\r\n\r\n"

token = st.text("abcXYZ019-!#$%&'*+.^_`|~", min_size=1, max_size=12).map(str.encode)
value = st.binary(max_size=20).map(lambda b: bytes(c for c in b if c >= 32 and c != 127)).map(
    lambda b: b.strip(b" \t")
)  # fmt: skip
fields = st.lists(st.tuples(token, value), max_size=8)


class Oracle:
    """Collects what llhttp makes of a request head."""

    def __init__(self) -> None:
        self.url = b""
        self.headers: list[tuple[bytes, bytes]] = []
        self.complete = False

    def on_url(self, url: bytes) -> None:
        self.url += url

    def on_header(self, name: bytes, value: bytes) -> None:
        self.headers.append((name, value))

    def on_headers_complete(self) -> None:
        self.complete = True


def parse(head: bytes) -> wire.Request:
    return wire.parse_request(head, **LIMITS)


def mutations(head: bytes) -> st.SearchStrategy[bytes]:
    """``head`` with a few bytes replaced, put in or taken out."""
    piece = st.sampled_from(
        [b"", b"\r", b"\n", b"\r\n", b" ", b"\t", b"\0", b":", b",", b"\x0b", b"\xa0", b"0", b"5"]
    )
    edit = st.tuples(st.integers(0, len(head) - 5), st.integers(0, 3), piece)

    def apply(edits: list[tuple[int, int, bytes]]) -> bytes:
        out = head
        for at, length, new in edits:
            out = out[:at] + new + out[at + length :]
        return out

    return st.lists(edit, max_size=3).map(apply)


@given(fields)
def test_fields_are_kept_as_they_came(lines: list[tuple[bytes, bytes]]) -> None:
    lines = [(b"x-" + name.replace(b"_", b"-"), value) for name, value in lines]
    head = b"GET /p HTTP/1.1\r\nHost: h\r\n" + lines_of(lines) + b"\r\n"
    request = parse(head)
    assert pairs(request.fields) == [(b"Host", b"h"), *lines]
    assert (request.method, request.target, request.minor) == (b"GET", b"/p", 1)


@given(mutations(HEAD))
@example(b"POST /v1/x HTTP/1.1\r\nHost: a\r\nContent-Length : 5\r\n\r\n")
def test_what_is_accepted_llhttp_reads_the_same_way(head: bytes) -> None:
    end = head.find(b"\r\n\r\n")
    if end < 0:
        return
    head = head[: end + 4]
    try:
        request = parse(head)
    except Reject:
        return
    oracle = Oracle()
    parser = httptools.HttpRequestParser(oracle)
    try:
        parser.feed_data(head)
    except httptools.HttpParserInvalidMethodError:
        return  # It knows a list of methods; here any upper-case token is one.
    assert oracle.complete
    assert oracle.url == request.target
    assert parser.get_method() == request.method
    assert [(n, v.strip(b" \t")) for n, v in oracle.headers] == pairs(request.fields)
    assert parser.get_http_version() == f"1.{request.minor}"


@given(mutations(HEAD), st.data())
def test_any_pieces_of_a_head_give_the_same_verdict(head: bytes, data: st.DataObject) -> None:
    if head.startswith((b"\r", b"\n")) or b"\r\n\r\n" not in head:
        return
    try:
        whole: object = parse(head[: head.find(b"\r\n\r\n") + 4]).fields
    except Reject:
        whole = "refused"
    buffer = HeadBuffer(target_bytes=8190, head_bytes=65536)
    cut = data.draw(st.integers(1, len(head) - 1))
    try:
        result = buffer.add(head[:cut]) or buffer.add(head[cut:])
        assert result is not None
        pieces: object = parse(result[0]).fields
    except Reject:
        pieces = "refused"  # of two things wrong, another may be met first
    assert pieces == whole


def test_a_dripping_head_costs_linear_time() -> None:
    """Counted, not timed: every byte is looked at a bounded number of times."""
    looked = 0

    class Counting(bytearray):
        def find(self, what: bytes, start: int = 0, end: int | None = None) -> int:  # type: ignore[override]
            nonlocal looked
            end = len(self) if end is None else end
            found = super().find(what, start, end)
            looked += (found if found >= 0 else end) - start
            return found

    buffer = HeadBuffer(target_bytes=8190, head_bytes=65536)
    buffer._bytes = Counting()
    head = b"GET / HTTP/1.1\r\nHost: a\r\nX: " + b"y" * 20_000
    for at in range(len(head)):
        assert buffer.add(head[at : at + 1]) is None
    assert looked < len(head) * 40


@pytest.mark.parametrize("status", [200, 404, 599])
def test_every_status_line_is_ours(status: int) -> None:
    assert wire.status_line(status).startswith(b"HTTP/1.1 %d " % status)
    assert wire.status_line(status).endswith(b"\r\n")


@given(st.binary(max_size=60))
def test_a_response_head_is_parsed_or_refused(junk: bytes) -> None:
    for head in (junk + b"\r\n\r\n", b"HTTP/1.1 200 OK\r\n" + junk + b"\r\n\r\n"):
        try:
            found = wire.parse_response(head, method=b"GET", headers=100)
        except Reject as reject:
            reason = reject.reason
        else:
            reason = Reason.UPSTREAM_PROTOCOL
            assert 100 <= found.status < 600
        assert reason is Reason.UPSTREAM_PROTOCOL


def test_a_response_has_one_length() -> None:
    head = b"HTTP/1.1 200 OK\r\nContent-Length: 5\r\nContent-Length: 5\r\n\r\n"
    assert wire.parse_response(head, method=b"GET", headers=100).length == 5
    assert wire.parse_response(head, method=b"HEAD", headers=100).length == 0
    with pytest.raises(Reject):
        wire.parse_response(head.replace(b"5\r\n\r\n", b"6\r\n\r\n"), method=b"GET", headers=100)
