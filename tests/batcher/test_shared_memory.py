"""Regions: made, locked, found dead, registered."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from gpu_batcher import shared_memory
from gpu_batcher.shared_memory import (
    CUDA,
    NAME,
    SYSTEM,
    Claim,
    NotUpError,
    RefusedError,
    RegionError,
    Registry,
    SystemRegions,
    dead_claims,
    sweep,
)
from tests.batcher.shared_server import Server

DEAD = "tailrace-1-0123456789abcdef-0"


@pytest.fixture
def server(tmp_path: Path) -> Server:
    return Server(tmp_path)


@pytest.fixture
def registries(server: Server) -> list[Registry]:
    return [Registry(server.control, kind) for kind in (SYSTEM, CUDA)]


def test_a_region_is_a_file_until_it_is_closed(tmp_path: Path) -> None:
    regions = SystemRegions(0, directory=tmp_path)
    region = regions.make(5000)
    (path,) = tmp_path.iterdir()
    assert path.name == region.name
    assert NAME.fullmatch(region.name)
    assert f"-{os.getpid()}-" in region.name
    assert path.stat().st_mode & 0o777 == 0o600
    assert path.stat().st_size == region.size == 8192
    region.lease.buffer.memory[:3] = b"abc"
    assert path.read_bytes()[:4] == b"abc\0"
    region.close()
    assert not list(tmp_path.iterdir())


def test_names_and_modes(tmp_path: Path) -> None:
    one, other = SystemRegions(0, 0o666, tmp_path), SystemRegions(0, 0o666, tmp_path)
    made = [one.make(1), one.make(1), other.make(1)]
    assert len({each.name for each in made}) == 3
    assert all((tmp_path / each.name).stat().st_mode & 0o777 == 0o666 for each in made)
    for each in made:
        each.close()


def test_closing_with_a_view_left_keeps_the_memory_readable(tmp_path: Path) -> None:
    region = SystemRegions(0, directory=tmp_path).make(100)
    view = region.lease.buffer.memory[:3]
    region.lease.buffer.memory[:3] = b"abc"
    region.close()
    assert bytes(view) == b"abc"


def test_no_room(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "posix_fallocate", full)
    with pytest.raises(RegionError, match="No space left"):
        SystemRegions(0, directory=tmp_path).make(100)
    assert not list(tmp_path.iterdir())
    with pytest.raises(RegionError):
        SystemRegions(0, directory=tmp_path / "missing").make(100)


def test_the_living_are_left_alone(tmp_path: Path) -> None:
    region = SystemRegions(0, directory=tmp_path).make(100)
    assert not list(dead_claims(tmp_path))
    assert (tmp_path / region.name).exists()
    region.close()


def test_the_living_in_another_process_are_left_alone(tmp_path: Path) -> None:
    text = (
        "import sys, pathlib; from gpu_batcher.shared_memory import SystemRegions;"
        "region = SystemRegions(0, directory=pathlib.Path(sys.argv[1])).make(100);"
        "print(region.name, flush=True); sys.stdin.read(1)"
    )
    command = [sys.executable, "-c", text, str(tmp_path)]
    with subprocess.Popen(
        command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as child:
        assert child.stdout is not None
        name = child.stdout.readline().strip()
        assert NAME.fullmatch(name)
        assert not list(dead_claims(tmp_path))
        child.kill()
        child.wait()
    (claim,) = dead_claims(tmp_path)
    assert claim.path.name == name
    claim.close()
    assert not list(tmp_path.iterdir())


def test_what_is_not_ours_is_left_alone(tmp_path: Path) -> None:
    (tmp_path / "target").write_bytes(b"keep")
    (tmp_path / DEAD).symlink_to(tmp_path / "target")
    (tmp_path / "tailrace-notes").write_bytes(b"keep")
    (tmp_path / "tailrace-2-0123456789abcdef-0").mkdir()
    (tmp_path / f"x{DEAD}").write_bytes(b"keep")
    assert not list(dead_claims(tmp_path))
    assert len(list(tmp_path.iterdir())) == 5


def test_a_taken_name_is_left_to_its_owner(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    regions = SystemRegions(0, directory=tmp_path)
    make, taken = Claim.make, []

    def first_to_a_sweeper(path: Path, mode: int) -> Claim | None:
        taken.append(path)
        return None if len(taken) == 1 else make(path, mode)

    monkeypatch.setattr(shared_memory.Claim, "make", first_to_a_sweeper)
    region = regions.make(1)
    assert region.name == taken[1].name != taken[0].name
    region.close()


async def test_the_dead_are_unregistered_and_then_unlinked(
    server: Server, registries: list[Registry], tmp_path: Path
) -> None:
    path = tmp_path / DEAD
    path.write_bytes(bytes(4096))
    server.register("system", DEAD, b'{"key": "/%s", "byte_size": 4096}' % DEAD.encode())
    living = SystemRegions(0, directory=tmp_path).make(100)
    await registries[0].register(living)
    assert await sweep(tmp_path, registries) == 1
    assert set(server.regions) == {living.name}
    assert os.listdir(tmp_path) == [living.name]  # noqa: PTH208
    living.close()


async def test_the_dead_wait_for_the_server(
    server: Server, registries: list[Registry], tmp_path: Path
) -> None:
    (tmp_path / DEAD).write_bytes(b"")
    server.up = False
    with pytest.raises(NotUpError):
        await sweep(tmp_path, registries)
    assert (tmp_path / DEAD).exists()
    server.up, server.shared = True, False
    assert await sweep(tmp_path, registries) == 1
    assert not (tmp_path / DEAD).exists()


async def test_registering_twice_is_no_error(
    server: Server, registries: list[Registry], tmp_path: Path
) -> None:
    region = SystemRegions(0, directory=tmp_path).make(100)
    await registries[0].register(region)
    await registries[0].register(region)
    assert await registries[0].listed() == {region.name: region.size}
    assert await registries[1].listed() == {}
    await registries[0].unregister(region.name)
    await registries[0].unregister(region.name)
    assert await registries[0].listed() == {}
    server.shared = False
    with pytest.raises(RefusedError, match="disabled"):
        await registries[0].register(region)
    region.close()


@pytest.mark.parametrize("answer", [(200, b"<html>"), (200, b'{"a": 1}'), (404, b"")])
async def test_a_list_that_is_none(answer: tuple[int, bytes]) -> None:
    async def control(method: str, path: str, body: bytes) -> tuple[int, bytes]:
        return answer

    with pytest.raises(RefusedError):
        await Registry(control, SYSTEM).listed()


@pytest.mark.parametrize("status", [502, 503, 504])
async def test_a_proxy_in_between_is_not_the_server(status: int) -> None:
    async def control(method: str, path: str, body: bytes) -> tuple[int, bytes]:
        return status, b""

    with pytest.raises(NotUpError):
        await Registry(control, SYSTEM).listed()


async def test_a_server_that_does_not_answer(monkeypatch: pytest.MonkeyPatch) -> None:
    async def control(method: str, path: str, body: bytes) -> tuple[int, bytes]:
        raise TimeoutError

    with pytest.raises(NotUpError, match="TimeoutError"):
        await Registry(control, SYSTEM).unregister("name")
