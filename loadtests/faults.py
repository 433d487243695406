"""What ails the model server stand-in, set over HTTP while it runs.

``POST /control`` with a ``Condition`` as JSON replaces the one in force; ``{}`` is good health.
A process that is killed needs no word here.
"""

import msgspec


class Condition(msgspec.Struct, frozen=True, forbid_unknown_fields=True, omit_defaults=True):
    """The default is good health.

    ``slow`` multiplies service times and token intervals of what begins from now on; ``slots``
    replaces their number. With ``status``, ``share`` of the requests are answered so after
    ``after`` seconds, without taking a slot, with ``retry_after`` (seconds) if that is set.
    ``limit``: above so many requests inside (at work or waiting) the server answers 429, with
    ``retry_after``. ``hangs``: requests are taken and never answered. ``head_only``: the head of
    the answer comes at once, and nothing after it. ``stalls_after``: streams stand still after so
    many tokens and stay open.
    """

    slow: float = 1.0
    slots: int | None = None
    status: int = 0
    share: float = 1.0
    after: float = 0.001
    retry_after: int | None = None
    limit: int = 0
    hangs: bool = False
    head_only: bool = False
    stalls_after: int | None = None


HEALTHY = Condition()
_DECODER = msgspec.json.Decoder(Condition)


def decode(body: bytes) -> Condition:
    """``msgspec.MsgspecError`` (a ValueError) for anything that is no condition."""
    return _DECODER.decode(body or b"{}")
