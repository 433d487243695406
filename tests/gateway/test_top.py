"""``tailrace top``: what it asks, what it shows, and what it says when nobody answers."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

from gateway import top
from gateway.config import Admin, Secret
from tests.gateway.administered import GET, administered, ask_proxy
from tests.wire.origin import Origin


def drawn(told: dict[str, Any]) -> str:
    console = Console(width=160, no_color=True)
    with console.capture() as captured:
        console.print(top.screen(told, "http://x"))
    return captured.get()


async def test_it_shows_what_is_wrong() -> None:
    async with Origin() as one, Origin() as two, administered(one, two) as running:
        assert await ask_proxy(running.server, GET) == 200
        await running.ask(f"/clusters/c/endpoints/{one.authority}/eject", "POST")
        feed = running.server.feed
        admin = running.server.admin
        assert feed is not None
        assert admin is not None
        feed.tick(running.server.clock.now(), 5.0)
        bound = admin.addresses[0]
        told = await asyncio.to_thread(top.ask, f"{bound[0]}:{bound[1]}", None)
        text = drawn(told)
        assert f"▲ endpoint {one.authority} is ejected: by an operator; 1 of 2 serve" in text
        assert f"c  {two.authority}" in text
        assert "100.0% answered well" in text
        assert f"✕ {one.authority} of c is ejected for 1 h: by an operator" in text


async def test_over_a_socket_file(tmp_path: Path) -> None:
    path = f"unix:{tmp_path}/admin.sock"
    async with Origin() as origin, administered(origin, admin=Admin(listen=path)):
        told = await asyncio.to_thread(top.ask, path, None)
        assert "everything is fine" in drawn(told)


async def test_with_a_token(tmp_path: Path) -> None:
    admin = Admin(listen="0.0.0.0:0", token=Secret("open sesame"))
    async with Origin() as origin, administered(origin, admin=admin) as running:
        where = running.server.admin
        assert where is not None
        url = f"http://127.0.0.1:{where.addresses[0][1]}"
        with pytest.raises(top.Unanswered, match=r"asks for its admin\.token"):
            await asyncio.to_thread(top.ask, url, None)
        assert "headline" in await asyncio.to_thread(top.ask, url, "open sesame")
        file = tmp_path / "token"
        file.write_text("open sesame\n")
        assert await asyncio.to_thread(top.run, url, file, True) == 0
        assert await asyncio.to_thread(top.run, url, tmp_path / "none", True) == 1


@pytest.mark.parametrize(
    "admin", ["http://127.0.0.1:1", "unix:/nonexistent", "ftp://x", "http://[x"]
)
def test_nobody_answers(admin: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert top.run(admin, None, True) == 1
    assert admin in capsys.readouterr().out


async def test_somebody_else_answers() -> None:
    async with Origin() as origin:
        with pytest.raises(top.Unanswered):
            await asyncio.to_thread(top.ask, origin.url, None)


def test_nothing_speaks_to_the_terminal() -> None:
    assert top._clean({"a": ["\x1b[2J\x07x", 1]}) == {"a": ["?[2J?x", 1]}


def test_names_are_no_markup() -> None:
    line = top._event({"at": 0.0, "level": "bad", "text": "[bold]x[/bold]"})
    assert line.plain.endswith("[bold]x[/bold]")


def test_bars() -> None:
    assert top.bars([0, 4, 8]) == " ▄█"
    assert top.bars([0.0, 0.0]) == "  "
    assert top.bars([]) == ""
