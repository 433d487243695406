"""``RequestBody.whole``: an upload is waited for before any attempt; nothing is lost by that."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING

from gateway.body import ReplayStore, RequestBody

if TYPE_CHECKING:
    from filters.api import Headers


class Source:
    """A client's connection. ``wanted``: how often it was told that the body is waited for."""

    def __init__(self) -> None:
        self.paused = False
        self.wanted = 0

    def pause(self) -> None:
        self.paused = True

    def resume(self) -> None:
        self.paused = False

    def body_wanted(self) -> None:
        self.wanted += 1


class Sink:
    """An attempt."""

    def __init__(self) -> None:
        self.got = b""
        self.ended = self.aborted = False

    def body_data(self, data: bytes) -> None:
        self.got += data

    def body_end(self, trailers: Headers) -> None:
        self.ended = True

    def body_abort(self) -> None:
        self.aborted = True


def made(
    length: int | None = 6, each: int = 100, total: int = 1000
) -> tuple[RequestBody, Source, ReplayStore]:
    source, store = Source(), ReplayStore(each, total)
    return RequestBody(length, store, source), source, store


async def begun(body: RequestBody) -> asyncio.Task[bytes | None]:
    task = asyncio.ensure_future(body.whole())
    await asyncio.sleep(0)
    return task


async def test_what_is_here_is_given_at_once() -> None:
    store, source = ReplayStore(100, 1000), Source()
    body = RequestBody(6, store, source, b"whole!")
    assert await body.whole() == b"whole!"
    assert await RequestBody(0, store, source).whole() == b""
    assert source.wanted == 0  # nobody has to be told to go on


async def test_it_waits_for_the_last_piece() -> None:
    body, source, store = made()
    body.feed(b"ab")
    task = await begun(body)
    assert source.wanted == 1
    body.feed(b"cd")
    body.feed(b"ef")
    await asyncio.sleep(0)
    assert not task.done()
    body.end([])
    assert await task == b"abcdef"
    assert await body.whole() == b"abcdef"
    assert store.held == 6
    sink = Sink()
    assert body.attach(sink) == [b"ab", b"cd", b"ef"]  # another attempt can send it
    body.release()
    assert store.held == 0


async def test_a_chunked_body_may_end_without_a_piece() -> None:
    body, _, _ = made(None)
    task = await begun(body)
    body.end([])
    assert await task == b""


async def test_a_client_that_breaks_off_ends_the_wait() -> None:
    body, _, store = made()
    task = await begun(body)
    body.feed(b"abc")
    body.abort()
    assert await task is None
    assert body.aborted
    assert await body.whole() is None  # also for whoever asks later
    body.release()
    assert store.held == 0


async def test_what_outgrows_its_own_bound_goes_on_as_a_stream() -> None:
    body, source, store = made(None, each=4)
    task = await begun(body)
    body.feed(b"abcd")
    assert not source.paused
    body.feed(b"efg")
    assert source.paused  # no more is taken while nobody has any use for it
    assert await task is None
    sink = Sink()
    for piece in body.attach(sink):
        sink.body_data(piece)
    assert not source.paused
    assert not body.replayable
    assert (store.bodies_streamed, store.held) == (1, 0)
    body.feed(b"h")
    body.end([])
    assert (sink.got, sink.ended) == (b"abcdefgh", True)
    assert await body.whole() is None


async def test_the_last_piece_may_be_the_one_that_is_too_much() -> None:
    body, source, _ = made(6, each=4)
    task = await begun(body)
    body.feed(b"abcdef")
    body.end([])
    assert await task == b"abcdef"  # it is here all the same
    assert source.paused  # and that is undone by the connection, which knows that it has ended


async def test_what_was_too_much_with_others_is_taken_again_when_they_are_gone() -> None:
    store = ReplayStore(100, 10)
    other = RequestBody(8, store, Source(), b"12345678")
    source = Source()
    body = RequestBody(6, store, source)
    body.feed(b"abc")
    assert source.paused
    assert await body.whole() is None
    other.release()
    task = await begun(body)
    assert not source.paused  # else the rest would never come, and the wait never end
    body.feed(b"def")
    body.end([])
    assert await task == b"abcdef"


async def test_while_it_waits_the_bytes_of_others_do_not_end_it() -> None:
    store = ReplayStore(100, 10)
    body = RequestBody(6, store, Source())
    task = await begun(body)
    body.feed(b"abc")
    other = RequestBody(8, store, Source(), b"12345678")
    await asyncio.sleep(0)
    assert not task.done()
    body.feed(b"d")
    assert await task is None  # but its own next piece is one too many
    other.release()
    body.release()
    assert store.held == 0


async def test_a_wait_that_is_cancelled_leaves_nothing() -> None:
    body, _, _ = made()
    task = await begun(body)
    task.cancel()
    await asyncio.wait([task])
    body.feed(b"abcdef")
    body.end([])
    assert await body.whole() == b"abcdef"
    body.abort()  # of what is complete: nothing happens
    assert not body.aborted


async def test_its_end_and_a_cancellation_in_one_moment() -> None:
    body, _, _ = made()
    task = await begun(body)
    body.feed(b"abcdef")
    body.end([])
    task.cancel()
    assert (await asyncio.gather(task, return_exceptions=True))[0].__class__ in (
        bytes,
        asyncio.CancelledError,
    )
    assert await body.whole() == b"abcdef"
