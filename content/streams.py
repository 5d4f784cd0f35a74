"""A span of an object as a blocking byte source for one thread, read ahead by ranged requests."""

import asyncio
import concurrent.futures
from collections import deque
from collections.abc import Callable
from typing import Self, TypeVar

from content import transfer
from content.archive import crc32
from content.objects.base import ObjectSource, Span
from servicekit.threads import to_its_end
from servicekit.throttle import Bucket, Throttle

T = TypeVar("T")
_STEP_BYTES = 4 << 20
_AHEAD = 2


class SpanStream:
    """Holds at most ``_AHEAD + 2`` steps of 4 MiB. An async context manager; `consume` runs the thread.

    Each step is asked for at ``pace`` before the thread gets it. What `read` gave is overwritten after the
    next call of it.
    """

    def __init__(self, store: ObjectSource, key: str, span: Span, *, pace: Bucket | None = None) -> None:
        self._store = store
        self._key = key
        self._pace = pace or Throttle()
        self._next = span.start
        self._stop = span.start + span.length
        self._loop = asyncio.get_running_loop()
        self._ahead: deque[asyncio.Task[memoryview]] = deque()
        self._free: list[memoryview] = []
        self._step = memoryview(b"")
        self._current = self._step
        self._closed = False
        self._refilling: concurrent.futures.Future[memoryview] | None = None
        self.crc32 = 0
        """Of all bytes that were read."""

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_: object) -> None:
        self._closed = True
        for task in self._ahead:
            task.cancel()
        if self._ahead:
            await asyncio.wait(self._ahead)

    async def consume(self, work: Callable[[], T]) -> T:
        """Runs ``work`` in a thread to its end; a cancellation makes its next read fail."""
        return await to_its_end(self._loop.run_in_executor(None, work), interrupt=self._interrupt)

    def _interrupt(self) -> None:
        self._closed = True
        if self._refilling is not None:
            self._refilling.cancel()

    def read(self, size_bytes: int) -> bytes | memoryview:
        """As `content.archive.reader.Source`; raises what the store raised."""
        if not self._current:
            self._refill()
        if len(self._current) >= size_bytes:
            taken, self._current = self._current[:size_bytes], self._current[size_bytes:]
            self.crc32 = crc32.of(taken, self.crc32)
            return taken
        pieces = bytearray()
        while len(pieces) < size_bytes and self._current:
            step = self._current[: size_bytes - len(pieces)]
            pieces += step
            self._current = self._current[len(step) :]
            if not self._current:
                self._refill()
        self.crc32 = crc32.of(pieces, self.crc32)
        return bytes(pieces)

    def _refill(self) -> None:
        self._refilling = asyncio.run_coroutine_threadsafe(self._next_step(self._step), self._loop)
        self._step = self._current = self._refilling.result()

    async def _next_step(self, done: memoryview) -> memoryview:
        if done:
            self._free.append(done)
        while len(self._ahead) <= _AHEAD and self._next < self._stop and not self._closed:
            span = Span(self._next, min(_STEP_BYTES, self._stop - self._next))
            self._next += span.length
            self._ahead.append(asyncio.create_task(self._fetch(span)))
        if self._closed:
            raise asyncio.CancelledError
        if not self._ahead:
            return memoryview(b"")
        step = await self._ahead.popleft()
        await self._pace.acquire(len(step))
        return step

    async def _fetch(self, span: Span) -> memoryview:
        room = self._free.pop() if self._free else memoryview(bytearray(_STEP_BYTES))
        room = room[: span.length]
        await transfer.get_span(self._store, self._key, span, room)
        return room

    def drain(self) -> None:
        """Reads to the end, for the sake of `crc32`."""
        while self.read(1 << 20):
            pass
