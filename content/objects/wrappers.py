"""One concern each, around any store; stacked in `content.objects.opening`."""

import asyncio
import contextlib
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator, Sequence
from typing import TypeVar

from content.errors import ContentError
from content.metrics import StoreMetrics
from content.objects.base import (
    MultipartStore,
    ObjectInfo,
    ObjectReader,
    PartRef,
    Span,
    StoreProperties,
    Upload,
    UploadedPart,
)
from servicekit.backoff import Backoff, retry
from servicekit.clock import Clock, SystemClock
from servicekit.throttle import Bucket

T = TypeVar("T")


class Wrapper:
    """Passes everything through `_call`, which a subclass makes something of; `inner` is reachable."""

    def __init__(self, inner: MultipartStore) -> None:
        self.inner = inner

    @property
    def name(self) -> str:
        return self.inner.name

    @property
    def properties(self) -> StoreProperties:
        return self.inner.properties

    async def _call(self, operation: str, work: Callable[[], Awaitable[T]]) -> T:
        del operation
        return await work()

    async def stat(self, key: str) -> ObjectInfo:
        return await self._call("stat", lambda: self.inner.stat(key))

    @contextlib.asynccontextmanager
    async def open(
        self, key: str, span: Span | None = None, *, if_match: str | None = None
    ) -> AsyncIterator[ObjectReader]:
        async with self.inner.open(key, span, if_match=if_match) as reader:
            yield reader

    async def list(self, prefix: str) -> AsyncIterator[ObjectInfo]:
        async for info in self.inner.list(prefix):
            yield info

    async def put(
        self, key: str, data: bytes, *, if_match: str | None = None, if_absent: bool = False
    ) -> ObjectInfo:
        return await self._call(
            "put", lambda: self.inner.put(key, data, if_match=if_match, if_absent=if_absent)
        )

    async def delete(self, key: str) -> None:
        await self._call("delete", lambda: self.inner.delete(key))

    async def close(self) -> None:
        await self.inner.close()

    async def create_upload(self, key: str, *, copies: bool = False) -> Upload:
        return await self._call("create_upload", lambda: self.inner.create_upload(key, copies=copies))

    async def put_part(self, upload: Upload, ref: PartRef, data: bytes | bytearray) -> UploadedPart:
        return await self._call("put_part", lambda: self.inner.put_part(upload, ref, data))

    async def copy_part(self, upload: Upload, ref: PartRef, source: ObjectInfo, start: int) -> UploadedPart:
        return await self._call("copy_part", lambda: self.inner.copy_part(upload, ref, source, start))

    async def list_parts(self, upload: Upload) -> dict[int, UploadedPart]:
        return await self._call("list_parts", lambda: self.inner.list_parts(upload))

    async def complete_upload(self, upload: Upload, parts: Sequence[UploadedPart], crc32: int) -> ObjectInfo:
        return await self._call("complete", lambda: self.inner.complete_upload(upload, parts, crc32))

    async def abort_upload(self, upload: Upload) -> None:
        await self._call("abort", lambda: self.inner.abort_upload(upload))

    async def list_uploads(self, prefix: str) -> AsyncIterator[Upload]:
        async for upload in self.inner.list_uploads(prefix):
            yield upload


class Retrying(Wrapper):
    """Repeats what failed for a reason that may pass.

    Not repeated here: conditional puts and completions, whose first try may have succeeded although its
    answer was lost; who asked for them finds out by looking. Reads are repeated as a whole by
    `content.transfer`, which knows what it has already.
    """

    def __init__(self, inner: MultipartStore, backoff: Backoff, clock: Clock = SystemClock()) -> None:
        super().__init__(inner)
        self._backoff = backoff
        self._clock = clock

    async def _call(self, operation: str, work: Callable[[], Awaitable[T]]) -> T:
        if operation == "complete":
            return await work()
        return await retry(work, backoff=self._backoff, clock=self._clock)

    async def put(
        self, key: str, data: bytes, *, if_match: str | None = None, if_absent: bool = False
    ) -> ObjectInfo:
        if if_match is not None or if_absent:
            return await self.inner.put(key, data, if_match=if_match, if_absent=if_absent)
        return await super().put(key, data)

    @contextlib.asynccontextmanager
    async def open(
        self, key: str, span: Span | None = None, *, if_match: str | None = None
    ) -> AsyncIterator[ObjectReader]:
        async with contextlib.AsyncExitStack() as stack:
            yield await retry(
                lambda: stack.enter_async_context(self.inner.open(key, span, if_match=if_match)),
                backoff=self._backoff,
                clock=self._clock,
            )


class Throttled(Wrapper):
    """Holds bytes back before they are sent, and after they were received."""

    def __init__(self, inner: MultipartStore, sent: Bucket, received: Bucket) -> None:
        super().__init__(inner)
        self._sent = sent
        self._received = received

    async def put(
        self, key: str, data: bytes, *, if_match: str | None = None, if_absent: bool = False
    ) -> ObjectInfo:
        await self._sent.acquire(len(data))
        return await self.inner.put(key, data, if_match=if_match, if_absent=if_absent)

    async def put_part(self, upload: Upload, ref: PartRef, data: bytes | bytearray) -> UploadedPart:
        await self._sent.acquire(ref.size_bytes)
        return await self.inner.put_part(upload, ref, data)

    @contextlib.asynccontextmanager
    async def open(
        self, key: str, span: Span | None = None, *, if_match: str | None = None
    ) -> AsyncIterator[ObjectReader]:
        async with self.inner.open(key, span, if_match=if_match) as reader:
            yield _ThrottledReader(reader, self._received)


class _ThrottledReader:
    def __init__(self, inner: ObjectReader, throttle: Bucket) -> None:
        self._inner = inner
        self._throttle = throttle

    @property
    def info(self) -> ObjectInfo:
        return self._inner.info

    async def pour(self, sink: Callable[[bytes], object], limit_bytes: int) -> int:
        count = await self._inner.pour(sink, limit_bytes)
        await self._throttle.acquire(count)
        return count


class Bounded(Wrapper):
    """At most so many requests at a time, over all who share the store."""

    def __init__(self, inner: MultipartStore, concurrency: int) -> None:
        super().__init__(inner)
        self._slots = asyncio.Semaphore(concurrency)

    async def _call(self, operation: str, work: Callable[[], Awaitable[T]]) -> T:
        del operation
        async with self._slots:
            return await work()

    @contextlib.asynccontextmanager
    async def open(
        self, key: str, span: Span | None = None, *, if_match: str | None = None
    ) -> AsyncIterator[ObjectReader]:
        async with self._slots, self.inner.open(key, span, if_match=if_match) as reader:
            yield reader


class Metered(Wrapper):
    """Counts requests by operation and outcome, times them, and counts bytes."""

    def __init__(self, inner: MultipartStore, metrics: StoreMetrics, clock: Clock = SystemClock()) -> None:
        super().__init__(inner)
        self._metrics = metrics
        self._clock = clock

    async def _call(self, operation: str, work: Callable[[], Awaitable[T]]) -> T:
        with self._counted(operation):
            return await work()

    @contextlib.contextmanager
    def _counted(self, operation: str) -> Iterator[None]:
        started_s, outcome = self._clock.monotonic(), "failed"
        try:
            yield
            outcome = "ok"
        except ContentError as error:
            outcome = "retryable" if error.retryable else "refused"
            raise
        finally:
            self._metrics.seconds.labels(operation, outcome).observe(self._clock.monotonic() - started_s)

    async def put_part(self, upload: Upload, ref: PartRef, data: bytes | bytearray) -> UploadedPart:
        done = await super().put_part(upload, ref, data)
        self._metrics.bytes.labels("sent").inc(ref.size_bytes)
        return done

    async def copy_part(self, upload: Upload, ref: PartRef, source: ObjectInfo, start: int) -> UploadedPart:
        done = await super().copy_part(upload, ref, source, start)
        self._metrics.bytes.labels("copied").inc(ref.size_bytes)
        return done

    @contextlib.asynccontextmanager
    async def open(
        self, key: str, span: Span | None = None, *, if_match: str | None = None
    ) -> AsyncIterator[ObjectReader]:
        with self._counted("open"):
            async with self.inner.open(key, span, if_match=if_match) as reader:
                yield _MeteredReader(reader, self._metrics)


class _MeteredReader:
    def __init__(self, inner: ObjectReader, metrics: StoreMetrics) -> None:
        self._inner = inner
        self._metrics = metrics

    @property
    def info(self) -> ObjectInfo:
        return self._inner.info

    async def pour(self, sink: Callable[[bytes], object], limit_bytes: int) -> int:
        count = await self._inner.pour(sink, limit_bytes)
        self._metrics.bytes.labels("received").inc(count)
        return count
