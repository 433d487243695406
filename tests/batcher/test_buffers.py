"""The pool: every buffer has one user, nobody waits for nothing, nothing is lost unseen."""

from __future__ import annotations

import asyncio
import gc
import logging
import weakref
from dataclasses import dataclass
from random import Random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gpu_batcher.buffers import Lease, LeaseError, Pool, PoolClosedError


@dataclass(eq=False)
class Counted:
    """A buffer that knows how often it was closed."""

    size: int = 100
    staging: int = 11
    closed: int = 0

    def close(self) -> None:
        self.closed += 1


def pool_of(count: int) -> tuple[Pool[Counted], list[Counted]]:
    buffers = [Counted() for _ in range(count)]
    return Pool(buffers), buffers


async def rounds(count: int = 5) -> None:
    for _ in range(count):
        await asyncio.sleep(0)


async def test_each_buffer_has_one_user() -> None:
    pool, buffers = pool_of(2)
    first, second = await pool.lease(), await pool.lease()
    assert {first.buffer, second.buffer} == set(buffers)
    assert pool.try_lease() is None
    assert (pool.bytes, pool.in_use, pool.high_water) == (222, 2, 2)
    first.release()
    with await pool.lease() as buffer:
        assert buffer is not second.buffer
    second.release()
    assert (pool.in_use, pool.high_water, pool.waiting, pool.lost) == (0, 2, 0, 0)


async def test_a_lease_is_returned_once() -> None:
    pool, _ = pool_of(1)
    lease = await pool.lease()
    lease.release()
    with pytest.raises(LeaseError):
        lease.release()
    with pytest.raises(LeaseError):
        lease.buffer  # noqa: B018
    assert pool.in_use == 0


async def test_waiters_are_served_in_order() -> None:
    pool, _ = pool_of(1)
    lease = await pool.lease()
    served: list[int] = []

    async def wait(number: int) -> None:
        with await pool.lease():
            served.append(number)

    tasks = [asyncio.create_task(wait(number)) for number in range(5)]
    await rounds()
    assert pool.waiting == 5
    assert served == []
    lease.release()
    # Handed over at once: who comes now does not overtake those that wait.
    assert pool.try_lease() is None
    await asyncio.gather(*tasks)
    assert served == [0, 1, 2, 3, 4]


async def test_a_cancelled_waiter_leaves_no_trace() -> None:
    pool, _ = pool_of(1)
    lease = await pool.lease()
    tasks = [asyncio.create_task(pool.lease()) for _ in range(3)]
    await rounds()
    tasks[1].cancel()
    await rounds()
    assert pool.waiting == 2
    lease.release()
    (await tasks[0]).release()
    (await tasks[2]).release()
    assert (pool.in_use, pool.waiting) == (0, 0)


async def test_a_lease_granted_in_the_moment_of_cancellation_goes_on() -> None:
    pool, _ = pool_of(1)
    lease = await pool.lease()
    first, second = (asyncio.create_task(pool.lease()) for _ in range(2))
    await rounds()
    lease.release()
    first.cancel()  # It has been granted, and has not run since.
    with pytest.raises(asyncio.CancelledError):
        await first
    (await second).release()
    assert (pool.in_use, pool.lost) == (0, 0)


async def test_a_waiter_cancelled_just_before_a_return_is_passed_over() -> None:
    pool, _ = pool_of(1)
    lease = await pool.lease()
    first, second = (asyncio.create_task(pool.lease()) for _ in range(2))
    await rounds()
    first.cancel()
    lease.release()
    with pytest.raises(asyncio.CancelledError):
        await first
    (await second).release()
    assert (pool.in_use, pool.waiting) == (0, 0)


async def test_a_lost_lease_is_reported_and_its_buffer_not_lent_again(
    caplog: pytest.LogCaptureFixture,
) -> None:
    told = []
    pool = Pool([Counted(), Counted()], lambda: told.append("lost"))
    kept = await pool.lease()
    with caplog.at_level(logging.ERROR, "tailrace"):
        lease: Lease[Counted] | None = await pool.lease()
        del lease
        gc.collect()
    assert "never returned" in caplog.text
    assert told == ["lost"]
    assert (pool.lost, pool.in_use) == (1, 1)
    assert pool.try_lease() is None
    waiter = asyncio.create_task(pool.lease())
    await rounds()
    del kept
    gc.collect()
    # Nothing is left that could ever come back.
    with pytest.raises(PoolClosedError, match="every buffer is lost"):
        await waiter
    with pytest.raises(PoolClosedError):
        pool.try_lease()


async def test_closing_refuses_waiters_and_closes_buffers_as_they_return() -> None:
    pool, buffers = pool_of(2)
    lease, other = await pool.lease(), await pool.lease()
    waiter = asyncio.create_task(pool.lease())
    await rounds()
    other_buffer = other.buffer
    other.release()
    granted = await waiter
    assert granted.buffer is other_buffer
    second = asyncio.create_task(pool.lease())
    await rounds()
    pool.close()
    with pytest.raises(PoolClosedError, match="closed"):
        await second
    with pytest.raises(PoolClosedError):
        await pool.lease()
    assert [each.closed for each in buffers] == [0, 0]
    lease.release()
    granted.release()
    pool.close()
    assert [each.closed for each in buffers] == [1, 1]


async def test_a_lost_buffer_is_not_freed() -> None:
    """A model server may have its memory open, and CUDA says nothing good of freeing it then."""
    pool = Pool([Counted()])
    seen = weakref.ref((await pool.lease()).buffer)
    gc.collect()
    pool.close()
    assert pool.lost == 1
    kept = seen()
    assert kept is not None
    assert kept.closed == 0


async def test_a_buffer_that_cannot_be_closed_holds_up_nobody(
    caplog: pytest.LogCaptureFixture,
) -> None:
    class Broken(Counted):
        def close(self) -> None:
            raise RuntimeError("cudaErrorIllegalAddress")

    last = Counted()
    pool = Pool([Counted(), Broken(), last])
    lease, returned = await pool.lease(), await pool.lease()
    pool.close()
    assert last.closed == 1
    returned.release()
    lease.release()
    assert caplog.text.count("could not be closed") == 1
    assert pool.in_use == 0
    pool = Pool([Broken()])
    lease = await pool.lease()
    waiter = asyncio.create_task(pool.lease())
    await rounds()
    lease.release()
    pool.close()
    (await waiter).release()
    assert caplog.text.count("could not be closed") == 2


def test_an_empty_pool_would_never_serve() -> None:
    with pytest.raises(ValueError, match="at least one"):
        Pool([])


@given(st.integers(0, 2**32), st.integers(1, 4))
def test_whatever_happens_every_buffer_comes_home(seed: int, count: int) -> None:
    """Tasks that lease, hold, return and are cancelled, in any order of steps."""
    rng = Random(seed)
    pool, buffers = pool_of(count)
    users: dict[Counted, int] = dict.fromkeys(buffers, 0)

    async def use() -> None:
        with await pool.lease() as buffer:
            users[buffer] += 1
            assert users[buffer] == 1
            assert pool.in_use <= count
            try:
                await rounds(rng.randint(0, 3))
            finally:
                users[buffer] -= 1

    async def scenario() -> None:
        tasks: list[asyncio.Task[None]] = []
        for _ in range(60):
            step = rng.random()
            if step < 0.5:
                tasks.append(asyncio.create_task(use()))
            elif step < 0.75 and tasks:
                rng.choice(tasks).cancel()
            else:
                await asyncio.sleep(0)
        for result in await asyncio.gather(*tasks, return_exceptions=True):
            assert result is None or isinstance(result, asyncio.CancelledError)

    asyncio.run(scenario())
    assert (pool.in_use, pool.waiting, pool.lost) == (0, 0, 0)
    assert pool.high_water <= count
    assert pool.try_lease() is not None
