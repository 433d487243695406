"""Test 4: seconds from starting the command until its port accepts."""

from loadtests.bench import Bench, Result
from loadtests.processes import StartError, free_port


def measure(bench: Bench) -> Result:
    """Several starts of each, interleaved, on all cores, with no upstream listening.

    The clock starts before the fork, so it includes the start of the interpreter or loader.
    The first start of each is not counted: it reads the program from disk.
    """
    result = Result()
    starts = 3 if bench.quick else 7
    upstream = free_port()
    for number in range(starts + 1):
        for proxy in bench.present():
            try:
                child = proxy.start(upstream, bench.scratch, None)
            except StartError as error:
                bench.problem(f"did not start: {error}")
                continue
            with child:
                if number:
                    result.add(proxy.name, number, {"start_ms": child.ready * 1e3})
    for name in result.samples:
        bench.say(f"  {name}: {result.median(name, 'start_ms') or 0:.0f} ms")
    return result
