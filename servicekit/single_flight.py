"""One computation per key, however many ask, and a caller that gives up cancels only itself.

The last caller to give up cancels the work.
"""

import asyncio
from collections.abc import Awaitable, Callable, Hashable
from typing import Generic, TypeVar

K = TypeVar("K", bound=Hashable)
V = TypeVar("V")


class SingleFlight(Generic[K, V]):
    """Shares results between callers that overlap in time; it is not a cache. One event loop only."""

    def __init__(self) -> None:
        self._flights: dict[K, tuple[asyncio.Task[V], list[int]]] = {}

    async def do(self, key: K, work: Callable[[], Awaitable[V]]) -> V:
        """The result, or the error, of the one run of ``work`` for ``key`` that is under way."""
        flight = self._flights.get(key)
        if flight is None or flight[0].done():
            flight = (asyncio.create_task(self._run(key, work)), [0])
            self._flights[key] = flight
        task, waiters = flight
        waiters[0] += 1
        try:
            return await asyncio.shield(task)
        except asyncio.CancelledError:
            if waiters[0] == 1 and not task.done():
                task.cancel()
                if self._flights.get(key) is flight:
                    del self._flights[key]
            raise
        finally:
            waiters[0] -= 1

    async def _run(self, key: K, work: Callable[[], Awaitable[V]]) -> V:
        try:
            return await work()
        finally:
            flight = self._flights.get(key)
            if flight is not None and flight[0] is asyncio.current_task():
                del self._flights[key]
