"""Byte-rate limits that can be cancelled, changed while running, and nested (job under node).

A bucket may go into debt: a caller is let through once the balance is positive and pays the whole amount,
so any chunk size works, the long-run rate is exact, and nobody starves behind a larger request.
"""

import asyncio
import contextlib
from typing import Protocol

from servicekit.clock import Clock, SystemClock

_ROUNDING_BYTES = 0.5
"""A debt too small to sleep for: the clock's resolution times the rate may never quite pay it."""


class Bucket(Protocol):
    """Whatever bytes must be asked for before they move."""

    async def acquire(self, size_bytes: int) -> None:
        """Returns when ``size_bytes`` may move."""


class Throttle:
    """A token bucket in bytes per second; ``None`` means unlimited, zero or less is a ValueError.

    Waiters are served in the order they came. ``parent`` is charged after this one, so that a job's own
    limit does not occupy the node's. Belongs to one event loop; safe for concurrent tasks on it.
    """

    def __init__(
        self,
        rate_bytes_s: float | None = None,
        *,
        burst_s: float = 0.05,
        parent: "Throttle | None" = None,
        clock: Clock = SystemClock(),
    ) -> None:
        self._rate_bytes_s = _checked(rate_bytes_s)
        self._burst_s = burst_s
        self._parent = parent
        self._clock = clock
        self._balance_bytes = 0.0
        self._updated_s = clock.monotonic()
        self._turn = asyncio.Lock()
        self._changed = asyncio.Event()
        self.moved_bytes = 0
        """All that was let through so far."""

    @property
    def rate_bytes_s(self) -> float | None:
        return self._rate_bytes_s

    def set_rate(self, rate_bytes_s: float | None) -> None:
        """Takes effect at once, also for whoever is waiting."""
        self._refill()
        self._rate_bytes_s = _checked(rate_bytes_s)
        if rate_bytes_s is None:
            self._balance_bytes = 0.0
        self._changed.set()

    async def acquire(self, size_bytes: int) -> None:
        """Returns when ``size_bytes`` may move. A cancelled wait costs nothing."""
        paid_bytes = await self._pay(size_bytes)
        if self._parent is not None:
            try:
                await self._parent.acquire(size_bytes)
            except BaseException:
                self._balance_bytes += paid_bytes
                self._changed.set()
                raise
        self.moved_bytes += size_bytes

    async def _pay(self, size_bytes: int) -> int:
        paid_bytes = 0
        if self._rate_bytes_s is not None:
            async with self._turn:
                await self._wait_until_positive()
                if self._rate_bytes_s is not None:
                    paid_bytes = size_bytes
                    self._balance_bytes -= paid_bytes
        return paid_bytes

    async def _wait_until_positive(self) -> None:
        while self._rate_bytes_s is not None:
            self._refill()
            if self._balance_bytes > -_ROUNDING_BYTES:
                return
            self._changed.clear()
            sleeping = asyncio.create_task(self._clock.sleep(-self._balance_bytes / self._rate_bytes_s))
            changing = asyncio.create_task(self._changed.wait())
            try:
                await asyncio.wait({sleeping, changing}, return_when=asyncio.FIRST_COMPLETED)
            finally:
                for task in (sleeping, changing):
                    task.cancel()
                    with contextlib.suppress(asyncio.CancelledError):
                        await task

    def _refill(self) -> None:
        now_s = self._clock.monotonic()
        if self._rate_bytes_s is not None:
            earned = (now_s - self._updated_s) * self._rate_bytes_s
            self._balance_bytes = min(self._rate_bytes_s * self._burst_s, self._balance_bytes + earned)
        self._updated_s = now_s


def _checked(rate_bytes_s: float | None) -> float | None:
    if rate_bytes_s is not None and rate_bytes_s <= 0:
        raise ValueError(f"a rate of {rate_bytes_s} bytes per second moves nothing; None means unlimited")
    return rate_bytes_s
