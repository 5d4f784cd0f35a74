import asyncio
import contextlib

import pytest
from hypothesis import given
from hypothesis import strategies as st

from content.turns import Pool, Turns, Waiter, by_urgency
from servicekit.testing.fake_clock import FakeClock

_SLOTS: dict[Pool, int] = {"restore": 2, "final_backup": 1, "periodic_backup": 1}
_POOLS = st.sampled_from(list(_SLOTS))


def _waiters(pools: list[Pool], overdue: list[bool]) -> list[Waiter]:
    return [
        Waiter(pool, number, 0.0 if late else 100.0, None)  # type: ignore[arg-type]
        for number, (pool, late) in enumerate(zip(pools, overdue, strict=True))
    ]


def test_a_person_goes_before_a_stop_and_a_stop_before_a_periodic_backup() -> None:
    waiters = _waiters(["periodic_backup", "final_backup", "restore", "restore"], [False] * 4)
    assert [waiter.number for waiter in by_urgency(waiters, 50)] == [2, 3, 1, 0]


def test_a_stop_that_has_waited_long_goes_before_newer_restores_and_a_periodic_backup_never_does() -> None:
    waiters = _waiters(["periodic_backup", "restore", "final_backup"], [True, False, True])
    assert [waiter.number for waiter in by_urgency(waiters, 50)] == [2, 1, 0]


@given(st.lists(st.tuples(_POOLS, st.booleans())))
def test_turns_within_one_kind_are_given_in_the_order_of_asking(rows) -> None:
    order = by_urgency(_waiters([pool for pool, _ in rows], [False] * len(rows)), 50)
    for pool in _SLOTS:
        numbers = [waiter.number for waiter in order if waiter.pool == pool]
        assert numbers == sorted(numbers)


@given(st.lists(st.tuples(_POOLS, st.sampled_from(["done", "cancelled"])), max_size=25), st.integers(1, 5))
def test_no_bound_is_ever_passed_and_everybody_gets_a_turn(rows, total: int) -> None:
    async def main() -> None:
        turns = Turns(_SLOTS, total)
        running: list[Pool] = []
        turned = 0

        async def job(pool: Pool) -> None:
            nonlocal turned
            async with turns.turn(pool, 60):
                running.append(pool)
                turned += 1
                assert len(running) <= total
                assert running.count(pool) <= _SLOTS[pool]
                await asyncio.sleep(0)
                running.remove(pool)

        tasks = [(asyncio.create_task(job(pool)), fate) for pool, fate in rows]
        await asyncio.sleep(0)
        for task, fate in tasks:
            if fate == "cancelled" and not running:
                task.cancel()
        await asyncio.gather(*(task for task, _ in tasks), return_exceptions=True)
        async with contextlib.AsyncExitStack() as stack:  # nothing is lost of the bounds
            for pool in list(_SLOTS)[:total]:
                await stack.enter_async_context(turns.turn(pool, 60))

    asyncio.run(main())


async def test_a_deadline_refuses_and_never_runs_anyway() -> None:
    turns = Turns(_SLOTS, 1, clock=FakeClock())
    ran = []
    async with turns.turn("restore", 60):
        with pytest.raises(TimeoutError):
            async with turns.turn("final_backup", 0.01):
                ran.append("beyond the bound")
    assert ran == []
    async with turns.turn("final_backup", 1):
        ran.append("in turn")
    assert ran == ["in turn"]
