"""A BlobStore in memory, held to the same suite as the real ones."""

import contextlib
import time
from collections.abc import AsyncIterator

from ocikit.blobs import BLOB_MEDIA_TYPE, BlobInfo, BlobReader, BlobStore, BlobWriter
from ocikit.descriptor import Descriptor
from ocikit.digest import Digest
from ocikit.errors import BlobNotFound, DigestMismatch, SizeMismatch
from ocikit.ranges import ByteRange, ContentRange

_PIECE_BYTES = 64 * 1024


class MemoryBlobStore:
    """``blobs`` may be looked at, filled and damaged by tests."""

    def __init__(self, name: str = "memory") -> None:
        self._name = name
        self.blobs: dict[Digest, bytes] = {}

    @property
    def name(self) -> str:
        return self._name

    def add(self, data: bytes) -> Digest:
        digest = Digest.of(data)
        self.blobs[digest] = data
        return digest

    def _get(self, digest: Digest) -> bytes:
        if digest not in self.blobs:
            raise BlobNotFound(digest, self._name)
        return self.blobs[digest]

    async def stat(self, digest: Digest) -> Descriptor:
        return Descriptor(BLOB_MEDIA_TYPE, digest, len(self._get(digest)))

    @contextlib.asynccontextmanager
    async def open(self, digest: Digest, byte_range: ByteRange | None = None) -> AsyncIterator[BlobReader]:
        data = self._get(digest)
        yield MemoryReader(data, (byte_range or ByteRange()).resolve(len(data)))

    @contextlib.asynccontextmanager
    async def ingest(
        self, expected: Digest | None = None, size: int | None = None
    ) -> AsyncIterator[BlobWriter]:
        yield _MemoryWriter(self, expected, size)

    async def delete(self, digest: Digest) -> None:
        self.blobs.pop(digest, None)

    async def walk(self) -> AsyncIterator[BlobInfo]:
        for digest, data in list(self.blobs.items()):
            yield BlobInfo(digest, len(data), time.time())


class MemoryReader:
    """A BlobReader over bytes."""

    def __init__(self, data: bytes, content_range: ContentRange) -> None:
        self._data = data
        self._content_range = content_range

    @property
    def content_range(self) -> ContentRange:
        return self._content_range

    async def __aiter__(self) -> AsyncIterator[bytes]:
        for at in range(self._content_range.start, self._content_range.stop, _PIECE_BYTES):
            yield self._data[at : min(at + _PIECE_BYTES, self._content_range.stop)]


class _MemoryWriter:
    def __init__(self, store: MemoryBlobStore, expected: Digest | None, size: int | None) -> None:
        self._store = store
        self._expected = expected
        self._size = size
        self._data = bytearray()

    @property
    def offset(self) -> int:
        return len(self._data)

    async def write(self, data: bytes) -> None:
        self._data += data

    async def commit(self) -> Descriptor:
        actual = Digest.of(self._data, self._expected.algorithm if self._expected else "sha256")
        if self._size is not None and len(self._data) != self._size:
            raise SizeMismatch(self._expected or actual, self._size, len(self._data), self._store.name)
        if self._expected is not None and actual != self._expected:
            raise DigestMismatch(self._expected, actual, self._store.name)
        self._store.blobs[actual] = bytes(self._data)
        return Descriptor(BLOB_MEDIA_TYPE, actual, len(self._data))


def _conforms(store: MemoryBlobStore) -> BlobStore:
    return store
