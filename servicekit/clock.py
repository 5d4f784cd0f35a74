"""Time as something that is passed in, so that rules about time can be tested without waiting."""

import asyncio
import time
from typing import Protocol


class Clock(Protocol):
    """Where a rule reads the time. Safe for concurrent use."""

    def monotonic(self) -> float:
        """Seconds that never go backwards; differences only."""

    def time(self) -> float:
        """Seconds since the epoch."""

    async def sleep(self, duration_s: float) -> None:
        """Returns after ``duration_s`` of this clock; may be cancelled."""


class SystemClock:
    def monotonic(self) -> float:
        return time.monotonic()

    def time(self) -> float:
        return time.time()

    async def sleep(self, duration_s: float) -> None:
        await asyncio.sleep(duration_s)


_: Clock = SystemClock()
