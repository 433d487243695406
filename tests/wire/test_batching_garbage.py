"""A batch leaves no cycle behind: the garbage collector would stop the event loop for it."""

from __future__ import annotations

import gc

from gpu_batcher.flight import Flight, Member
from gpu_batcher.lanes import Waiting
from tests.wire.oip import ask, bench, check


async def test_nothing_of_a_batch_waits_for_the_garbage_collector() -> None:
    async with bench() as b:
        await b.together(*(ask([n]) for n in range(3)))
        gc.collect()
        gc.disable()
        try:
            for n in range(20):
                check(await b.gateway.ask(ask([n]), b"POST"), [n])
            await b.together(*(ask([n]) for n in range(8)))
            await b.idle()
            left = [
                each for each in gc.get_objects() if isinstance(each, Flight | Member | Waiting)
            ]
        finally:
            gc.enable()
        assert left == []
