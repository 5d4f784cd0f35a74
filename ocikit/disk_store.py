"""Blobs on disk, laid out as an OCI image layout has them: ``blobs/<algorithm>/<hex>``.

A blob under its final name is complete and was verified; nothing else is ever renamed there. What is being
written lies in ``ingest/`` on the same file system, so that a commit is one rename.
"""

import asyncio
import contextlib
import errno
import hashlib
import os
import tempfile
from collections.abc import AsyncIterator, Iterator
from pathlib import Path

from ocikit.blobs import BLOB_MEDIA_TYPE, BlobInfo, BlobReader, BlobStore, BlobWriter
from ocikit.descriptor import Descriptor
from ocikit.digest import Digest
from ocikit.errors import BlobNotFound, DigestMismatch, SizeMismatch, StoreError
from ocikit.ranges import ByteRange, ContentRange
from servicekit.atomic import durable_rename
from servicekit.threads import in_thread

READ_BYTES = 1 << 20
"""One hop to a worker thread costs about 50 us; a MiB amortises it and bounds memory per stream."""


@contextlib.contextmanager
def _store_errors(path: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise StoreError(str(path), error.strerror or str(error)) from error


class DiskBlobStore:
    """A BlobStore on ``root``, which is created when missing. Several processes may share it."""

    def __init__(self, root: Path, *, name: str = "disk") -> None:
        self.root = root
        self._name = name
        self._ingest = root / "ingest"

    @property
    def name(self) -> str:
        return self._name

    def path(self, digest: Digest) -> Path:
        """Where the blob is, or would be."""
        return self.root / "blobs" / digest.algorithm / digest.encoded

    async def stat(self, digest: Digest) -> Descriptor:
        return Descriptor(BLOB_MEDIA_TYPE, digest, await asyncio.to_thread(self._size, digest))

    def _size(self, digest: Digest) -> int:
        with _store_errors(self.path(digest)):
            try:
                return self.path(digest).stat().st_size
            except FileNotFoundError as error:
                raise BlobNotFound(digest, self._name) from error

    @contextlib.asynccontextmanager
    async def open(self, digest: Digest, byte_range: ByteRange | None = None) -> AsyncIterator[BlobReader]:
        with contextlib.ExitStack() as opened:
            descriptor, size = await in_thread(self._open, digest, opened)
            content_range = (byte_range or ByteRange()).resolve(size)
            yield FileReader(descriptor, content_range, str(self.path(digest)))

    def _open(self, digest: Digest, opened: contextlib.ExitStack) -> tuple[int, int]:
        with _store_errors(self.path(digest)):
            try:
                descriptor = os.open(self.path(digest), os.O_RDONLY | os.O_CLOEXEC)
            except FileNotFoundError as error:
                raise BlobNotFound(digest, self._name) from error
            opened.callback(os.close, descriptor)
            return descriptor, os.fstat(descriptor).st_size

    @contextlib.asynccontextmanager
    async def ingest(
        self, expected: Digest | None = None, size: int | None = None
    ) -> AsyncIterator[BlobWriter]:
        with contextlib.ExitStack() as opened:
            with _store_errors(self._ingest):
                writer = await in_thread(self._create, expected, size, opened)
            yield writer

    def _create(
        self, expected: Digest | None, size: int | None, opened: contextlib.ExitStack
    ) -> "_DiskBlobWriter":
        self._ingest.mkdir(parents=True, exist_ok=True)
        descriptor, name = tempfile.mkstemp(dir=self._ingest)
        writer = _DiskBlobWriter(self, descriptor, Path(name), expected, size)
        opened.callback(writer.abort)
        return writer

    async def delete(self, digest: Digest) -> None:
        with _store_errors(self.path(digest)):
            await asyncio.to_thread(self.path(digest).unlink, missing_ok=True)

    async def walk(self) -> AsyncIterator[BlobInfo]:
        for info in await asyncio.to_thread(lambda: list(self._scan())):
            yield info

    def _scan(self) -> Iterator[BlobInfo]:
        for algorithm in ("sha256", "sha512"):
            directory = self.root / "blobs" / algorithm
            if not directory.is_dir():
                continue
            with os.scandir(directory) as entries:
                for entry in entries:
                    with contextlib.suppress(FileNotFoundError):
                        stat = entry.stat()
                        yield BlobInfo(Digest(f"{algorithm}:{entry.name}"), stat.st_size, stat.st_atime)

    def sweep_ingests(self) -> int:
        """Deletes interrupted ingests; only while no other process writes here. Blocking."""
        stale = list(self._ingest.iterdir()) if self._ingest.is_dir() else []
        for path in stale:
            path.unlink(missing_ok=True)
        return len(stale)


class FileReader:
    """A BlobReader over an open file; the descriptor stays its owner's."""

    def __init__(self, descriptor: int, content_range: ContentRange, where: str) -> None:
        self._descriptor = descriptor
        self._content_range = content_range
        self._where = where

    @property
    def content_range(self) -> ContentRange:
        return self._content_range

    async def __aiter__(self) -> AsyncIterator[bytes]:
        at = self._content_range.start
        while at < self._content_range.stop:
            wanted = min(READ_BYTES, self._content_range.stop - at)
            with _store_errors(Path(self._where)):
                data = await in_thread(os.pread, self._descriptor, wanted, at)
            if not data:
                raise StoreError(self._where, f"truncated at byte {at} of {self._content_range.size}")
            at += len(data)
            yield data


class _DiskBlobWriter:
    def __init__(
        self, store: DiskBlobStore, descriptor: int, path: Path, expected: Digest | None, size: int | None
    ) -> None:
        self._store = store
        self._descriptor = descriptor
        self._path = path
        self._expected = expected
        self._size = size
        self._hasher = expected.hasher() if expected is not None else hashlib.sha256()
        self._offset = 0
        self._open = True

    @property
    def offset(self) -> int:
        return self._offset

    async def write(self, data: bytes) -> None:
        with _store_errors(self._path):
            await in_thread(self._write, data)

    def _write(self, data: bytes) -> None:
        view = memoryview(data)
        while view:
            written = os.write(self._descriptor, view)
            self._hasher.update(view[:written])
            self._offset += written
            view = view[written:]

    async def commit(self) -> Descriptor:
        algorithm = self._expected.algorithm if self._expected is not None else "sha256"
        actual = Digest(f"{algorithm}:{self._hasher.hexdigest()}")
        if self._size is not None and self._offset != self._size:
            raise SizeMismatch(self._expected or actual, self._size, self._offset, self._store.name)
        if self._expected is not None and actual != self._expected:
            raise DigestMismatch(self._expected, actual, self._store.name)
        with _store_errors(self._store.path(actual)):
            await in_thread(self._publish, actual)
        return Descriptor(BLOB_MEDIA_TYPE, actual, self._offset)

    def _publish(self, digest: Digest) -> None:
        target = self._store.path(digest)
        os.fchmod(self._descriptor, 0o644)
        os.fsync(self._descriptor)
        target.parent.mkdir(parents=True, exist_ok=True)
        durable_rename(self._path, target)
        self._close()

    def _close(self) -> None:
        if self._open:
            self._open = False
            os.close(self._descriptor)

    def abort(self) -> None:
        """Closes, and removes what was not committed; also after a commit, then without effect."""
        self._close()
        with contextlib.suppress(OSError):
            self._path.unlink(missing_ok=True)


def is_disk_full(error: StoreError) -> bool:
    """Whether the store failed for want of space or quota."""
    cause = error.__cause__
    return isinstance(cause, OSError) and cause.errno in {errno.ENOSPC, errno.EDQUOT}


def _conforms(store: DiskBlobStore) -> BlobStore:
    return store
