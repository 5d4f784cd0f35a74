"""Parts from a thread that fills them to a store, a bounded number at a time."""

import asyncio
import concurrent.futures
import contextlib
from collections.abc import AsyncIterator, Callable, Coroutine, Mapping, Sequence
from types import MappingProxyType
from typing import Any, TypeVar

from content import resume
from content.archive import crc32
from content.archive.parts import Part
from content.archive.reuse import CopyRange
from content.disk_time import DiskTime
from content.journal import NotedPart, UploadJournal
from content.objects.base import MultipartStore, ObjectInfo, PartRef, Upload, UploadedPart
from servicekit.threads import to_its_end
from servicekit.throttle import Bucket, Throttle

T = TypeVar("T")


class UploadStopped(Exception):
    """The upload has failed or was cancelled; the reason is with whoever runs it."""


class PartUploader:
    """Sends parts of one upload. `emit` and `lend` are for one filling thread, all else for the event loop.

    Holds at most ``concurrency`` parts under way; their buffers are lent again when they are sent. What was
    filled is paid for at ``read`` before more is; that waiting is kept apart from ``disk``'s, which is
    released when this stops. Parts that the store has from an earlier run (``held``) are not sent again;
    those it takes are noted in ``journal``.
    """

    def __init__(
        self,
        store: MultipartStore,
        upload: Upload,
        *,
        concurrency: int,
        disk: DiskTime,
        read: Bucket | None = None,
        held: Mapping[int, NotedPart] = MappingProxyType({}),
        journal: UploadJournal | None = None,
    ) -> None:
        self._store = store
        self._upload = upload
        self._loop = asyncio.get_running_loop()
        self._slots = asyncio.Semaphore(concurrency)
        self._copying = asyncio.Semaphore(concurrency)
        self._held = held
        self._journal = journal
        self._disk = disk
        self._read = read or Throttle()
        self._accepting: asyncio.Task[Any] | None = None
        self._spare: list[bytearray] = []
        self._stopped = False
        self._tasks: set[asyncio.Task[None]] = set()
        self._error: BaseException | None = None
        self.parts: dict[int, UploadedPart] = {}
        self.sent_bytes = 0
        self.resumed_bytes = 0

    def lend(self, size_bytes: int) -> bytearray:
        """A buffer of exactly ``size_bytes``."""
        while self._spare:
            buffer = self._spare.pop()
            if len(buffer) == size_bytes:
                return buffer
        return bytearray(size_bytes)

    def emit(self, part: Part) -> None:
        """Blocks until there is room. Raises UploadStopped."""
        try:
            with self._disk.apart():
                asyncio.run_coroutine_threadsafe(self._accept(part), self._loop).result()
        except concurrent.futures.CancelledError:
            raise UploadStopped from None

    async def _accept(self, part: Part) -> None:
        self._refuse_if_stopped()
        self._accepting = asyncio.current_task()
        try:
            await self._read.acquire(part.size_bytes)
            await self._slots.acquire()
        finally:
            self._accepting = None
        try:
            self._refuse_if_stopped()
        except UploadStopped:
            self._slots.release()
            raise
        self.start(self._send(part))

    def _refuse_if_stopped(self) -> None:
        if self._stopped:
            raise UploadStopped

    def start(self, work: Coroutine[Any, Any, None]) -> None:
        """Runs ``work`` as part of this upload; its failure fails the upload."""
        task = asyncio.create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._ended)

    def _ended(self, task: "asyncio.Task[None]") -> None:
        self._tasks.discard(task)
        if not task.cancelled() and (error := task.exception()) is not None:
            self._error = self._error or error
            self._stop()

    async def _send(self, part: Part) -> None:
        try:
            whole = len(part.data) == part.size_bytes
            data = part.data if whole else bytes(memoryview(part.data)[: part.size_bytes])
            value = await asyncio.to_thread(crc32.of, data)
            ref = PartRef(part.number, part.offset, part.size_bytes, value)
            if not await self._is_held(ref, data, ""):
                await self._add(await self._store.put_part(self._upload, ref, data), "")
                self.sent_bytes += part.size_bytes
            self._spare.append(part.data)
        finally:
            self._slots.release()

    async def _is_held(self, ref: PartRef, data: bytes | bytearray | None, source: str) -> bool:
        noted = self._held.get(ref.number)
        if noted is None or not await asyncio.to_thread(resume.is_same, noted, ref, data, source):
            return False
        self.parts[ref.number] = UploadedPart(ref, noted.etag)
        self.resumed_bytes += ref.size_bytes
        return True

    def copy(self, source: ObjectInfo, ranges: Sequence[CopyRange]) -> None:
        """Has the store copy ``ranges`` of ``source``, beside whatever is sent."""
        for one in ranges:
            self.start(self._copy(source, one))

    async def _copy(self, source: ObjectInfo, one: CopyRange) -> None:
        async with self._copying:
            ref = PartRef(one.number, one.new_offset, one.length, one.crc32)
            origin = f"{source.key}@{source.etag}:{one.old_offset}"
            if not await self._is_held(ref, None, origin):
                await self._add(
                    await self._store.copy_part(self._upload, ref, source, one.old_offset), origin
                )

    async def _add(self, part: UploadedPart, source: str) -> None:
        self.parts[part.ref.number] = part
        if self._journal is not None:
            await self._journal.note(part, source)

    def _stop(self) -> None:
        self._stopped = True
        self._disk.release()
        if self._accepting is not None:
            self._accepting.cancel()
        for task in self._tasks:
            task.cancel()

    @contextlib.asynccontextmanager
    async def running(self) -> AsyncIterator[None]:
        """All parts are there when the block ends; the first failure ends it."""
        try:
            yield
            while self._tasks and self._error is None:
                await asyncio.wait(self._tasks)
        except UploadStopped:
            pass
        finally:
            self._stop()
            if self._tasks:
                await asyncio.wait(self._tasks)
        if self._error is not None:
            raise self._error

    async def fill(self, work: Callable[[], T]) -> T:
        """Runs the filling thread to its end, also when this is cancelled."""
        return await to_its_end(self._loop.run_in_executor(None, work), interrupt=self._stop)

    def expected(self) -> ObjectInfo:
        """What the object will be: its size, and its CRC-32 folded from those of the parts."""
        whole, size = 0, 0
        for part in self._ordered():
            whole = crc32.combine(whole, part.ref.crc32, part.ref.size_bytes)
            size += part.ref.size_bytes
        return ObjectInfo(self._upload.key, size, "", 0.0, whole)

    def _ordered(self) -> list[UploadedPart]:
        return [self.parts[number] for number in sorted(self.parts)]

    async def complete(self) -> tuple[ObjectInfo, int]:
        """(the object, the CRC-32 of the whole)."""
        whole = self.expected().crc32 or 0
        return await self._store.complete_upload(self._upload, self._ordered(), whole), whole
