"""Blobs: the protocols every store and every source of bytes speaks.

Reading: ``async with source.open(digest) as reader: async for data in reader``. Writing: an *ingest* is
invisible until `BlobWriter.commit`, which succeeds only when size and digest agree; leaving the context
without a commit aborts and leaves nothing behind. Committing what is already there is success. No method
answers a boolean "has": absent raises BlobNotFound, unreachable raises a retryable SourceUnavailable, and
the two are never confused.
"""

from collections.abc import AsyncIterator
from contextlib import AbstractAsyncContextManager
from dataclasses import dataclass
from typing import Protocol, runtime_checkable

from ocikit.descriptor import Descriptor
from ocikit.digest import Digest
from ocikit.errors import BlobNotFound, DigestMismatch, SizeMismatch
from ocikit.ranges import ByteRange, ContentRange

BLOB_MEDIA_TYPE = "application/octet-stream"
"""What a store says of bytes whose type only a manifest knows."""


class BlobReader(Protocol):
    """One pass over (a range of) a blob; single use, one task at a time.

    Iteration ends normally only when every byte of ``content_range`` was given; otherwise it raises an
    OciError. Data pieces have any size up to a few MiB and belong to the receiver.
    """

    @property
    def content_range(self) -> ContentRange: ...

    def __aiter__(self) -> AsyncIterator[bytes]: ...


@runtime_checkable
class BlobSource(Protocol):
    """Somewhere blobs can be read. Safe for concurrent use; the caller closes the context it opened."""

    @property
    def name(self) -> str:
        """A word from a closed set: the metrics label."""

    async def stat(self, digest: Digest) -> Descriptor:
        """Size and digest, without reading. Raises BlobNotFound or SourceUnavailable."""

    def open(
        self, digest: Digest, byte_range: ByteRange | None = None
    ) -> AbstractAsyncContextManager[BlobReader]:
        """Raises BlobNotFound, InvalidRange or SourceUnavailable on entering the context."""


class BlobWriter(Protocol):
    """One ingest. Not for concurrent use."""

    @property
    def offset(self) -> int:
        """Bytes taken so far."""

    async def write(self, data: bytes) -> None:
        """Takes all of ``data``. Raises StoreError."""

    async def commit(self) -> Descriptor:
        """Makes the blob visible, durably. Raises DigestMismatch or SizeMismatch, keeping nothing."""


class BlobIngester(Protocol):
    """Somewhere blobs can be written. Safe for concurrent use, also for the same digest."""

    def ingest(
        self, expected: Digest | None = None, size: int | None = None
    ) -> AbstractAsyncContextManager[BlobWriter]:
        """Starts an ingest; None for ``expected`` means "name it by what comes" (sha256)."""


@dataclass(frozen=True, slots=True)
class BlobInfo:
    """What a store knows of one of its blobs."""

    digest: Digest
    size: int
    used_s: float
    """Seconds since the epoch of the last use, as well as the store knows."""


class BlobManager(Protocol):
    """Housekeeping of a store. Safe for concurrent use."""

    async def delete(self, digest: Digest) -> None:
        """Gone afterwards; absent is success. Readers that have it open finish undisturbed."""

    def walk(self) -> AsyncIterator[BlobInfo]:
        """Every committed blob, in no order; what changes meanwhile may or may not be seen."""


class BlobStore(BlobSource, BlobIngester, BlobManager, Protocol):
    """All roles together; a consumer asks for the smallest that serves it."""


async def read_blob(source: BlobSource, descriptor: Descriptor, *, limit_bytes: int = 16 << 20) -> bytes:
    """A small blob, whole and verified; for manifests and configs, never for layers.

    Raises SizeMismatch above ``limit_bytes`` or when the sizes differ, DigestMismatch on wrong bytes.
    """
    if descriptor.size > limit_bytes:
        raise SizeMismatch(descriptor.digest, limit_bytes, descriptor.size, source.name)
    data = bytearray()
    async with source.open(descriptor.digest) as reader:
        async for piece in reader:
            data += piece
            if len(data) > descriptor.size:
                break
    if len(data) != descriptor.size:
        raise SizeMismatch(descriptor.digest, descriptor.size, len(data), source.name)
    actual = Digest.of(data, descriptor.digest.algorithm)
    if actual != descriptor.digest:
        raise DigestMismatch(descriptor.digest, actual, source.name)
    return bytes(data)


async def copy_blob(source: BlobSource, target: BlobStore, descriptor: Descriptor) -> bool:
    """Copies unless it is there already; False when it was. Verified by the target's commit."""
    try:
        await target.stat(descriptor.digest)
    except BlobNotFound:
        pass
    else:
        return False
    async with (
        source.open(descriptor.digest) as reader,
        target.ingest(descriptor.digest, descriptor.size) as writer,
    ):
        async for data in reader:
            await writer.write(data)
        await writer.commit()
    return True
