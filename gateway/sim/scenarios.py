"""All scenarios by name: what happens, what must hold, and how to take its mechanism away.

Each scenario states its numbers in its own ``claims``, nowhere else. ``without`` is the same
world with the mechanism off; there at least one claim must break, or the scenario shows nothing.
The filters were made for fifteen situations, which scenarios name as rows: 1 overload, 2 bursts,
3 a server that changes, 4 service times that differ widely, 5 classes, 6 tenants, 7 a slow
endpoint, 8 one that fails or dies, 9 all fail, 10 two fail by turns, 11 clients that retry,
12 clients that hang up, 13 silent servers, 14 a server with a limit of its own, 15 many streams.
Unless a scenario says otherwise: 8 slots per server, service times lognormal with mean 20 ms and
sigma 0.5, half of the capacity before and after an event, answers useful within 200 ms, clients
that leave after 5 s.
"""

from gateway.sim import (
    scenarios_faults,
    scenarios_overload,
    scenarios_requests,
    scenarios_sharing,
    scenarios_streams,
)
from gateway.sim.scenario import Scenario


def scenarios(brief: bool) -> dict[str, Scenario]:
    """``brief``: shorter events, and of pairs with different balancers one: for tests that run
    with every change. The claims are the same."""
    everything = (
        *scenarios_overload.scenarios(brief),
        *scenarios_sharing.scenarios(brief),
        *scenarios_faults.scenarios(brief),
        *scenarios_streams.scenarios(),
        *scenarios_requests.scenarios(),
    )
    return {each.name: each for each in everything}


FULL = scenarios(brief=False)
BRIEF = scenarios(brief=True)
