"""``python -m loadtests.oip triton`` or ``mlserver``: a real server in the foreground.

With ``--install`` it is only installed. Ctrl-C ends it.
"""

from __future__ import annotations

import argparse
import asyncio
import signal
import sys
from collections.abc import Sequence
from typing import TYPE_CHECKING

from loadtests.oip import install, mlserver
from loadtests.oip.install import MissingError
from loadtests.oip.triton import TritonServer, echo, elementwise, masked, poison
from loadtests.processes import StartError

if TYPE_CHECKING:
    from loadtests.oip.server import Server

PER_CALL, PER_ROW = 0.002, 20e-6
"""Seconds: the price of a model that is meant to be batched."""


def triton_server(port: int) -> Server:
    models = [
        elementwise(per_call=PER_CALL, per_row=PER_ROW),
        elementwise("elementwise_batched", per_call=PER_CALL, per_row=PER_ROW, batched=True),
    ]
    return TritonServer([*models, masked(), poison(), echo()], port=port)


def mlserver_server(port: int) -> Server:
    alone = mlserver.elementwise(per_call=PER_CALL, per_row=PER_ROW)
    name = "elementwise_batched"
    batched = mlserver.elementwise(name, per_call=PER_CALL, per_row=PER_ROW, batched=True)
    return mlserver.MlServer([alone, batched], port=port)


async def run(server: Server) -> int:
    stopped = asyncio.Event()
    for number in (signal.SIGINT, signal.SIGTERM):
        asyncio.get_running_loop().add_signal_handler(number, stopped.set)
    async with server:
        print(f"{server.name} is ready at {server.url}, its log is {server.log}", flush=True)
        gone = asyncio.create_task(server.ended())
        asked = asyncio.create_task(stopped.wait())
        await asyncio.wait((gone, asked), return_when=asyncio.FIRST_COMPLETED)
        asked.cancel()
        if not stopped.is_set():
            print(f"{server.name} has died; its log ends:\n{server.last_words()}", file=sys.stderr)
    return 0 if stopped.is_set() else 1


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m loadtests.oip", description=__doc__)
    parser.add_argument("server", choices=("triton", "mlserver"))
    parser.add_argument("--install", action="store_true", help="install it, and no more")
    parser.add_argument("--port", type=int, default=8000, help="on loopback (default 8000)")
    given = parser.parse_args(arguments)
    is_triton = given.server == "triton"
    try:
        install.install_triton() if is_triton else install.install_mlserver()
        if given.install:
            return 0
        server = triton_server(given.port) if is_triton else mlserver_server(given.port)
        return asyncio.run(run(server))
    except (MissingError, StartError) as error:
        print(error, file=sys.stderr)
        return 1


if __name__ == "__main__":
    sys.exit(main())
