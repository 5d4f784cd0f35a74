import asyncio

import pytest

from servicekit.single_flight import SingleFlight
from servicekit.testing.fake_clock import settle


class _Work:
    def __init__(self) -> None:
        self.started = 0
        self.cancelled = 0
        self.go = asyncio.Event()

    async def __call__(self) -> int:
        self.started += 1
        try:
            await self.go.wait()
        except asyncio.CancelledError:
            self.cancelled += 1
            raise
        return self.started


async def test_callers_that_overlap_share_one_run() -> None:
    flights, work = SingleFlight[str, int](), _Work()
    callers = [asyncio.create_task(flights.do("key", work)) for _ in range(5)]
    await settle()
    work.go.set()
    assert await asyncio.gather(*callers) == [1] * 5
    assert await flights.do("key", work) == 2, "a result is shared, not kept"


async def test_keys_do_not_share() -> None:
    flights, work = SingleFlight[str, int](), _Work()
    work.go.set()
    await asyncio.gather(flights.do("a", work), flights.do("b", work))
    assert work.started == 2


async def test_an_error_reaches_every_caller_and_is_forgotten() -> None:
    flights = SingleFlight[str, int]()

    async def fail() -> int:
        await asyncio.sleep(0)
        raise LookupError("gone")

    results = await asyncio.gather(*(flights.do("key", fail) for _ in range(3)), return_exceptions=True)
    assert [str(result) for result in results] == ["gone"] * 3
    work = _Work()
    work.go.set()
    assert await flights.do("key", work) == 1


async def test_who_gives_up_cancels_only_itself() -> None:
    flights, work = SingleFlight[str, int](), _Work()
    first, second = (asyncio.create_task(flights.do("key", work)) for _ in range(2))
    await settle()
    first.cancel()
    with pytest.raises(asyncio.CancelledError):
        await first
    work.go.set()
    assert await second == 1
    assert work.cancelled == 0


async def test_the_last_to_give_up_cancels_the_work_and_the_next_starts_anew() -> None:
    flights, work = SingleFlight[str, int](), _Work()
    callers = [asyncio.create_task(flights.do("key", work)) for _ in range(2)]
    await settle()
    for caller in callers:
        caller.cancel()
    await asyncio.gather(*callers, return_exceptions=True)
    await settle()
    assert (work.started, work.cancelled) == (1, 1)
    work.go.set()
    assert await flights.do("key", work) == 2
