"""A Clock that moves only when a test moves it."""

import asyncio

from servicekit.clock import Clock


class FakeClock:
    """Sleepers wake, in the order of their time, when `advance` has passed it."""

    def __init__(self, now_s: float = 1_700_000_000.0) -> None:
        self._now_s = now_s
        self._sleepers: list[tuple[float, asyncio.Event]] = []
        self.slept_s: list[float] = []

    def monotonic(self) -> float:
        return self._now_s

    def time(self) -> float:
        return self._now_s

    async def sleep(self, duration_s: float) -> None:
        self.slept_s.append(duration_s)
        sleeper = (self._now_s + duration_s, asyncio.Event())
        self._sleepers.append(sleeper)
        try:
            await sleeper[1].wait()
        finally:
            self._sleepers.remove(sleeper)

    @property
    def sleepers(self) -> int:
        return len(self._sleepers)

    async def advance(self, duration_s: float) -> None:
        """Moves time on, waking each sleeper at its own moment and letting it run before the next."""
        end_s = self._now_s + duration_s
        await settle()
        while due := [sleeper for sleeper in self._sleepers if sleeper[0] <= end_s]:
            at_s, event = min(due, key=lambda sleeper: sleeper[0])
            self._now_s = max(self._now_s, at_s)
            event.set()
            await settle()
        self._now_s = end_s


async def settle() -> None:
    """Lets every task run until all of them wait for something."""
    for _ in range(20):
        await asyncio.sleep(0)


class NoWaiting(FakeClock):
    """Sleeps pass at once, in the clock's own time."""

    async def sleep(self, duration_s: float) -> None:
        self.slept_s.append(duration_s)
        self._now_s += duration_s
        await asyncio.sleep(0)


_: tuple[Clock, ...] = (FakeClock(), NoWaiting())
