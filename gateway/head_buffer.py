"""Collects the bytes of one request head that did not come whole. Pure.

The usual head comes in one read and never gets here. One that drips costs O(bytes) in all: every
byte is looked at once, whatever pieces it came in.
"""

from filters.api import Reason, Reject
from gateway import wire

BLANK_LINES = 2
"""Stray CRLFs before a request line that are forgiven (RFC 9112 section 2.2)."""


class HeadBuffer:
    """Bytes of a head to be. Give it pieces until it returns the head and what follows it."""

    __slots__ = ("_blank", "_bytes", "_head_bytes", "_target_bytes")

    def __init__(self, *, target_bytes: int, head_bytes: int) -> None:
        self._bytes = bytearray()
        self._blank = 0
        self._target_bytes = target_bytes
        self._head_bytes = head_bytes

    def add(self, data: bytes) -> tuple[bytes, bytes] | None:
        """(head, rest) once the head is whole. Raises Reject as soon as it cannot become one."""
        held = self._bytes
        seen = len(held)
        held += data
        if seen < 2:
            self._skip_blank_lines()
            seen = min(seen, len(held))
        end = held.find(b"\r\n\r\n", max(0, seen - 3))
        if end < 0 or end > self._head_bytes:
            wire.check_partial(
                held, seen, target_bytes=self._target_bytes, head_bytes=self._head_bytes
            )
            return None
        return bytes(held[: end + 4]), bytes(held[end + 4 :])

    def _skip_blank_lines(self) -> None:
        held = self._bytes
        while held.startswith(b"\r\n"):
            self._blank += 1
            if self._blank > BLANK_LINES:
                raise Reject(Reason.MALFORMED, "line ends before the request line")
            del held[:2]

    def __bool__(self) -> bool:
        """Whether a head has begun; blank lines are none."""
        return bool(self._bytes)
