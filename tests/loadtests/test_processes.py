"""The load generator against the stand-in, as real processes. Nothing here depends on speed."""

import contextlib
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import msgspec
import pytest

from loadtests import records
from loadtests.faults import Condition
from loadtests.fleet import Fleet, ask, fleet
from loadtests.load_plan import Flow, Load
from loadtests.processes import Child, free_port
from loadtests.records import End, Record, Tape

ANYWHERE: frozenset[int] = frozenset()
OPTIONS = ("--slots", "4", "--service-mean", "0.005", "--token-interval", "0.005")


@pytest.fixture
def servers(tmp_path: Path) -> Iterator[Fleet]:
    with fleet(2, OPTIONS, tmp_path, ANYWHERE) as running:
        yield running


def play(tmp_path: Path, ports: list[int], *flows: Flow, **more: Any) -> tuple[Tape, list[Record]]:
    """The whole load; returns when the generator has ended."""
    plan, out = tmp_path / "load.json", tmp_path / "records.bin"
    load = Load(targets=tuple(ports), flows=flows, warm=2, **more)
    plan.write_bytes(msgspec.json.encode(load))
    command = [sys.executable, "-m", "loadtests.open_loop", "--load", str(plan), "--out", str(out)]
    with Child.start("open_loop", command, tmp_path / "load.log") as child:
        child.process.wait(60)
        assert child.process.returncode == 0, child.tail()
    return records.load(out)


def test_every_request_is_answered_once(servers: Fleet, tmp_path: Path) -> None:
    plain = Flow("plain", ((0.5, 200.0),), headers=(("x-note", "100 % plain"),))
    streams = Flow("streams", ((0.5, 20.0),), once=5, tokens=(2, 4))
    tape, taken = play(tmp_path, servers.ports, plain, streams)
    assert tape.flows == ["plain", "streams"]
    assert tape.count == len(taken) > 50
    assert all(each.ok for each in taken), records.failures(taken)
    assert all(each.service == pytest.approx(0.005, abs=1e-4) for each in taken)
    assert all(0 < each.first <= each.latency for each in taken)
    assert sum(each.flow for each in taken) >= 5
    stats = [servers.stats(n) for n in range(2)]
    assert sum(each["arrived"] for each in stats if each) == len(taken)
    assert sum(each["served"] for each in stats if each) == len(taken)
    assert all(each["arrived"] >= len(taken) // 2 for each in stats if each)


def test_refusals_are_told_and_retried(servers: Fleet, tmp_path: Path) -> None:
    servers.apply(0, Condition(status=503, retry_after=7))
    flow = Flow("all", ((0.2, 100.0),), retries=2, backoff=0.01)
    _, taken = play(tmp_path, servers.ports[:1], flow)
    first = [each for each in taken if each.number == 0]
    assert len(taken) == 3 * len(first) > 0
    assert all(each.refused and each.status == 503 and each.retry_after for each in taken)
    servers.apply(0, Condition(limit=1, retry_after=1, slow=20.0))
    _, taken = play(tmp_path, servers.ports[:1], Flow("all", ((1.0, 0.0),), once=5))
    assert sorted(each.status for each in taken) == [200, 429, 429, 429, 429]


def test_clients_leave_and_are_missed_by_nobody(servers: Fleet, tmp_path: Path) -> None:
    servers.apply(0, Condition(hangs=True))
    servers.apply(1, Condition(head_only=True))
    flow = Flow("all", ((0.2, 100.0),), patience=(0.05, 0.2))
    _, taken = play(tmp_path, servers.ports, flow)
    assert {each.end for each in taken} == {End.LEFT}
    assert all(each.latency >= 0.05 for each in taken)
    stats = [servers.stats(n) for n in range(2)]
    assert sum(each["cancelled"] for each in stats if each) == len(taken)
    assert all(each["held"] == 0 for each in stats if each)


def test_a_stream_that_stalls_keeps_its_slot_until_its_client_leaves(
    servers: Fleet, tmp_path: Path
) -> None:
    servers.apply(0, Condition(stalls_after=2))
    flow = Flow("all", ((0.1, 0.0),), once=3, tokens=(5, 5), patience=(0.3, 0.3))
    _, taken = play(tmp_path, servers.ports[:1], flow)
    assert [each.end for each in taken] == [End.LEFT] * 3
    assert all(each.first > 0 for each in taken)
    stats = servers.stats(0)
    assert stats is not None
    assert (stats["tokens"], stats["cancelled"], stats["in_service"]) == (6, 3, 0)


def test_a_killed_server_is_noticed_and_counts_on_when_it_is_back(
    servers: Fleet, tmp_path: Path
) -> None:
    flow = Flow("all", ((0.2, 100.0),))
    _, before = play(tmp_path, servers.ports[:1], flow)
    servers.kill(0)
    assert servers.stats(0) is None
    with contextlib.suppress(IndexError):
        servers.apply(0, Condition(slow=2))  # nobody is there to hear it
    servers.start(0)
    _, after = play(tmp_path, servers.ports[:1], flow)
    stats = servers.stats(0)
    assert stats is not None
    assert stats["arrived"] == len(before) + len(after)


def test_nobody_there_is_no_answer(tmp_path: Path) -> None:
    flow = Flow("all", ((0.2, 50.0),))
    load = Load(targets=(free_port(),), flows=(flow,), warm=0)
    plan, out = tmp_path / "load.json", tmp_path / "out"
    plan.write_bytes(msgspec.json.encode(load))
    command = [sys.executable, "-m", "loadtests.open_loop", "--load", str(plan), "--out", str(out)]
    with Child.start("open_loop", command, tmp_path / "log") as child:
        assert child.process.wait(60) == 0
    _, taken = records.load(out)
    assert {each.end for each in taken} == {End.UNREACHABLE}


def test_a_wrong_condition_is_refused(servers: Fleet) -> None:
    assert ask(servers.ports[0], "/control", b'{"slots": 3}') == {}
    assert ask(servers.ports[0], "/control", b'{"slow": "very"}') is None
    assert ask(servers.ports[0], "/control", b'{"slots": 3, "colour": 1}') is None
