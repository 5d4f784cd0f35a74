"""Whose turn it is to work.

Each kind of job has its own bound, and all together have one. The more urgent goes first: a person who waits
for a restore, then a workspace that is stopping, then the periodic backups. What has waited for half of its
deadline goes before all that has not, so that restores cannot keep the backups of stopping workspaces off;
periodic ones come again anyway and never overtake. A deadline that passes ends the waiting: nothing ever
runs beyond the bounds.
"""

import asyncio
import contextlib
import itertools
from collections import Counter
from collections.abc import AsyncIterator, Iterable, Mapping
from dataclasses import dataclass, field
from typing import Literal

from servicekit.clock import Clock, SystemClock

Pool = Literal["restore", "final_backup", "periodic_backup"]
_URGENCY: Mapping[Pool, int] = {"restore": 0, "final_backup": 1, "periodic_backup": 2}


@dataclass(frozen=True, slots=True)
class Waiter:
    """One job in the queue."""

    pool: Pool
    number: int
    overdue_s: float
    turn: "asyncio.Future[None]" = field(compare=False)


def by_urgency(waiters: Iterable[Waiter], now_s: float) -> list[Waiter]:
    """The order in which turns are given. Pure."""

    def rank(waiter: Waiter) -> tuple[int, int]:
        overdue = waiter.pool != "periodic_backup" and now_s >= waiter.overdue_s
        return (-1 if overdue else _URGENCY[waiter.pool], waiter.number)

    return sorted(waiters, key=rank)


class Turns:
    """``slots`` bounds each kind, ``total`` all of them. Belongs to one event loop."""

    def __init__(
        self, slots: Mapping[Pool, int], total: int | None = None, *, clock: Clock = SystemClock()
    ) -> None:
        self._slots = slots
        self._total = sum(slots.values()) if total is None else total
        self._clock = clock
        self._numbers = itertools.count()
        self._waiting: list[Waiter] = []
        self._running: Counter[Pool] = Counter()

    @contextlib.asynccontextmanager
    async def turn(self, pool: Pool, deadline_s: float) -> AsyncIterator[None]:
        """Runs the block when it is its turn. Raises TimeoutError when that did not come in time."""
        await self._wait(pool, deadline_s)
        try:
            yield
        finally:
            self._running[pool] -= 1
            self._give()

    async def _wait(self, pool: Pool, deadline_s: float) -> None:
        turn = asyncio.get_running_loop().create_future()
        overdue_s = self._clock.monotonic() + deadline_s / 2
        waiter = Waiter(pool, next(self._numbers), overdue_s, turn)
        self._waiting.append(waiter)
        self._give()
        try:
            async with asyncio.timeout(deadline_s):
                await turn
        except BaseException:
            if waiter in self._waiting:
                self._waiting.remove(waiter)
            elif turn.done() and not turn.cancelled():  # it came, and too late
                self._running[pool] -= 1
                self._give()
            raise

    def _give(self) -> None:
        for waiter in by_urgency(self._waiting, self._clock.monotonic()):
            if self._running.total() >= self._total:
                return
            if self._running[waiter.pool] < self._slots[waiter.pool]:
                self._waiting.remove(waiter)
                self._running[waiter.pool] += 1
                waiter.turn.set_result(None)
