"""Vitals: what the kernel shows, in all its shapes, and what becomes of it."""

from __future__ import annotations

import asyncio
import gc
import os
import resource
import time
from pathlib import Path

import pytest

from filters.load_shed import Config
from gateway.sim.loop import VirtualLoop
from gateway.vitals import Vitals, memory_groups, open_files, working_set
from tests.filters.doubles import HandClock

GIB = 2**30


def proc(root: Path, cgroup: str, files: int = 7) -> Path:
    place = root / "proc"
    (place / "fd").mkdir(parents=True)
    (place / "cgroup").write_text(cgroup)
    for n in range(files):
        (place / "fd" / str(n)).touch()
    return place


def group(place: Path, limit: str, usage: int, inactive: int, v1: bool = False) -> None:
    place.mkdir(parents=True, exist_ok=True)
    stat = f"anon 1\ninactive_file {inactive}\nactive_file 5\n"
    if v1:
        stat = f"cache 1\ninactive_file 3\ntotal_inactive_file {inactive}\ntotal_active_file 9\n"
    (place / ("memory.limit_in_bytes" if v1 else "memory.max")).write_text(limit + "\n")
    (place / ("memory.usage_in_bytes" if v1 else "memory.current")).write_text(f"{usage}\n")
    (place / "memory.stat").write_text(stat)


def measured(root: Path, cgroup: str) -> float | None:
    return Vitals(HandClock(), root / "sys", proc(root, cgroup)).read()[0]


# -- memory --------------------------------------------------------------------------------------


def test_memory_is_the_working_set_of_a_v2_cgroup(tmp_path: Path) -> None:
    group(tmp_path / "sys/kubepods/pod1/c1", str(2 * GIB), GIB, GIB // 2)
    assert measured(tmp_path, "0::/kubepods/pod1/c1\n") == 0.25


def test_memory_is_the_working_set_of_a_v1_cgroup(tmp_path: Path) -> None:
    group(tmp_path / "sys/memory/docker/c1", str(2 * GIB), GIB, GIB // 2, v1=True)
    text = "9:name=systemd:/docker/c1\n5:cpu,cpuacct:/docker/c1\n4:memory:/docker/c1\n0::/\n"
    assert measured(tmp_path, text) == 0.25


def test_a_container_sees_its_own_cgroup_as_the_root(tmp_path: Path) -> None:
    group(tmp_path / "sys", str(GIB), GIB // 2, 0)
    assert measured(tmp_path, "0::/\n") == 0.5
    other = tmp_path / "host"
    group(other / "sys", str(GIB), GIB // 2, 0)
    assert measured(other, "0::/not/visible/../from/here\n") == 0.5


def test_the_nearest_limit_counts(tmp_path: Path) -> None:
    group(tmp_path / "sys/pod", str(2 * GIB), GIB, 0)
    group(tmp_path / "sys/pod/c1", "max", GIB // 4, 0)
    assert measured(tmp_path, "0::/pod/c1\n") == 0.5
    group(tmp_path / "sys/pod/c1", str(GIB), GIB // 4, 0)
    assert working_set(memory_groups(tmp_path / "sys", tmp_path / "proc")[0]) == 0.25


@pytest.mark.parametrize("limit", ["max", "", "0", "-1", "none"])
def test_without_a_limit_there_is_no_share(tmp_path: Path, limit: str) -> None:
    group(tmp_path / "sys", limit, GIB, 0)
    assert measured(tmp_path, "0::/\n") is None


def test_the_largest_number_of_v1_is_no_limit(tmp_path: Path) -> None:
    group(tmp_path / "sys/memory", "9223372036854771712", GIB, 0, v1=True)
    assert measured(tmp_path, "4:memory:/\n") is None


@pytest.mark.parametrize("text", ["", "3:cpu:/\n", "0::/\n"])
def test_without_a_memory_controller_it_is_off(tmp_path: Path, text: str) -> None:
    assert measured(tmp_path, text) is None
    assert memory_groups(tmp_path / "sys", tmp_path / "nowhere") == []


def test_what_cannot_be_read_is_unknown(tmp_path: Path) -> None:
    group(tmp_path / "sys", str(GIB), GIB // 2, 0)
    found = Vitals(HandClock(), tmp_path / "sys", proc(tmp_path, "0::/\n"))
    assert found.read()[0] == 0.5
    (tmp_path / "sys/memory.stat").write_text("inactive_file some\n")
    assert found.read()[0] is None
    (tmp_path / "sys/memory.current").unlink()
    assert found.read()[0] is None


def test_more_cache_than_usage_is_nothing_in_use(tmp_path: Path) -> None:
    group(tmp_path / "sys", str(GIB), 100, 200)
    assert measured(tmp_path, "0::/\n") == 0


# -- files ---------------------------------------------------------------------------------------


def test_open_files_are_counted_by_listing_where_the_size_says_nothing(tmp_path: Path) -> None:
    count = open_files(proc(tmp_path, "", files=30) / "fd")
    assert count() == 30


def test_open_files_are_a_share_of_the_limit(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    found = Vitals(HandClock(), tmp_path, proc(tmp_path, "", files=30))
    monkeypatch.setattr(resource, "getrlimit", lambda which: (40, 80))
    assert found.read() == (None, 0.75)
    infinite = resource.RLIM_INFINITY
    monkeypatch.setattr(resource, "getrlimit", lambda which: (infinite, infinite))
    assert found.read() == (None, None)


def test_this_very_process() -> None:
    found = Vitals(HandClock())
    _, before = found.read()
    assert before is not None
    opened = [os.open(os.devnull, os.O_RDONLY) for _ in range(50)]
    try:
        _, after = found.read()
    finally:
        for each in opened:
            os.close(each)
    limit = resource.getrlimit(resource.RLIMIT_NOFILE)[0]
    assert after is not None
    assert 40 <= (after - before) * limit <= 60


def test_where_there_is_no_proc(tmp_path: Path) -> None:
    assert Vitals(HandClock(), tmp_path, tmp_path / "none").read() == (None, None)


# -- strains -------------------------------------------------------------------------------------


def test_routes_with_the_same_thresholds_share_a_strain_and_the_unused_vanish() -> None:
    found = Vitals(HandClock())
    one = found.strain(Config())
    assert found.strain(Config(dry_run=True)) is one
    other = found.strain(Config(memory=0.5))
    assert other is not one
    found.measured(0.1, None)
    found.measured(0.6, None)
    assert other.pressure
    assert not one.pressure
    del other
    gc.collect()
    found.measured(0.1, None)
    assert not found.strain(Config(memory=0.5)).pressure
    assert found.describe() == {"loop_lag": 0.0, "memory": 0.1, "files": None, "cpu": 0.0}


# -- CPU and saturation --------------------------------------------------------------------------


def test_cpu_is_the_share_of_a_core_over_the_last_seconds() -> None:
    clock = HandClock()
    spent = 100.0
    found = Vitals(clock, spent=lambda: spent)
    shares = []
    for load in [0.5] * 10 + [0.9] * 10 + [0.0] * 10:
        found.measured(None, None)
        shares.append(found.cpu)
        clock.time += 1
        spent += load
    assert shares[0] == 0
    assert shares[1:11] == [pytest.approx(0.5)] * 10
    assert shares[11] == pytest.approx(0.58)  # one second in five
    assert shares[15:21] == [pytest.approx(0.9)] * 6
    assert shares[25:] == [pytest.approx(0.0)] * 5


def test_a_measurement_that_comes_late_falsifies_nothing_and_threads_count_once() -> None:
    clock = HandClock()
    spent = 0.0
    found = Vitals(clock, spent=lambda: spent)
    for pause in (1.0, 1.0, 30.0, 0.0, 1.0):
        found.measured(None, None)
        clock.time += pause
        spent += pause / 4
    found.measured(None, None)
    assert found.cpu == pytest.approx(0.25)
    clock.time += 6
    spent += 48  # eight threads that need no interpreter lock
    found.measured(None, None)
    assert found.cpu == 1


def test_saturation_is_whatever_is_nearest_to_its_limit() -> None:
    found = Vitals(HandClock())
    assert found.saturation(0.0) == 0
    found.measured(None, None)
    assert found.saturation(0.2) == 0.2
    found.measured(0.6, None)
    assert found.saturation(0.2) == 0.6
    found.measured(0.6, 0.7)
    assert found.saturation(0.2) == 0.7
    found.cpu = 0.8
    assert found.saturation(0.9) == 0.9
    assert found.saturation(0.0) == 0.8


# -- the watching coroutines ---------------------------------------------------------------------


def test_the_loop_is_looked_at_ten_times_a_second() -> None:
    """The clock runs ahead of the loop's while the loop is busy."""
    loop = VirtualLoop()
    busy = 0.0

    class Clock(HandClock):
        def now(self) -> float:
            return loop.time() + busy

    found = Vitals(Clock())
    strain = found.strain(Config())
    lags = []

    async def run() -> None:
        nonlocal busy
        task = loop.create_task(found.watch_loop())
        for n in range(100):
            await asyncio.sleep(0.1)
            if 30 <= n < 60:
                busy += 0.2
            lags.append((found.loop_lag, strain.pressure))
        task.cancel()

    loop.run_until_complete(run())
    loop.close()
    assert max(lag for lag, _ in lags[:30]) < 0.01
    assert all(lag == pytest.approx(0.2) for lag, _ in lags[32:60])
    assert max(pressure for _, pressure in lags[:34]) == 0
    assert lags[60][1] > 2
    assert lags[99][1] < lags[62][1]


async def test_memory_and_files_are_read_in_a_thread(tmp_path: Path) -> None:
    group(tmp_path / "sys", str(GIB), GIB // 2, 0)
    place = proc(tmp_path, "0::/\n")
    done = asyncio.Event()

    class Watched(Vitals):
        def measured(self, memory: float | None, files: float | None) -> None:
            super().measured(memory, files)
            done.set()

    clock = HandClock(time.monotonic())
    found = Watched(clock, tmp_path / "sys", place)
    task = asyncio.create_task(found.watch_use())
    await done.wait()
    task.cancel()
    assert found.memory == 0.5
    assert found.files is not None
