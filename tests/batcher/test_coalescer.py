"""The coalescer with a simulated server in virtual time: who gets what, and nothing wedges."""

from __future__ import annotations

import asyncio
from random import Random
from typing import Any

import pytest

from gpu_batcher.api import Reply
from gpu_batcher.contain import Containment
from gpu_batcher.flight import Member, RefusedError, Why
from gpu_batcher.pacing import Bounds
from gpu_batcher.quarantine import Quarantine
from tests.batcher.flown import Server, call, coalescer, fly, own, terms

Answers = list[Reply | BaseException]


async def _all(each: Any, marks: range | list[int], **more: Any) -> Answers:
    work = [each.submit(call(mark), terms(mark, **more)) for mark in marks]
    return await asyncio.gather(*work, return_exceptions=True)


def _bodies(answers: Answers) -> list[bytes]:
    assert all(isinstance(each, Reply) for each in answers), answers
    return [each.body for each in answers if isinstance(each, Reply)]


def _whys(answers: Answers) -> list[Why | None]:
    return [each.why if isinstance(each, RefusedError) else None for each in answers]


def test_a_lone_call_on_an_idle_server_leaves_at_once() -> None:
    async def work() -> float:
        began = asyncio.get_running_loop().time()
        batcher = coalescer(Server())
        for mark in range(5):
            assert (await batcher.submit(call(mark), terms(mark))).body == own(mark)
        return asyncio.get_running_loop().time() - began

    assert fly(work()) == pytest.approx(5 * 0.00202)


def test_what_comes_together_goes_together() -> None:
    server = Server()

    async def work() -> Answers:
        return await _all(coalescer(server), range(50))

    assert _bodies(fly(work())) == [own(mark) for mark in range(50)]
    assert len(server.inferences) == 1
    assert server.useful == [True]


def test_keys_and_terms_keep_calls_apart() -> None:
    server = Server()

    async def work() -> Answers:
        batcher = coalescer(server, Bounds(max_in_flight=8))
        return await asyncio.gather(
            *(batcher.submit(call(n, key="ab"[n % 2]), terms(n, join=n // 4)) for n in range(8)),
            return_exceptions=True,
        )

    assert _bodies(fly(work())) == [own(mark) for mark in range(8)]
    assert sorted(map(sorted, server.inferences)) == [[0, 2], [1, 3], [4, 6], [5, 7]]


def test_64_clients_in_a_closed_loop_share_batches() -> None:
    server = Server()

    async def client(batcher: Any, number: int) -> None:
        for turn in range(50):
            mark = number * 1000 + turn
            assert (await batcher.submit(call(mark), terms(mark))).body == own(mark)

    async def work() -> float:
        batcher = coalescer(server)
        began = asyncio.get_running_loop().time()
        await asyncio.gather(*(client(batcher, number) for number in range(64)))
        return asyncio.get_running_loop().time() - began

    took = fly(work())
    assert server.peak <= 2
    assert 64 * 50 / took > 5 / 0.00202, f"{len(server.inferences)} inferences in {took:.3f} s"


def test_one_poison_call_spoils_nothing() -> None:
    server = Server(poison={17})

    async def work() -> Answers:
        return await _all(coalescer(server), range(64))

    answers = fly(work())
    culprit = answers.pop(17)
    assert _bodies(answers) == [own(mark) for mark in range(64) if mark != 17]
    assert isinstance(culprit, Reply)
    assert (culprit.status, culprit.body) == (500, b"row 17 is poison")
    assert server.inferences[-1] == [17] or [17] in server.inferences
    assert len(server.inferences) <= 14


def test_one_in_a_hundred_costs_a_fifth_at_most() -> None:
    server = Server(poison=set(Random(1).sample(range(20000), 200)))

    async def client(batcher: Any, number: int) -> Answers:
        return [await _one(batcher, mark) for mark in range(number * 100, number * 100 + 100)]

    async def _one(batcher: Any, mark: int) -> Reply | BaseException:
        try:
            return await batcher.submit(call(mark), terms(mark))  # type: ignore[no-any-return]
        except RefusedError as error:
            return error

    async def work() -> list[Answers]:
        batcher = coalescer(server)
        return await asyncio.gather(*(client(batcher, number) for number in range(200)))

    answers = [each for some in fly(work()) for each in some]
    for mark, answer in enumerate(answers):
        assert isinstance(answer, Reply), (mark, answer)
        if mark not in server.poison:
            assert answer.body == own(mark)
        else:
            assert answer.body == b"row %d is poison" % mark
    assert len(server.inferences) <= 0.2 * len(answers)


@pytest.mark.parametrize("status", [404, 429, 502, 503])
def test_what_no_request_can_cause_is_not_divided(status: int) -> None:
    server = Server(moods=[str(status)])

    async def work() -> Answers:
        return await _all(coalescer(server), range(8))

    answers = fly(work())
    assert len(server.inferences) == 1
    assert _whys(answers) == [Why.SERVER] * 8
    for each in answers:
        assert isinstance(each, RefusedError)
        assert (each.status, each.retry_after) == (status, b"7")


def test_a_broken_connection_is_not_divided() -> None:
    server = Server(moods=["broken"])

    async def work() -> Answers:
        return await _all(coalescer(server), range(8))

    answers = fly(work())
    assert len(server.inferences) == 1
    assert all(isinstance(each, RefusedError) and each.cause is not None for each in answers)


@pytest.mark.parametrize("mood", ["short", "bad"])
def test_an_answer_that_cannot_be_divided_is_nobodys(mood: str) -> None:
    server = Server(moods=[mood])

    async def work() -> Answers:
        return await _all(coalescer(server), range(8))

    assert _whys(fly(work())) == [Why.ANSWER] * 8
    assert server.useful == [False]


def test_a_server_that_fails_everything_is_left_alone() -> None:
    server = Server(poison=set(range(100_000)))

    async def work() -> tuple[Answers, int, Answers]:
        batcher = coalescer(server)
        first = await _all(batcher, range(64))
        spent = len(server.inferences)
        second = await _all(batcher, range(64, 128))
        return first, spent, second

    first, spent, second = fly(work())
    assert spent <= 8
    assert Why.SERVER in _whys(first)
    assert _whys(second) == [Why.SERVER] * 64
    assert len(server.inferences) == spent + 1


def test_when_the_budget_is_spent_the_rest_is_told_so() -> None:
    server = Server(poison={5})

    async def work() -> Answers:
        containment: Containment[Member] = Containment(share=0.0, burst=3)
        return await _all(coalescer(server, containment=containment), range(64))

    answers = fly(work())
    assert Why.BUDGET in _whys(answers)
    assert len(server.inferences) == 4
    assert all(
        each.body == own(mark) for mark, each in enumerate(answers) if isinstance(each, Reply)
    )


def test_poison_that_comes_again_goes_alone() -> None:
    server = Server(poison={3})

    async def work() -> tuple[Answers, list[list[int]]]:
        batcher = coalescer(server)
        for _ in range(2):
            await _all(batcher, range(8))
            await _all(batcher, range(8, 12))  # something passes, so the server works
        del server.inferences[:]
        answers = await _all(batcher, range(8))
        return answers, [sorted(each) for each in server.inferences]

    answers, inferences = fly(work())
    assert inferences == [[0, 1, 2, 4, 5, 6, 7], [3]]
    assert isinstance(answers[3], Reply)
    assert answers[3].status == 500


def test_poison_may_be_refused() -> None:
    server = Server(poison={3})

    async def work() -> Answers:
        batcher = coalescer(server, quarantine=Quarantine(refuse=True))
        for _ in range(2):
            await _all(batcher, range(8))
            await _all(batcher, range(8, 12))
        return await _all(batcher, range(8))

    assert _whys(fly(work())) == [None, None, None, Why.QUARANTINED, None, None, None, None]


def test_who_leaves_while_waiting_is_not_sent() -> None:
    server = Server()

    async def work() -> None:
        batcher = coalescer(server, Bounds(max_in_flight=1))
        first = asyncio.create_task(batcher.submit(call(0), terms(0)))
        await asyncio.sleep(0.001)
        rest = [asyncio.create_task(batcher.submit(call(n), terms(n))) for n in range(1, 5)]
        await asyncio.sleep(0)
        rest[1].cancel()
        done = await asyncio.gather(first, *rest, return_exceptions=True)
        assert isinstance(done[2], asyncio.CancelledError)
        assert batcher.idle

    fly(work())
    assert server.inferences == [[0], [1, 3, 4]]


def test_a_batch_that_all_have_left_is_given_up() -> None:
    server = Server(per_call=60.0)

    async def work() -> float:
        batcher = coalescer(server, Bounds(max_in_flight=1))
        some = [asyncio.create_task(batcher.submit(call(n), terms(n))) for n in range(4)]
        await asyncio.sleep(1.0)
        for each in some:
            each.cancel()
        await asyncio.gather(*some, return_exceptions=True)
        await asyncio.sleep(0.001)
        assert batcher.idle
        assert batcher.counts.cancelled == 1
        server.per_call = 0.002
        began = asyncio.get_running_loop().time()
        assert (await batcher.submit(call(9), terms(9))).body == own(9)
        return asyncio.get_running_loop().time() - began

    assert fly(work()) < 0.01
    assert server.running == 0


def test_a_batch_cancelled_before_it_began_gives_its_slot_back() -> None:
    server = Server()

    async def work() -> None:
        batcher = coalescer(server, Bounds(max_in_flight=1))
        task = asyncio.create_task(batcher.submit(call(0), terms(0)))
        for _ in range(2):  # it submits; the pump launches it
            await asyncio.sleep(0)
        assert batcher._flights
        task.cancel()  # its flight's task has not run yet
        await asyncio.gather(task, return_exceptions=True)
        assert (await batcher.submit(call(1), terms(1))).body == own(1)

    fly(work())
    assert server.inferences in ([[1]], [[0], [1]])


def test_deadlines_that_pass_in_the_queue() -> None:
    server = Server(per_call=1.0)

    async def work() -> Answers:
        batcher = coalescer(server, Bounds(max_in_flight=1))
        first = asyncio.create_task(batcher.submit(call(0), terms(0)))
        await asyncio.sleep(0.1)
        now = asyncio.get_running_loop().time()
        second = batcher.submit(call(1), terms(1, deadline=now + 0.2))
        third = batcher.submit(call(2), terms(2, deadline=now + 5.0))
        return await asyncio.gather(first, second, third, return_exceptions=True)

    assert _whys(fly(work())) == [None, Why.EXPIRED, None]
    assert server.inferences == [[0], [2]]


def test_a_full_queue_refuses_the_worst() -> None:
    server = Server(per_call=1.0)

    async def work() -> tuple[Answers, Answers]:
        batcher = coalescer(server, Bounds(max_in_flight=1, max_waiting=4))
        first = asyncio.create_task(batcher.submit(call(0), terms(0)))
        await asyncio.sleep(0.1)
        low = asyncio.create_task(_all(batcher, range(1, 6), priority=3))
        await asyncio.sleep(0)
        await asyncio.sleep(0)
        high = await _all(batcher, range(6, 8), priority=0)
        await first
        return await low, high

    low, high = fly(work())
    assert _whys(high) == [None, None]
    assert _whys(low).count(Why.QUEUE_FULL) == 3


def test_a_batch_that_does_not_fit_is_halved() -> None:
    server = Server(most=20)

    async def work() -> Answers:
        return await _all(coalescer(server), range(64))

    assert _bodies(fly(work())) == [own(mark) for mark in range(64)]


def test_a_call_that_does_not_fit_alone_is_refused() -> None:
    async def work() -> Answers:
        return await _all(coalescer(Server(most=0)), range(3))

    assert _whys(fly(work())) == [Why.SERVER] * 3


def test_a_fault_of_ours_costs_its_culprit_only(caplog: pytest.LogCaptureFixture) -> None:
    server = Server(bugs={3, 17})

    async def work() -> tuple[Answers, list[Answers]]:
        batcher = coalescer(server, Bounds(max_in_flight=1))
        first = await _all(batcher, range(64))
        # Its strikes count like any other's, so it goes alone in the end.
        again = [await _all(batcher, range(8)) for _ in range(3)]
        return first, again

    first, again = fly(work())
    for mark, answer in enumerate(first):
        if mark in server.bugs:
            assert isinstance(answer, RefusedError)
            assert (answer.why, answer.status) == (Why.SERVER, 0)
        else:
            assert isinstance(answer, Reply)
            assert answer.body == own(mark)
    assert caplog.text.count("inside the gateway") == 1 + 3
    for answers in again:
        assert _whys(answers).count(Why.SERVER) == 1
    assert sorted(map(sorted, server.inferences[-2:])) == [[0, 1, 2, 4, 5, 6, 7], [3]]


def test_a_fault_of_a_moment_costs_nobody() -> None:
    server = Server(moods=["bug"])

    async def work() -> Answers:
        return await _all(coalescer(server), range(4))

    assert _bodies(fly(work())) == [own(mark) for mark in range(4)]


def test_a_fault_that_everybody_trips_is_not_divided_for_long() -> None:
    server = Server(bugs=set(range(64)))

    async def work() -> Answers:
        return await _all(coalescer(server), range(64))

    assert _whys(fly(work())) == [Why.SERVER] * 64
    assert len(server.inferences) <= 8


def test_closing_refuses_everybody_and_closes_the_runner() -> None:
    server = Server(per_call=60.0)

    async def work() -> tuple[Answers, Answers]:
        batcher = coalescer(server, Bounds(max_in_flight=1, max_rows=2))
        some = asyncio.create_task(_all(batcher, range(6)))
        await asyncio.sleep(0.1)
        await batcher.close()
        return await some, await _all(batcher, range(2))

    for answers in fly(work()):
        assert set(_whys(answers)) == {Why.CLOSED}
    assert server.closed
    assert server.running == 0
