"""A span of an object as a blocking byte source for one thread, read ahead by ranged requests."""

import asyncio
import concurrent.futures
from collections import deque
from collections.abc import Callable
from typing import Self, TypeVar

from content import transfer
from content.archive import crc32
from content.objects.base import ObjectSource, Span
from servicekit.throttle import Bucket, Throttle

T = TypeVar("T")
_STEP_BYTES = 4 << 20
_AHEAD = 2


class SpanStream:
    """Holds at most ``_AHEAD + 1`` steps of 4 MiB. An async context manager; `consume` runs the thread.

    Each step is asked for at ``pace`` before the thread gets it.
    """

    def __init__(self, store: ObjectSource, key: str, span: Span, *, pace: Bucket | None = None) -> None:
        self._store = store
        self._key = key
        self._pace = pace or Throttle()
        self._next = span.start
        self._stop = span.start + span.length
        self._loop = asyncio.get_running_loop()
        self._ahead: deque[asyncio.Task[bytearray]] = deque()
        self._current = memoryview(b"")
        self._closed = False
        self._refilling: concurrent.futures.Future[bytearray] | None = None
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
        working = self._loop.run_in_executor(None, work)
        try:
            return await asyncio.shield(working)
        except asyncio.CancelledError:
            self._closed = True
            if self._refilling is not None:
                self._refilling.cancel()
            await asyncio.wait([working])
            if not working.cancelled():
                working.exception()
            raise

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
        self._refilling = asyncio.run_coroutine_threadsafe(self._step(), self._loop)
        self._current = memoryview(self._refilling.result())

    async def _step(self) -> bytearray:
        while len(self._ahead) <= _AHEAD and self._next < self._stop and not self._closed:
            span = Span(self._next, min(_STEP_BYTES, self._stop - self._next))
            self._next += span.length
            self._ahead.append(asyncio.create_task(transfer.get_span(self._store, self._key, span)))
        if self._closed:
            raise asyncio.CancelledError
        if not self._ahead:
            return bytearray()
        data = await self._ahead.popleft()
        await self._pace.acquire(len(data))
        return data

    def drain(self) -> None:
        """Reads to the end, for the sake of `crc32`."""
        while self.read(1 << 20):
            pass
