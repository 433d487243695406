"""The bytes of one client's connection -> its request heads, whole and checked. No I/O."""

from typing import TYPE_CHECKING, TypeAlias

from filters.api import Reason, Reject, Request
from gateway import wire
from gateway.head_buffer import HeadBuffer
from gateway.head_memo import KnownHead, meet_request, revised_request

if TYPE_CHECKING:
    from gateway.config import Limits

Begun: TypeAlias = tuple[Request, bytes, bool, bool, bool]
"""The request, what came behind its head, and whether the connection goes on after it, its client
waits for ``100 Continue``, and it asks for an upgrade."""


class HeadReader:
    """One for each connection. ``partial`` is what has come of a head that is not whole yet."""

    __slots__ = ("_known", "partial")

    def __init__(self) -> None:
        self.partial: HeadBuffer | None = None
        self._known: KnownHead[Request] | None = None

    def read(self, data: bytes, limits: "Limits", *, first: bool) -> Begun | None:
        """What ``data`` begins or completes, None while a head is not whole. Raises Reject.

        Heads are remembered unless they are the ``first`` of their connection, because there may
        be no other.
        """
        partial = self.partial
        if partial is None:
            known = self._known
            if known is not None and (end := known.match(data, limits)):
                request = known.read
                if request.length:
                    _check_length(request, limits)
                return request, data[end:], True, False, False
            end = data.find(b"\r\n\r\n")
            if 0 <= end <= limits.head_bytes and data[0] != 13:
                return self._begin(data[: end + 4], data[end + 4 :], limits, first)
            partial = self.partial = HeadBuffer(
                target_bytes=limits.target_bytes, head_bytes=limits.head_bytes
            )
        whole = partial.add(data)
        if whole is None:
            return None
        self.partial = None
        return self._begin(*whole, limits, first)

    def _begin(self, head: bytes, rest: bytes, limits: "Limits", first: bool) -> Begun:
        request = wire.parse_request(head, target_bytes=limits.target_bytes, headers=limits.headers)
        index = request.index
        keep = wire.is_persistent(request)
        _check_length(request, limits)
        expects = b"expect" in index and wire.expects_continue(request)
        upgrade = b"upgrade" in index and wire.wants_upgrade(request)
        if not first:
            if self._known is None:
                self._known = KnownHead(revised_request)
            plain = keep and request.minor == 1 and b"expect" not in index and not upgrade
            meet_request(self._known, head, request, limits, plain)
        return request, rest, keep, expects, upgrade


def _check_length(request: Request, limits: "Limits") -> None:
    if request.length is not None and request.length > limits.body_bytes:
        raise Reject(Reason.BODY_TOO_LARGE, f"body over {limits.body_bytes} bytes")
