"""A request body that two attempts read at once stays whole, whatever all bodies together hold."""

from __future__ import annotations

from typing import TYPE_CHECKING

from gateway.body import ReplayStore, RequestBody

if TYPE_CHECKING:
    from filters.api import Headers


class Source:
    def pause(self) -> None: ...
    def resume(self) -> None: ...
    def body_wanted(self) -> None: ...


class Sink:
    def body_data(self, data: bytes) -> None: ...
    def body_end(self, trailers: Headers) -> None: ...
    def body_abort(self) -> None: ...


def test_a_body_that_is_held_outlives_the_limit_of_all_bodies() -> None:
    store = ReplayStore(100, 10)
    body = RequestBody(4, store, Source(), b"data")
    assert body.hold()
    other = RequestBody(8, store, Source(), b"too much")
    assert body.attach(Sink()) == body.attach(Sink()) == [b"data"]
    assert body.replayable
    assert body.peek() == b"data"
    body.release()
    other.release()
    assert store.held == 0


def test_without_that_it_would_be_given_up_when_the_first_attempt_takes_it() -> None:
    store = ReplayStore(100, 10)
    body = RequestBody(4, store, Source(), b"data")
    RequestBody(8, store, Source(), b"too much")
    assert body.attach(Sink()) == [b"data"]
    assert not body.hold()
    assert body.attach(Sink()) == []


def test_a_body_that_is_still_coming_cannot_be_held() -> None:
    body = RequestBody(4, ReplayStore(100, 100), Source())
    body.feed(b"da")
    assert not body.hold()
    body.feed(b"ta")
    body.end([])
    assert body.hold()


def test_a_loser_that_goes_does_not_take_the_body_from_the_winner() -> None:
    body = RequestBody(4, ReplayStore(100, 100), Source(), b"data")
    first, second = Sink(), Sink()
    assert body.hold()
    body.attach(first)
    body.attach(second)
    body.detach(first)
    body.detach(second)
    assert body.attach(Sink()) == [b"data"]
