"""A head that was recognised is read exactly as one that was parsed, whatever came before it."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from filters.api import Exchange, Reject, Request
from filters.priority import Config, Priorities
from gateway import wire
from gateway.config import Limits
from gateway.head_memo import LONGEST, KnownHead, meet_answer, revised_answer
from gateway.head_reader import HeadReader
from gateway.headers import answer_lines, request_head

LIMITS = Limits()
LINES = (
    b"Host: a.test",
    b"Content-Length: 7",
    b"content-length:  7",
    b"Content-Length: 7 ",
    b"CONTENT-LENGTH: 0",
    b"X-Request-Id: one",
    b"x-request-id: two",
    b"Authorization: Bearer a",
    b"Connection: close",
    b"Connection: keep-alive, x-a",
    b"Transfer-Encoding: chunked",
    b"Expect: 100-continue",
    b"Upgrade: websocket",
    b"X-Tailrace-Reason: no",
    b"X_Real_IP: 1.2.3.4",
    b"x-a: 1",
    b"X-RateLimit-Limit: 7",
    b"Set-Cookie: secret",
    b"X-Forwarded-For: 10.0.0.9",
    b"TE: trailers",
)
OURS = b"x-ratelimit-limit: 5\r\nx-ratelimit-reset: 1\r\n"
# A few in place of the whole, so that heads repeat each other and nearly so.
REQUESTS = st.builds(
    lambda first, lines: b"\r\n".join((first, b"Host: a.test", *lines, b"", b"")),
    st.sampled_from((b"POST /v1 HTTP/1.1", b"GET / HTTP/1.1", b"GET / HTTP/1.0")),
    st.lists(st.sampled_from(LINES), max_size=4),
)
ANSWERS = st.builds(
    lambda first, lines: b"\r\n".join((first, *lines, b"", b"")),
    st.sampled_from((b"HTTP/1.1 200 OK", b"HTTP/1.1 204 No Content", b"HTTP/1.0 503 No")),
    st.lists(st.sampled_from(LINES), max_size=4),
)
VALUES = (
    b"7", b"8", b"123", b"0", b"07", b"-1", b"+7", b"7 ", b" 7", b"", b"1_0", b"1" * 18, b"1" * 19,
    b"7\r\nHost: b.test", b"\xb2", b"one", b"a b", b"x" * 128, b"x" * 129, b"\x00", b"a\nb",
)  # fmt: skip


@st.composite
def mutated(draw: st.DrawFn, heads: st.SearchStrategy[bytes]) -> list[bytes]:
    """A head several times, then the same with one value or one byte changed, then anything."""
    head = draw(heads)
    name = draw(st.sampled_from((b"ontent-length: ", b"ontent-Length: ", b"equest-Id: ")))
    before, found, after = head.partition(name)
    value = after.partition(b"\r\n")
    changed = before + found + draw(st.sampled_from(VALUES)) + b"\r\n" + value[2] if found else head
    at = draw(st.integers(0, len(head) - 5))
    flipped = head[:at] + bytes([draw(st.integers(0, 255))]) + head[at + 1 :]
    return [head, head, head, draw(st.sampled_from((changed, flipped))), head, draw(heads), head]


def shown(request: Request) -> tuple[Any, ...]:
    names = ("method", "target", "path", "minor", "index", "host", "length")
    return (*(getattr(request, name) for name in names), list(request.fields))


def read(reader: HeadReader, data: bytes, first: bool) -> Any:
    try:
        begun = reader.read(data, LIMITS, first=first)
    except Reject as reject:
        return reject.reason, reject.detail
    return begun and (shown(begun[0]), *begun[1:], sent(begun[0]))


def sent(request: Request, trusted: bool = True) -> list[bytes]:
    """What goes upstream on two routes that take turns, the second of which edits it."""
    found = []
    for route in ROUTES * 2:
        exchange = Exchange(request, None, None, "10.0.0.1", trusted, False, 0.0)  # type: ignore[arg-type]
        exchange.request_id = b"ours"
        exchange.asked, exchange.deadline = route is ROUTES[1], 1.5
        found.append(request_head(exchange, route, b"up.test:80", 1.0))
    return found


def route(**changed: Any) -> Any:
    plain: dict[str, Any] = {
        "request_drop": frozenset(),
        "request_lines": b"",
        "rewrite": None,
        "host": b"",
    }
    return SimpleNamespace(**{**plain, **changed})


ROUTES = [
    route(),
    route(host=b"other.test"),
    route(request_drop=frozenset((b"x-a", b"x-request-id")), request_lines=b"x-a: set\r\n"),
]


@given(mutated(REQUESTS), st.binary(max_size=4))
def test_a_connection_that_remembers_reads_what_a_new_one_reads(
    heads: list[bytes], body: bytes
) -> None:
    remembers = HeadReader()
    for number, head in enumerate(heads):
        if remembers.partial is not None:
            remembers = HeadReader()
        data = head + body
        assert read(remembers, data, number == 0) == read(HeadReader(), data, True)


@given(mutated(ANSWERS), st.sampled_from((b"GET", b"HEAD")))
def test_a_pool_that_remembers_reads_what_a_new_one_reads(
    heads: list[bytes], method: bytes
) -> None:
    known = KnownHead(revised_answer)
    for head in heads:
        try:
            fresh = wire.parse_response(head, method=method, headers=100)
        except Reject:
            assert not known.match(head, 100)
            continue
        end = known.match(head + b"body", 100) if method != b"HEAD" else 0
        if not end:
            meet_answer(known, head, method, fresh, 100)
            continue
        assert end == len(head)
        seen = known.read
        for name in ("status", "fields", "index", "length", "keep"):
            assert getattr(seen, name) == getattr(fresh, name)
        assert answer_lines(seen, b"id") == answer_lines(fresh, b"id")
        assert answer_lines(seen, b"id", OURS) == answer_lines(fresh, b"id", OURS)


@pytest.mark.parametrize("value", VALUES)
@pytest.mark.parametrize("name", [b"Content-Length", b"X-Request-Id"])
def test_a_known_head_with_any_other_value_is_read_like_a_new_one(
    name: bytes, value: bytes
) -> None:
    head = b"POST / HTTP/1.1\r\nHost: a.test\r\n%b: %b\r\nX-a: 1\r\n\r\n"
    reader = HeadReader()
    for number in range(3):
        begun = reader.read(head % (name, b"5"), LIMITS, first=number == 0)
        assert begun is not None
        assert (begun[0].told is None) == (number == 0)
    changed = head % (name, value)
    assert read(reader, changed, False) == read(HeadReader(), changed, True)


@pytest.mark.parametrize("value", VALUES)
def test_a_known_answer_with_any_other_length_is_read_like_a_new_one(value: bytes) -> None:
    head = b"HTTP/1.1 200 OK\r\nContent-Length: %b\r\n\r\n"
    known = knowing(head % b"5")
    assert known.match(head % b"5", 100)
    end = known.match(head % value, 100)
    if end:
        fresh = wire.parse_response(head % value, method=b"GET", headers=100)
        assert (end, known.read.length) == (len(head % value), fresh.length)
    elif value.isdigit() and len(value) <= 18 and not value.startswith(b"0"):
        raise AssertionError("not recognised")


@pytest.mark.parametrize(
    ("head", "method"),
    [
        (b"HTTP/1.1 204 No Content\r\nContent-Length: 5\r\n\r\n", b"GET"),
        (b"HTTP/1.1 304 Not Modified\r\nContent-Length: 5\r\n\r\n", b"GET"),
        (b"HTTP/1.1 100 Continue\r\n\r\n", b"GET"),
        (b"HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\n", b"HEAD"),
        (b"HTTP/1.1 200 OK\r\nContent-Length: 5\r\nContent-Length: 5\r\n\r\n", b"GET"),
        (b"HTTP/1.1 200 OK\r\nContent-Length: 5\r\nSet-Cookie: a=b\r\n\r\n", b"GET"),
    ],
)
def test_answers_that_are_not_kept(head: bytes, method: bytes) -> None:
    assert not knowing(head, method).match(head, 100)


def knowing(head: bytes, method: bytes = b"GET") -> KnownHead[wire.ResponseHead]:
    known = KnownHead(revised_answer)
    read = wire.parse_response(head, method=method, headers=100)
    meet_answer(known, head, method, read, 100)
    return known


HEAD = b"POST /v1 HTTP/1.1\r\nHost: a.test\r\nAuthorization: a\r\nContent-Length: %d\r\n\r\n"


def remembering(head: bytes = HEAD % 5) -> tuple[HeadReader, Request]:
    """A reader that knows ``head``, and what it last made of it."""
    reader = HeadReader()
    for number in range(2):
        reader.read(head, LIMITS, first=number == 0)
    return reader, again(reader, head)


def again(reader: HeadReader, head: bytes, limits: Limits = LIMITS) -> Request:
    begun = reader.read(head, limits, first=False)
    assert begun is not None
    return begun[0]


def test_a_repeated_head_is_not_parsed_again_and_another_length_is_no_other_head() -> None:
    reader, request = remembering()
    assert again(reader, HEAD % 5) is request
    for length in (1234, 7, 0, 99999, 5):
        other = again(reader, HEAD % length)
        assert other.told is request.told is not None
        assert other.length == length
        assert other.index[b"content-length"] == b"%d" % length
    assert request.length == 5


def test_other_credentials_are_another_head() -> None:
    reader, request = remembering()
    other = again(reader, (HEAD % 5).replace(b": a\r\n", b": b\r\n"))
    assert other.told is None
    assert other.index[b"authorization"] == b"b"
    assert again(reader, HEAD % 5) is request


def test_one_connection_knows_nothing_of_another() -> None:
    _, request = remembering()
    assert again(HeadReader(), HEAD % 5).told is not request.told


def test_other_limits_are_asked_anew() -> None:
    reader, request = remembering()
    assert again(reader, HEAD % 5, msgspec.structs.replace(LIMITS)) is not request
    with pytest.raises(Reject):
        reader.read(HEAD % 5, msgspec.structs.replace(LIMITS, headers=1), first=False)


def test_a_body_that_is_too_large_is_refused_however_well_its_head_is_known() -> None:
    limits = msgspec.structs.replace(LIMITS, body_bytes=100)
    reader = HeadReader()
    for number in range(3):
        reader.read(HEAD % 5, limits, first=number == 0)
    with pytest.raises(Reject, match="body_too_large"):
        reader.read(HEAD % 101, limits, first=False)


def test_a_client_that_never_repeats_itself_is_rarely_remembered() -> None:
    reader = HeadReader()
    told = [
        again(reader, (HEAD % 5).replace(b": a\r\n", b": %d\r\n" % n)).told for n in range(1000)
    ]
    assert sum(each is not None for each in told) < 12


def test_a_filter_that_corrects_a_request_does_not_correct_the_one_that_is_kept() -> None:
    claim = b"X-Request-Priority: critical_plus\r\n"
    reader, request = remembering((HEAD % 5).replace(b"Host", claim + b"Host"))
    check = Priorities(Config())
    for number in range(1, 4):
        exchange = Exchange(request, None, None, "10.0.0.1", False, False, 0.0)  # type: ignore[arg-type]
        check.arrive(exchange, 0.0)
        head = request_head(exchange, ROUTES[0], b"up.test:80", 0.0)
        assert b"x-request-priority: critical\r\n" in head
        assert b"critical_plus" not in head
        assert check.disbelieved == number
    assert again(reader, (HEAD % 5).replace(b"Host", claim + b"Host")) is request
    assert request.index[b"x-request-priority"] == b"critical_plus"


def test_long_heads_are_not_kept() -> None:
    _, request = remembering((HEAD % 5).replace(b": a\r\n", b": %b\r\n" % (b"a" * LONGEST)))
    assert request.told is None
