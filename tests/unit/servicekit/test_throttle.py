import asyncio

import pytest
from hypothesis import given
from hypothesis import strategies as st

from servicekit.testing.fake_clock import FakeClock, NoWaiting, settle
from servicekit.throttle import Throttle


@given(st.lists(st.integers(1, 100_000), min_size=1, max_size=30), st.integers(1000, 1_000_000))
def test_the_long_run_rate_is_exact_for_any_sizes(sizes: list[int], rate_bytes_s: int) -> None:
    async def run() -> float:
        clock = NoWaiting(0.0)
        throttle = Throttle(rate_bytes_s, clock=clock)
        for size in sizes:
            await throttle.acquire(size)
        return clock.monotonic()

    assert asyncio.run(run()) == pytest.approx(sum(sizes[:-1]) / rate_bytes_s, abs=1e-6)


async def test_without_a_rate_nothing_waits() -> None:
    clock = FakeClock()
    for _ in range(100):
        await Throttle(None, clock=clock).acquire(1 << 30)
    assert clock.slept_s == []


@pytest.mark.parametrize("rate", [0, -1])
def test_a_rate_that_moves_nothing_is_refused(rate: float) -> None:
    with pytest.raises(ValueError, match="None means unlimited"):
        Throttle(rate)
    with pytest.raises(ValueError, match="None means unlimited"):
        Throttle(1).set_rate(rate)


async def test_waiters_go_in_the_order_they_came() -> None:
    clock, order = FakeClock(), []
    throttle = Throttle(100, clock=clock)
    await throttle.acquire(100)

    async def wait(number: int) -> None:
        await throttle.acquire(100)
        order.append(number)

    async with asyncio.TaskGroup() as group:
        for number in range(3):
            group.create_task(wait(number))
            await settle()
        await clock.advance(1.0)
        assert order == [0]
        await clock.advance(5.0)
    assert order == [0, 1, 2]


async def test_a_higher_rate_helps_who_is_waiting() -> None:
    clock = FakeClock()
    throttle = Throttle(1, clock=clock)
    await throttle.acquire(1000)
    waiting = asyncio.create_task(throttle.acquire(1))
    await clock.advance(10)
    assert not waiting.done()
    throttle.set_rate(1000)
    await clock.advance(1)
    await waiting


async def test_lifting_the_limit_frees_who_is_waiting() -> None:
    clock = FakeClock()
    throttle = Throttle(1, clock=clock)
    await throttle.acquire(1000)
    waiting = asyncio.create_task(throttle.acquire(1))
    await settle()
    throttle.set_rate(None)
    await waiting


async def test_a_cancelled_wait_costs_nothing() -> None:
    clock = FakeClock()
    throttle = Throttle(100, clock=clock)
    await throttle.acquire(100)
    waiting = asyncio.create_task(throttle.acquire(1_000_000))
    await settle()
    waiting.cancel()
    with pytest.raises(asyncio.CancelledError):
        await waiting
    assert clock.sleepers == 0
    next_one = asyncio.create_task(throttle.acquire(1))
    await clock.advance(1.0)
    await next_one


async def test_a_wait_cancelled_at_the_parent_is_given_back_by_the_child() -> None:
    clock = FakeClock()
    node = Throttle(1, clock=clock)
    job = Throttle(100, parent=node, clock=clock)
    await node.acquire(1000)
    waiting = asyncio.create_task(job.acquire(1_000_000))
    await settle()
    waiting.cancel()
    with pytest.raises(asyncio.CancelledError):
        await waiting
    node.set_rate(None)
    await job.acquire(1)
    assert clock.sleepers == 0


async def test_jobs_share_the_rate_of_their_node() -> None:
    clock = FakeClock(0.0)
    node = Throttle(100, clock=clock)
    jobs = [Throttle(None, parent=node, clock=clock), Throttle(1000, parent=node, clock=clock)]
    done: list[float] = []

    async def work(job: Throttle) -> None:
        for _ in range(5):
            await job.acquire(100)
        done.append(clock.monotonic())

    async with asyncio.TaskGroup() as group:
        for job in jobs:
            group.create_task(work(job))
        await clock.advance(20)
    assert max(done) == pytest.approx(9.0, abs=0.2)


async def test_idle_time_earns_no_more_than_the_burst() -> None:
    clock = FakeClock(0.0)
    throttle = Throttle(100, burst_s=0.05, clock=clock)
    await clock.advance(3600)
    await throttle.acquire(105)
    second = asyncio.create_task(throttle.acquire(1))
    await clock.advance(0.99)
    assert not second.done()
    await clock.advance(0.02)
    await second
