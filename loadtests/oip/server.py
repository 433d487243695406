"""server: a real model server as a child process, started, killed and restarted at will."""

from __future__ import annotations

import asyncio
import contextlib
import os
import shutil
import signal
import subprocess
import tempfile
import urllib.request
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import Self

from loadtests.processes import LOOPBACK, Child, StartError, free_port

START_SECONDS = 60.0
STOP_SECONDS = 10.0
_POLL = 0.02


class Server:
    """It keeps its port and its files through ``kill``, ``restart`` and a death of its own.

    ``folder`` is made, and removed by ``stop``, unless the caller gave one; after a start that
    failed it is left, and the error says where the log is. All processes of the server are one
    group, and in the end the whole group is killed. Not for two tasks at once.
    """

    name = "server"

    def __init__(self, port: int = 0, folder: Path | None = None) -> None:
        """``port`` 0: one that is free."""
        self.port = port or free_port()
        self.child: Child | None = None
        self._own = folder is None
        self.folder = folder or Path(tempfile.mkdtemp(prefix=f"{self.name}-"))
        self.log = self.folder / "log"

    @property
    def url(self) -> str:
        return f"http://{LOOPBACK}:{self.port}"

    @property
    def address(self) -> str:
        """As tritonclient wants it, without a scheme."""
        return f"{LOOPBACK}:{self.port}"

    @property
    def running(self) -> bool:
        return self.child is not None and self.child.gone() is None

    def command(self) -> Sequence[str]:
        raise NotImplementedError

    def environment(self) -> Mapping[str, str]:
        """Added to our own."""
        return {}

    def clean(self) -> None:
        """Away with what a killed server has left outside of its folder."""

    async def start(self) -> Self:
        """Returns when all models are ready. Raises StartError with the end of the log."""
        assert not self.running
        variables = [f"{name}={value}" for name, value in self.environment().items()]
        self.child = Child.start(
            self.name,
            ["env", *variables, *self.command()],
            self.log,
            port=self.port,
            cwd=self.folder,
        )
        try:
            async with asyncio.timeout(START_SECONDS):
                while not await asyncio.to_thread(self.ready):
                    if not self.running:
                        raise StartError(f"{self.name} ended: {self._kept()}")
                    await asyncio.sleep(_POLL)
        except TimeoutError:
            await self.kill()
            raise StartError(f"{self.name} is not ready: {self._kept()}") from None
        except BaseException:
            await self.kill()
            raise
        return self

    def ready(self) -> bool:
        """Whether it says so now; blocks for 2 s at most."""
        try:
            with urllib.request.urlopen(f"{self.url}/v2/health/ready", timeout=2) as answer:
                return bool(answer.status == 200)
        except OSError:
            return False

    async def stop(self) -> None:
        """SIGTERM and time to finish, then SIGKILL to whatever is left; its files go too."""
        if self.running:
            self._signal(signal.SIGTERM)
            with contextlib.suppress(subprocess.TimeoutExpired):
                await self.ended(STOP_SECONDS)
        await self.kill()
        if self._own:
            shutil.rmtree(self.folder, ignore_errors=True)

    async def kill(self) -> None:
        """SIGKILL to all of its processes, and their end."""
        if self.child is None:
            return
        # The group outlives its leader: a server that has died leaves its models' processes.
        self._signal(signal.SIGKILL)
        await self.ended(STOP_SECONDS)
        self.child = None
        self.clean()

    async def restart(self) -> None:
        """Killed, and started anew on the same port."""
        await self.kill()
        await self.start()

    async def ended(self, seconds: float | None = None) -> None:
        """Until the server is gone, by itself or not. Raises subprocess.TimeoutExpired."""
        assert self.child is not None
        await asyncio.to_thread(self.child.process.wait, seconds)

    def last_words(self) -> str:
        """The end of its log."""
        lines = self.log.read_text(errors="replace").strip().splitlines()
        return "\n".join(line[:300] for line in lines[-15:])

    async def __aenter__(self) -> Self:
        return await self.start()

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        await self.stop()

    def _signal(self, number: signal.Signals) -> None:
        assert self.child is not None
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self.child.process.pid, number)

    def _kept(self) -> str:
        self._own = False
        return f"its log is {self.log}\n{self.last_words()}"
