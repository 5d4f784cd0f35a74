"""What the content service asks of an object store.

An object is there whole or not at all, and read-after-write holds for every method. Every method may be
called concurrently from one event loop. Absent objects raise ObjectNotFound; a store that gives no usable
answer raises StoreUnavailable (retryable); a refusal raises StoreDenied or StoreRefused; a condition that
does not hold raises PreconditionFailed, and then nothing was written.
"""

from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import AbstractAsyncContextManager
from dataclasses import dataclass
from typing import Protocol


@dataclass(frozen=True, slots=True)
class ObjectInfo:
    """``etag`` changes with the content and is opaque; ``crc32`` is of the whole object, where the store
    keeps one.
    """

    key: str
    size_bytes: int
    etag: str
    modified_s: float
    crc32: int | None = None


@dataclass(frozen=True, slots=True)
class StoreProperties:
    """What a store can do, and likes.

    ``conditional_put``: put with ``if_match`` or ``if_absent`` is atomic. ``part_copy``: `copy_part` copies
    inside the store. ``checks_crc32``: a part, and a completed upload, with a wrong CRC-32 is refused;
    ``checks_copies``: also in an upload with copied parts.
    """

    conditional_put: bool
    part_copy: bool
    checks_crc32: bool
    checks_copies: bool = False
    concurrency: int = 4


@dataclass(frozen=True, slots=True)
class Span:
    """``length`` bytes from ``start``; never empty."""

    start: int
    length: int

    @property
    def stop(self) -> int:
        """The first byte behind it."""
        return self.start + self.length


@dataclass(frozen=True, slots=True)
class Upload:
    """A multipart upload that is open."""

    key: str
    upload_id: str
    started_s: float = 0.0
    checked: bool = False
    """The store compares the whole object's CRC-32 on completion."""


@dataclass(frozen=True, slots=True)
class PartRef:
    """A part: which, where in the object, how long, and its CRC-32. Numbers run from 1 without gaps."""

    number: int
    offset: int
    size_bytes: int
    crc32: int


@dataclass(frozen=True, slots=True)
class UploadedPart:
    ref: PartRef
    etag: str


class ObjectReader(Protocol):
    """An object, or a span of it, open for reading once; the store's context manager closes it."""

    @property
    def info(self) -> ObjectInfo:
        """The whole object's, also when a span is read."""

    async def pour(self, sink: Callable[[bytes], object], limit_bytes: int) -> int:
        """Calls ``sink`` in a thread with pieces of the next ``limit_bytes``, or of what is left; how many
        bytes that were. ``sink`` may block, and raises nothing but ContentErrors; it is not called any more
        when this returns or is cancelled. A body that is short raises StoreUnavailable.
        """


class ObjectSource(Protocol):
    """The reading half."""

    @property
    def name(self) -> str:
        """For messages; holds no secret."""

    @property
    def properties(self) -> StoreProperties: ...

    async def stat(self, key: str) -> ObjectInfo:
        """Raises ObjectNotFound."""

    def open(
        self, key: str, span: Span | None = None, *, if_match: str | None = None
    ) -> AbstractAsyncContextManager[ObjectReader]:
        """The object, or a span within it. Raises ObjectNotFound, PreconditionFailed, and ObjectCorrupt when
        it ends before the span does.
        """

    def list(self, prefix: str) -> AsyncIterator[ObjectInfo]:
        """Every object whose key begins with ``prefix``, by key."""


class ObjectStore(ObjectSource, Protocol):
    """Small objects, whole."""

    async def put(
        self, key: str, data: bytes, *, if_match: str | None = None, if_absent: bool = False
    ) -> ObjectInfo:
        """Replaces the object, on condition if one is given. Raises PreconditionFailed."""

    async def delete(self, key: str) -> None:
        """Also when it is not there."""

    async def close(self) -> None:
        """Releases connections and threads."""


class MultipartStore(ObjectStore, Protocol):
    """Large objects, in parts of which all but the last have at least 5 MiB. Parts may be sent in any order,
    and again: the last of a number counts.
    """

    async def create_upload(self, key: str, *, copies: bool = False) -> Upload:
        """``copies`` says that parts will be copied into it."""

    async def put_part(self, upload: Upload, ref: PartRef, data: bytes | bytearray) -> UploadedPart:
        """``data`` is not kept after the return. Raises UploadGone."""

    async def copy_part(self, upload: Upload, ref: PartRef, source: ObjectInfo, start: int) -> UploadedPart:
        """Bytes ``start .. start + ref.size_bytes`` of ``source``, unless that object changed since.
        Raises PreconditionFailed, ObjectNotFound, UploadGone.
        """

    async def list_parts(self, upload: Upload) -> dict[int, UploadedPart]:
        """By number; offsets are 0 where the store does not know them. Raises UploadGone."""

    async def complete_upload(self, upload: Upload, parts: Sequence[UploadedPart], crc32: int) -> ObjectInfo:
        """Makes the object visible. Where the store checks, it refuses one whose CRC-32 is not ``crc32``.
        Raises UploadGone, StoreRefused.
        """

    async def abort_upload(self, upload: Upload) -> None:
        """Also when it is gone."""

    def list_uploads(self, prefix: str) -> AsyncIterator[Upload]:
        """Uploads that are open under ``prefix``."""


async def read_all(
    store: ObjectSource, key: str, span: Span | None = None, *, if_match: str | None = None
) -> bytes:
    """A small object or a bounded span, in memory."""
    async with store.open(key, span, if_match=if_match) as reader:
        pieces: list[bytes] = []
        await reader.pour(pieces.append, reader.info.size_bytes)
        return b"".join(pieces)
