"""Moves whole files and spans between here and the store, and settles answers that got lost."""

import asyncio
import hashlib
import tempfile
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import IO, TypeVar

from content.archive import crc32 as crc
from content.errors import (
    LocalDiskError,
    ObjectCorrupt,
    ObjectNotFound,
    StoreUnavailable,
    UploadGone,
)
from content.objects.base import (
    MultipartStore,
    ObjectInfo,
    ObjectReader,
    ObjectSource,
    PartRef,
    Span,
    UploadedPart,
)
from content.upload import PartUploader
from servicekit.backoff import Backoff, retry
from servicekit.throttle import Bucket

T = TypeVar("T")
_PART_BYTES = 8 << 20
_STEP_BYTES = 4 << 20
_BACKOFF = Backoff(attempts=5, first_s=0.2, cap_s=10.0)


@dataclass(frozen=True, slots=True)
class StoredFile:
    """A file that is now an object."""

    key: str
    size_bytes: int
    sha256: str


async def complete(store: MultipartStore, parts: PartUploader) -> tuple[ObjectInfo, int]:
    """(the object, its CRC-32). An answer that got lost is settled by looking at what is there."""

    async def attempt() -> tuple[ObjectInfo, int]:
        try:
            return await parts.complete()
        except (StoreUnavailable, UploadGone) as error:
            ours = parts.expected()
            try:
                there = await store.stat(ours.key)
            except ObjectNotFound:
                raise error from None
            if there.size_bytes != ours.size_bytes:
                raise ObjectCorrupt(ours.key, "an upload that was not ours completed it") from error
            return there, ours.crc32 or 0

    return await retry(attempt, backoff=_BACKOFF)


async def put_file(store: MultipartStore, key: str, file: IO[bytes]) -> StoredFile:
    """The rest of ``file`` as an object, in bounded memory."""
    digest = hashlib.sha256()
    first = await asyncio.to_thread(file.read, _PART_BYTES)
    if len(first) < _PART_BYTES:
        digest.update(first)
        await store.put(key, first)
        return StoredFile(key, len(first), digest.hexdigest())
    upload = await store.create_upload(key)
    try:
        parts: list[UploadedPart] = []
        size, whole, data = 0, 0, first
        while data:
            digest.update(data)
            value = crc.of(data)
            ref = PartRef(len(parts) + 1, size, len(data), value)
            parts.append(await store.put_part(upload, ref, data))
            size, whole = size + len(data), crc.combine(whole, value, len(data))
            data = await asyncio.to_thread(file.read, _PART_BYTES)
        await store.complete_upload(upload, parts, whole)
    except BaseException:
        await asyncio.shield(store.abort_upload(upload))
        raise
    return StoredFile(key, size, digest.hexdigest())


async def get_file(store: ObjectSource, key: str, file: IO[bytes], *, size_bytes: int, sha256: str) -> None:
    """The object into ``file``, which is left at its start. Raises ObjectCorrupt."""

    async def attempt() -> None:
        file.seek(0)
        file.truncate()
        digest = hashlib.sha256()

        def take(piece: bytes) -> None:
            digest.update(piece)
            try:
                file.write(piece)
            except OSError as error:
                raise LocalDiskError.from_os(tempfile.gettempdir(), error) from error

        async with store.open(key) as reader:
            if reader.info.size_bytes != size_bytes:
                raise ObjectCorrupt(key, f"it has {reader.info.size_bytes} bytes, not {size_bytes}")
            await _pour(reader, take, size_bytes)
        if digest.hexdigest() != sha256:
            raise ObjectCorrupt(key, "its checksum does not match")

    await _again_if_corrupt(attempt)
    file.seek(0)


async def _again_if_corrupt(attempt: Callable[[], Awaitable[None]]) -> None:
    """What came wrong once may have been damaged on the way; twice is the store's answer."""
    try:
        await _again_if_broken(attempt)
    except ObjectCorrupt:
        await _again_if_broken(attempt)


class _BrokenOff(Exception):
    """A body that stopped before its end; the cause says how."""

    retryable = True


class _NotBegun(Exception):
    """A read that the store's own layer has repeated already; the cause says what it met."""


async def _pour(reader: ObjectReader, sink: Callable[[bytes], object], limit_bytes: int) -> None:
    try:
        await reader.pour(sink, limit_bytes)
    except StoreUnavailable as error:
        raise _BrokenOff from error


async def _again_if_broken(attempt: Callable[[], Awaitable[T]]) -> T:
    """Repeats a read whose body broke off. One that could not begin was repeated by the store's own layer."""

    async def once() -> T:
        try:
            return await attempt()
        except StoreUnavailable as error:
            raise _NotBegun from error

    try:
        return await retry(once, backoff=_BACKOFF)
    except (_BrokenOff, _NotBegun) as failed:
        raise failed.__cause__ or failed from None


async def get_whole(store: ObjectSource, key: str, span: Span | None = None) -> tuple[bytes, ObjectInfo]:
    """A small object or a bounded span, read again as a whole when it breaks off."""

    async def attempt() -> tuple[bytes, ObjectInfo]:
        async with store.open(key, span) as reader:
            pieces: list[bytes] = []
            await _pour(reader, pieces.append, reader.info.size_bytes)
            return b"".join(pieces), reader.info

    return await _again_if_broken(attempt)


async def get_span(store: ObjectSource, key: str, span: Span, room: memoryview) -> None:
    """The bytes of a span into ``room``, which is as long."""
    filled = 0

    def take(piece: bytes) -> None:
        nonlocal filled
        room[filled : filled + len(piece)] = piece
        filled += len(piece)

    await pour_span(store, key, span, take)


async def pour_span(
    store: ObjectSource,
    key: str,
    span: Span,
    sink: Callable[[bytes], object],
    *,
    pace: Bucket | None = None,
) -> None:
    """Calls ``sink``, as `ObjectReader.pour` does, with the bytes of a span, each once and in order. One that
    breaks off is gone on with where it broke. ``pace`` is asked for a few MiB at a time before they are read.
    """
    at = span.start

    def take(piece: bytes) -> None:
        nonlocal at
        sink(piece)
        at += len(piece)

    async def attempt() -> None:
        begun = at
        try:
            async with store.open(key, Span(at, span.stop - at)) as reader:
                while at < span.stop:
                    step_bytes = min(_STEP_BYTES, span.stop - at)
                    if pace is not None:
                        await pace.acquire(step_bytes)
                    await _pour(reader, take, step_bytes)
        except _BrokenOff:
            if at - begun < _STEP_BYTES:
                raise

    while at < span.stop:
        await _again_if_broken(attempt)
