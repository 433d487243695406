"""The gateway as a process of its own, for what only a process has: memory, files, CPU."""

from __future__ import annotations

import asyncio
import os
import re
import resource
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from pathlib import Path

from tests.wire.origin import BOUND

_ADDRESS = re.compile(rb"127\.0\.0\.1:([0-9]+)")


class Process:
    """``address`` is that of the first listener it announced."""

    def __init__(self, running: asyncio.subprocess.Process, address: tuple[str, int]) -> None:
        self.running = running
        self.address = address

    @property
    def resident(self) -> int:
        """Resident bytes, now."""
        status = Path(f"/proc/{self.running.pid}/status").read_text()
        (line,) = [line for line in status.splitlines() if line.startswith("VmRSS:")]
        return int(line.split()[1]) * 1024

    @property
    def cpu(self) -> float:
        """Seconds of processor time used so far, user and system."""
        fields = Path(f"/proc/{self.running.pid}/stat").read_text().rpartition(")")[2].split()
        return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


@asynccontextmanager
async def process(config: str, directory: Path, descriptors: int = 0) -> AsyncIterator[Process]:
    """Run ``config`` (YAML, its first listener on 127.0.0.1:0). ``descriptors`` caps open files."""
    file = directory / "tailrace.yaml"
    file.write_text(config)

    def cap() -> None:
        resource.setrlimit(resource.RLIMIT_NOFILE, (descriptors, descriptors))

    running = await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", "gateway", "run", str(file)),
        stdout=asyncio.subprocess.PIPE,
        preexec_fn=cap if descriptors else None,
    )
    assert running.stdout is not None
    try:
        async with asyncio.timeout(BOUND):
            while (match := _ADDRESS.search(line := await running.stdout.readline())) is None:
                assert line, "the gateway ended before it announced a listener"
        yield Process(running, ("127.0.0.1", int(match[1])))
    finally:
        with suppress(ProcessLookupError):
            running.kill()
        await running.wait()
