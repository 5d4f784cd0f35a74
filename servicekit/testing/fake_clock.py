"""A clock that moves only when told."""

import asyncio
import heapq
import itertools

from servicekit.clock import Clock


class FakeClock:
    """Starts at ``now_s``; `advance` wakes, in order, every sleeper whose time has come."""

    def __init__(self, now_s: float = 1_000_000.0) -> None:
        self._now_s = now_s
        self._order = itertools.count()
        self._sleepers: list[tuple[float, int, asyncio.Future[None]]] = []

    def monotonic(self) -> float:
        return self._now_s

    def time(self) -> float:
        return self._now_s

    async def sleep(self, duration_s: float) -> None:
        if duration_s <= 0:
            await asyncio.sleep(0)
            return
        woken: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        heapq.heappush(self._sleepers, (self._now_s + duration_s, next(self._order), woken))
        await woken

    async def advance(self, duration_s: float) -> None:
        """Moves on by ``duration_s`` and lets every woken task run until it waits again."""
        target_s = self._now_s + duration_s
        await _settle()
        while self._sleepers and self._sleepers[0][0] <= target_s:
            self._now_s, _, woken = heapq.heappop(self._sleepers)
            if not woken.done():
                woken.set_result(None)
            await _settle()
        self._now_s = target_s


async def _settle() -> None:
    for _ in range(20):
        await asyncio.sleep(0)


_: Clock = FakeClock()
