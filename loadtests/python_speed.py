"""How fast this build of Python is: prints the nanoseconds of one round of small objects and calls.

Builds differ by a factor of two: the distributions' and the container images' are optimised,
those compiled at home often are not. The Makefile takes the fastest that it finds, and reports
name it, because figures of different builds cannot be compared. Imports what an environment
needs, so that a Python without it fails here.
"""

import ensurepip  # noqa: F401
import sys
import timeit
import venv  # noqa: F401

_SETUP = """
class Thing:
    __slots__ = ("a", "b")
    def __init__(self, a):
        self.a = a
        self.b = [a]
    def add(self, x):
        return self.a + x
def work():
    things = {}
    for i in range(50):
        thing = Thing(i)
        things[b"%d" % i] = thing
        thing.add(i)
    return things
"""


def nanoseconds() -> int:
    """The best of twenty short runs, for one object made, kept and called."""
    best = min(timeit.repeat("work()", _SETUP, number=400, repeat=20))
    return round(best / 400 / 50 * 1e9)


if __name__ == "__main__":
    assert sys.version_info >= (3, 11)
    print(nanoseconds())
