"""Access log lines: what is in them, what cannot get into them; a writer that never blocks."""

from __future__ import annotations

import json
import os
import re
from pathlib import Path
from random import Random
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from filters.api import Exchange, Priority, Reason, Reject, Request
from gateway import config, log_writer
from gateway.access_log import LONGEST, AccessLog, escape_bytes
from gateway.fields import field
from gateway.log_writer import BATCH_BYTES, BATCHES, LogWriter
from tests.harness import eventually


class Lines(LogWriter):
    """Keeps what it is given."""

    def __init__(self) -> None:
        super().__init__("/dev/null")
        self.kept: list[str] = []

    def put(self, line: str) -> None:
        self.kept.append(line)


class Side:
    """The parts of both sides that the log reads."""

    received = 11
    bytes_sent = 22


class Bound:
    name = '/a"b'
    cluster = "c"


def exchange(**changed: Any) -> Exchange:
    headers = {b"user-agent": b"curl/8", **changed.pop("headers", {})}
    target = changed.pop("target", b"/v1/chat?key=secret")
    host = changed.pop("host", b"example.test")
    request = Request(
        b"POST", target, 1, [field(*each) for each in headers.items()], headers, host, 11
    )
    side: Any = Side()
    made = Exchange(request, side, side, client="10.0.0.1", trusted=True, secure=False, arrived=0.0)
    made.route = Bound()
    made.request_id = b"id-1"
    made.endpoint = "127.0.0.1:8000"
    made.attempts = 2
    for name, value in changed.items():
        setattr(made, name, value)
    return made


def logged(each: Exchange, status: int = 200, detail: str = "", **settings: Any) -> list[str]:
    lines = Lines()
    AccessLog(config.AccessLog(**settings), lines, Random(1)).exchange(
        each, status, detail, 1.5, 0.25
    )
    return lines.kept


def test_a_json_line_has_every_field() -> None:
    (line,) = logged(exchange())
    found = json.loads(line)
    assert re.fullmatch(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{3}Z", found.pop("time"))
    assert found == {
        "request_id": "id-1",
        "client": "10.0.0.1",
        "method": "POST",
        "path": "/v1/chat",
        "host": "example.test",
        "status": 200,
        "route": '/a"b',
        "cluster": "c",
        "endpoint": "127.0.0.1:8000",
        "attempts": 2,
        "duration_ms": 1500.0,
        "first_byte_ms": 250.0,
        "bytes_in": 11,
        "bytes_out": 22,
        "user_agent": "curl/8",
    }


def test_a_text_line_has_the_same_and_no_query() -> None:
    (line,) = logged(exchange(reason=Reason.STALL), 504, 'say "why"', format="text")
    for piece in ('"POST /v1/chat" 504 1500.000ms', "id-1", 'reason="stall"', r"\"why\"", "c"):
        assert piece in line
    assert "secret" not in line


def test_what_filters_did_is_told_only_where_they_did_something() -> None:
    each = exchange(
        queued=0.0125, hedged=True, priority=Priority.SHEDDABLE, shadowed=Reason.RATE_LIMITED
    )
    (line,) = logged(each)
    found = json.loads(line)
    assert (found["queued_ms"], found["hedged"]) == (12.5, True)
    assert (found["priority"], found["shadowed"]) == ("sheddable", "rate_limited")
    (line,) = logged(each, format="text")
    assert line.endswith(
        ' queued=12.500ms priority="sheddable" hedged=true shadowed="rate_limited"\n'
    )
    (line,) = logged(exchange(priority=Priority.CRITICAL_PLUS))
    assert json.loads(line)["priority"] == "critical_plus"
    assert not {"queued_ms", "hedged", "shadowed"} & json.loads(line).keys()


def test_a_refusal_says_why() -> None:
    lines = Lines()
    log = AccessLog(config.AccessLog(sample=0.0), lines, Random(1))
    log.refusal(Reject(Reason.MALFORMED, 'bad "\x1b"'), 400, "::1", b"id-2")
    found = json.loads(lines.kept[0])
    assert found["reason"] == "malformed"
    assert found["detail"] == 'bad "\x1b"'
    assert (found["status"], found["client"]) == (400, "::1")


def test_the_trace_of_the_client_is_named() -> None:
    parent = b"00-" + b"ab" * 16 + b"-" + b"cd" * 8 + b"-00"
    (line,) = logged(exchange(headers={b"traceparent": parent}))
    assert json.loads(line)["trace_id"] == "ab" * 16
    (line,) = logged(exchange(headers={b"traceparent": b"nonsense"}))
    assert "trace_id" not in json.loads(line)


def test_sampling_leaves_out_successes_only() -> None:
    assert logged(exchange(), sample=0.0) == []
    assert len(logged(exchange(), 500, sample=0.0)) == 1
    assert len(logged(exchange(reason=Reason.CLIENT_GONE), 499, sample=0.0)) == 1
    lines = Lines()
    log = AccessLog(config.AccessLog(sample=0.25), lines, Random(7))
    for _ in range(2000):
        log.exchange(exchange(), 200, "", 0.1, None)
    assert 400 < len(lines.kept) < 600


HOSTILE = b'\x1b[2J\r\nGET /forged "\\\x7f\x9b\x00\xc2\x85\xe2\x80\xa8\xff'


@pytest.mark.parametrize("form", ["json", "text"])
@pytest.mark.parametrize("where", ["target", "host", "user-agent", "detail"])
def test_nothing_a_client_sends_forges_a_line(form: str, where: str) -> None:
    """Case 151."""
    each = exchange(reason=Reason.MALFORMED)
    if where == "user-agent":
        each = exchange(headers={b"user-agent": HOSTILE})
    elif where != "detail":
        each = exchange(**{where: HOSTILE})
    detail = HOSTILE.decode("latin-1") if where == "detail" else ""
    (line,) = logged(each, 400, detail, format=form)
    assert re.fullmatch(r"[ -~]+\n", line)
    if form == "json":
        assert isinstance(json.loads(line), dict)


@given(st.binary(max_size=100))
def test_escaped_bytes_are_printable_ascii_and_json(value: bytes) -> None:
    escaped = escape_bytes(value)
    assert re.fullmatch(r"[ -~]*", escaped)
    back = json.loads(f'"{escaped}"')
    assert back in (value.decode("utf-8", "replace"), value.decode("latin-1"))


def test_long_values_are_cut() -> None:
    assert escape_bytes(b"a" * 100_000) == "a" * LONGEST + "..."


def test_the_memory_of_escaped_values_is_bounded() -> None:
    lines = Lines()
    log = AccessLog(config.AccessLog(), lines, Random(1))
    for number in range(10_000):
        log.exchange(exchange(target=b"/%d" % number), 200, "", 0.1, None)
    assert len(log._escaped) < 5000
    assert json.loads(lines.kept[-1])["path"] == "/9999"


# -- the writer --------------------------------------------------------------------------------


async def test_lines_reach_a_file_and_follow_its_rotation(tmp_path: Path) -> None:
    path = tmp_path / "access.log"
    writer = LogWriter(str(path))
    writer.put("one\n")
    await eventually(lambda: path.exists() and path.read_text() == "one\n")
    path.rename(tmp_path / "access.log.1")
    writer.put("two\n")
    await eventually(lambda: path.exists() and path.read_text() == "two\n")
    writer.put("three\n")
    await writer.stop(10)
    assert path.read_text() == "two\nthree\n"
    assert (tmp_path / "access.log.1").read_text() == "one\n"
    assert writer.dropped == 0


async def test_a_log_that_cannot_be_written_is_counted(tmp_path: Path) -> None:
    writer = LogWriter(str(tmp_path / "missing" / "access.log"))
    writer.put("one\n")
    writer.put("two\n")
    await writer.stop(10)
    assert writer.dropped == 2


def _use(monkeypatch: pytest.MonkeyPatch, descriptor: int) -> None:
    monkeypatch.setitem(log_writer._STREAMS, "stdout", descriptor)


async def test_a_closed_pipe_costs_only_its_lines(monkeypatch: pytest.MonkeyPatch) -> None:
    reader, end = os.pipe()
    os.close(reader)
    _use(monkeypatch, end)
    writer = LogWriter("stdout")
    writer.put("lost\n")
    await eventually(lambda: writer.dropped == 1)
    writer.put("lost too\n")
    await writer.stop(10)
    assert writer.dropped == 2
    os.close(end)


@pytest.mark.parametrize("blocking", [True, False])
async def test_a_pipe_that_nobody_reads_never_blocks(
    monkeypatch: pytest.MonkeyPatch, blocking: bool
) -> None:
    reader, end = os.pipe()
    os.set_blocking(end, blocking)
    _use(monkeypatch, end)
    writer = LogWriter("stdout")
    line = "x" * 1023 + "\n"
    for _ in range(3 * BATCHES * BATCH_BYTES // len(line)):
        writer.put(line)
    assert writer.dropped > 0
    assert writer._queue.qsize() <= BATCHES
    await writer.stop(0.05)  # bounded: the pipe is still full
    taken = 0
    os.set_blocking(reader, False)

    def drained() -> bool:
        nonlocal taken
        try:
            while data := os.read(reader, 1 << 20):
                taken += data.count(b"\n")
        except BlockingIOError:
            pass
        return writer._ended is not None and writer._ended.is_set()

    await eventually(drained)
    drained()
    assert taken + writer.dropped == 3 * BATCHES * BATCH_BYTES // len(line)
    os.close(reader)
    os.close(end)


async def test_half_a_line_is_ended_before_the_next(monkeypatch: pytest.MonkeyPatch) -> None:
    """A disk that fills up in the middle of a line, and has room again."""
    reader, end = os.pipe()
    _use(monkeypatch, end)
    target = log_writer._Target("stdout")
    real = os.write
    calls: list[int] = []

    def full_after_three(descriptor: int, data: memoryview) -> int:
        calls.append(1)
        if len(calls) == 2:
            raise OSError(28, "No space left on device")
        return real(descriptor, data[:3] if len(calls) == 1 else data)

    monkeypatch.setattr(os, "write", full_after_three)
    target.write(b"first\nsecond\n")
    assert target.lost == 2
    target.write(b"third\n")
    assert os.read(reader, 100) == b"fir\nthird\n"
    assert target.lost == 2
    os.close(reader)
    os.close(end)
