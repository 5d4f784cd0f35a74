"""The complete blobs on disk, each verified, with a budget.

A blob is verified when it comes. That its file is still the one that was verified is seen at every open by
its *stamp* (inode, size, times of change); a file with another stamp is read through and verified anew
before anybody gets it. What a disk forgets silently, the scrubber finds.
"""

import asyncio
import contextlib
import os
import time
from dataclasses import dataclass
from pathlib import Path

import structlog

from ocikit.digest import Digest
from ocikit.disk_store import DiskBlobStore
from ocikit.errors import BlobNotFound
from registry_facade.cache.catalog import Catalog
from registry_facade.cache.growing import GrowingBlob
from registry_facade.cache.memory import MemoryCache
from registry_facade.errors import AlreadyStored, CacheUnusable
from registry_facade.metrics import FacadeMetrics
from registry_facade.open_blob import FileBlob, MemoryBlob
from servicekit.atomic import durable_rename

_log = structlog.get_logger(__name__)
SMALL_BYTES = 64 << 10
"""Blobs up to this size are also kept in memory."""
_MEMORY_BYTES = 32 << 20
_HASH_BYTES = 1 << 20


@dataclass(frozen=True, slots=True)
class _Opened:
    descriptor: int
    size: int
    stamp: str


class Storage:
    """Safe for concurrent use; several processes may share the directory."""

    def __init__(self, root: Path, catalog: Catalog, metrics: FacadeMetrics, *, max_bytes: int) -> None:
        self._files = DiskBlobStore(root)
        self._partial = root / "partial"
        self._catalog = catalog
        self._metrics = metrics
        self._max_bytes = max_bytes
        self._memory: MemoryCache[Digest, bytes] = MemoryCache(_MEMORY_BYTES)
        self._stamps: MemoryCache[Digest, str] = MemoryCache(100_000)
        self._uses: dict[Digest, tuple[int, float]] = {}

    def path(self, digest: Digest) -> Path:
        return self._files.path(digest)

    def partial_path(self, digest: Digest) -> Path:
        return self._partial / f"{digest.algorithm}-{digest.encoded}"

    def in_memory(self, digest: Digest) -> MemoryBlob | None:
        data = self._memory.get(digest)
        if data is None:
            return None
        self._used(digest)
        return MemoryBlob(data)

    async def open(self, digest: Digest, stack: contextlib.AsyncExitStack) -> MemoryBlob | FileBlob:
        """Verified bytes; closed with ``stack``. Raises BlobNotFound."""
        opened = await asyncio.to_thread(self._open, digest)
        stack.callback(os.close, opened.descriptor)
        if self._stamps.get(digest) != opened.stamp:
            await self._check(digest, opened)
        self._used(digest)
        if opened.size <= SMALL_BYTES:
            data = await asyncio.to_thread(os.pread, opened.descriptor, opened.size, 0)
            if Digest.of(data, digest.algorithm) != digest:
                await self._condemn(digest)
            self._memory.put(digest, data, len(data))
            return MemoryBlob(data, "disk")
        return FileBlob(opened.descriptor, opened.size)

    async def read(self, digest: Digest, limit_bytes: int) -> bytes:
        """A small blob, whole and verified. Raises BlobNotFound, also for one that is larger."""
        async with contextlib.AsyncExitStack() as stack:
            blob = self.in_memory(digest) or await self.open(digest, stack)
            if isinstance(blob, MemoryBlob):
                return blob.data
            if blob.size > limit_bytes:
                raise BlobNotFound(digest, f"what the cache has of up to {limit_bytes} bytes")
            return await asyncio.to_thread(os.pread, blob.descriptor, blob.size, 0)

    def _open(self, digest: Digest) -> _Opened:
        try:
            descriptor = os.open(self.path(digest), os.O_RDONLY | os.O_CLOEXEC)
        except FileNotFoundError as error:
            raise BlobNotFound(digest, "the cache") from error
        except OSError as error:
            raise CacheUnusable(str(self.path(digest)), error.strerror or str(error)) from error
        stat = os.fstat(descriptor)
        return _Opened(descriptor, stat.st_size, _stamp(stat))

    async def _check(self, digest: Digest, opened: _Opened) -> None:
        known = await self._catalog.known(digest)
        if known is None or known.stamp != opened.stamp:
            await self._verify(digest, opened)
        self._stamps.put(digest, opened.stamp, 1)

    async def _verify(self, digest: Digest, opened: _Opened) -> None:
        """Reads it through. Raises BlobNotFound for one that is corrupt, and is then gone."""
        if await asyncio.to_thread(_hash, opened.descriptor, digest) != digest:
            await self._condemn(digest)
        await self._catalog.verified(digest, opened.size, opened.stamp, time.time())

    async def scrub(self, before_s: float) -> bool:
        """Verifies one blob that was not verified since ``before_s``; False when there is none.

        A corrupt one is deleted, and fetched again when it is next asked for.
        """
        digest = await self._catalog.verified_before(before_s)
        if digest is None:
            return False
        self._stamps.drop(digest)
        async with contextlib.AsyncExitStack() as stack:
            try:
                opened = await asyncio.to_thread(self._open, digest)
            except BlobNotFound:
                await self._catalog.forget(digest, "its file is gone", time.time())
                return True
            stack.callback(os.close, opened.descriptor)
            with contextlib.suppress(BlobNotFound):
                await self._verify(digest, opened)
        return True

    async def _condemn(self, digest: Digest) -> None:
        _log.warning("cache_entry_corrupt", digest=digest)
        self._metrics.corrupt_entries.inc()
        await self.delete(digest, "corrupt")
        raise BlobNotFound(digest, "the cache")

    def _used(self, digest: Digest) -> None:
        times, _ = self._uses.get(digest, (0, 0.0))
        self._uses[digest] = (times + 1, time.time())

    async def note_uses(self) -> None:
        """Writes down what was used since the last time; eviction goes by it."""
        uses, self._uses = self._uses, {}
        if uses:
            await self._catalog.touch((digest, *use) for digest, use in uses.items())

    # ----- growing -----

    async def resume(self, digest: Digest) -> GrowingBlob | None:
        """What an earlier download left. Raises AlreadyStored when nothing is left to do."""
        if await asyncio.to_thread(self.path(digest).exists):
            raise AlreadyStored(digest)
        return await GrowingBlob.resume(self.partial_path(digest), digest)

    async def reserve(self, digest: Digest, size: int) -> GrowingBlob:
        """Makes room and a growing file. Raises CacheUnusable when there is no room."""
        await self._make_room(digest, size)
        try:
            return await GrowingBlob.create(self.partial_path(digest), digest, size)
        except CacheUnusable:
            await self._catalog.forget(digest, "no room on disk", time.time())
            raise

    async def _make_room(self, digest: Digest, size: int) -> None:
        await self.note_uses()
        victims = await self._catalog.reserve(digest, size, self._max_bytes, time.time())
        if victims is None:
            raise CacheUnusable(str(self._files.root), f"no room for {size} bytes within cache_max_bytes")
        for victim in victims:
            _log.info("cache_entry_evicted", digest=victim)
            self._memory.drop(victim)
            await self._files.delete(victim)

    async def publish(self, blob: GrowingBlob, source: str) -> None:
        before = await blob.publish(self.path(blob.digest))
        await self._written(blob.digest, blob.size, source, before)

    async def put(self, digest: Digest, data: bytes, source: str) -> None:
        """Stores a small blob that is at hand. Raises CacheUnusable or DigestMismatch."""
        if await asyncio.to_thread(self.path(digest).exists):
            return
        await self._make_room(digest, len(data))
        async with self._files.ingest(digest, len(data)) as writer:
            await writer.write(data)
            await writer.commit()
        await self._written(digest, len(data), source, None)
        if len(data) <= SMALL_BYTES:
            self._memory.put(digest, data, len(data))

    @property
    def scratch(self) -> Path:
        """Where files are made that `adopt` then takes; on the cache's own file system."""
        return self._files.root / "ingest"

    async def adopt(self, path: Path, digest: Digest, size: int, source: str) -> None:
        """Takes a file that was made and hashed here; ``path`` is gone afterwards. Raises CacheUnusable."""
        try:
            if await asyncio.to_thread(self.path(digest).exists):
                return
            await self._make_room(digest, size)
            before = await asyncio.to_thread(_publish_file, path, self.path(digest))
            await self._written(digest, size, source, before)
        except OSError as error:
            raise CacheUnusable(str(path), error.strerror or str(error)) from error
        finally:
            await asyncio.to_thread(path.unlink, missing_ok=True)

    async def _written(self, digest: Digest, size: int, source: str, before: os.stat_result | None) -> None:
        """Notes the stamp, unless somebody wrote to the file since it was verified (``before``)."""
        after = await asyncio.to_thread(self.path(digest).stat)
        untouched = before is not None and _content_stamp(before) == _content_stamp(after)
        stamp = _stamp(after) if untouched else ""
        await self._catalog.stored(digest, size, source, stamp, time.time())
        self._stamps.put(digest, stamp, 1)

    def forget(self, digest: Digest) -> None:
        """Drops what this process remembers of a blob."""
        self._memory.drop(digest)
        self._stamps.drop(digest)

    async def delete(self, digest: Digest, reason: str) -> None:
        """Absent is success; readers that have it open finish undisturbed."""
        self.forget(digest)
        await self._files.delete(digest)
        await self._catalog.forget(digest, reason, time.time())


def _publish_file(path: Path, target: Path) -> os.stat_result:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fchmod(descriptor, 0o644)
        os.fsync(descriptor)
        before = os.fstat(descriptor)
    finally:
        os.close(descriptor)
    target.parent.mkdir(parents=True, exist_ok=True)
    durable_rename(path, target)
    return before


def _content_stamp(stat: os.stat_result) -> tuple[int, int, int]:
    """What a rename leaves as it is."""
    return stat.st_ino, stat.st_size, stat.st_mtime_ns


def _stamp(stat: os.stat_result) -> str:
    return ":".join(map(str, (*_content_stamp(stat), stat.st_ctime_ns)))


def _hash(descriptor: int, digest: Digest) -> Digest:
    hasher, at = digest.hasher(), 0
    while data := os.pread(descriptor, _HASH_BYTES, at):
        hasher.update(data)
        at += len(data)
    return Digest(f"{digest.algorithm}:{hasher.hexdigest()}")
