"""The demo: its servers do what their fault says, and it ends by itself with a summary."""

from __future__ import annotations

import asyncio
import re
import subprocess
import sys
from itertools import pairwise
from random import Random

import pytest

from gateway.demo import SCHEDULE
from gateway.demo_load import Load, Record, quantile
from gateway.demo_servers import TOKENS, Fault, ModelServer
from tests.harness import eventually
from tests.tidy import ROOT


async def ask(server: ModelServer, body: bytes = b"{}") -> bytes:
    """One request on a connection of its own; everything that comes until the answer's end."""
    reader, writer = await asyncio.open_connection("127.0.0.1", server.port)
    writer.write(b"POST /v1/chat/completions HTTP/1.1\r\n")
    writer.write(b"Host: a\r\nContent-Length: %d\r\n\r\n%b" % (len(body), body))
    writer.write_eof()
    try:
        return await reader.read()
    finally:
        writer.close()


async def test_a_server_answers_streams_refuses_dies_and_comes_back() -> None:
    server = ModelServer("a", Random(1))
    await server.start()
    port = server.port
    assert (await ask(server)).startswith(b"HTTP/1.1 200 OK\r\n")
    stream = await ask(server, b'{"stream": true}')
    assert stream.count(b"data: ") == TOKENS + 1
    assert stream.endswith(b"data: [DONE]\n\n\r\n0\r\n\r\n")
    await server.become(Fault.REFUSING)
    assert (await ask(server)).startswith(b"HTTP/1.1 503 ")
    assert server.failures == 1
    await server.become(Fault.DEAD)
    with pytest.raises(ConnectionRefusedError):
        await ask(server)
    await server.become(Fault.NONE)
    assert server.port == port
    assert (await ask(server)).startswith(b"HTTP/1.1 200 OK\r\n")
    await server.stop()


async def test_a_death_cuts_off_who_was_being_answered() -> None:
    server = ModelServer("a", Random(1))
    await server.start()
    await server.become(Fault.SLOW)
    reader, writer = await asyncio.open_connection("127.0.0.1", server.port)
    writer.write(b"POST / HTTP/1.1\r\nContent-Length: 2\r\n\r\n{}")
    await eventually(lambda: server.busy == 1)
    await server.become(Fault.DEAD)
    assert await reader.read() == b""
    assert server.busy == 0
    assert server.failures == 1
    writer.close()


def test_the_faults_of_the_schedule_come_one_at_a_time() -> None:
    assert {each.fault for each in SCHEDULE} == set(Fault) - {Fault.NONE}
    assert all(0 < each.begin < each.end < 1 for each in SCHEDULE)
    assert all(before.end < after.begin for before, after in pairwise(SCHEDULE))


def test_what_callers_saw_is_counted() -> None:
    load = Load("http://127.0.0.1:1", Random(1))
    for ended, failure, attempts in ((1.0, "", 1), (2.0, "", 2), (5.0, "502 x", 2)):
        load._end(Record(ended, ended / 10, failure, attempts))
    assert (load.requests, load.failed, load.rescued) == (3, 1, 1)
    assert load.failures == {"502 x": 1}
    assert [record.ended for record in load.recent(5.0)] == [5.0, 2.0]
    assert quantile(list(load.records), 0.99) == 0.2
    assert quantile([], 0.5) == 0.0


def test_the_demo_ends_by_itself_with_a_summary() -> None:
    """Without a terminal. Whether callers were served well is for the summary to say."""
    command = (sys.executable, "-m", "gateway", "demo", "--seconds", "2")
    run = subprocess.run(
        command, cwd=ROOT, capture_output=True, text=True, timeout=100, check=False
    )
    assert run.stderr == ""
    assert run.stdout.startswith("gateway http://127.0.0.1:")
    requests = re.search(r"^requests +(\d+)$", run.stdout, re.MULTILINE)
    assert requests is not None
    assert int(requests[1]) > 0
    assert re.search(r"^seen by callers +\d+ failures", run.stdout, re.MULTILINE)
    assert run.returncode in (0, 1)
