"""A tree to a committed snapshot.

1. Read the pointer; refuse a tree whose restore did not finish, or whose workspace was started elsewhere.
2. Walk, compare with the previous index, and plan what the store can copy (`content.reuse`).
3. Stream the rest as parts of one upload under a key never used before; copied ranges go beside them.
4. Complete, and prove: the store's size and CRC-32 must be ours.
5. Store the index, then move the pointer on the condition that no other backup came between.

Until the last step nothing is visible; a failure aborts the upload.
"""

import asyncio
import contextlib
import os
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO, Self

from content import increment, keys, transfer
from content.archive.excludes import Excludes
from content.archive.id_map import IdMap
from content.archive.index import Header, LineSpool, Piece, assemble
from content.archive.listed import Listed
from content.archive.parts import PartSink
from content.archive.walk import LeftOut, Walk
from content.archive.writer import ArchiveWriter
from content.catalog import Catalog
from content.errors import LocalDiskError, ObjectCorrupt
from content.keys import Workspace
from content.objects.base import MultipartStore, ObjectInfo
from content.progress import Progress
from content.rates import DiskPace
from content.snapshot import Snapshot
from content.staging import sync_file_system
from content.tree import check_complete
from content.upload import PartUploader
from servicekit.clock import Clock, SystemClock


@dataclass(frozen=True, slots=True)
class BackupRequest:
    """``incarnation`` None means: whatever the pointer has."""

    tree: Path
    workspace: Workspace
    excludes: Sequence[str] = ()
    incarnation: int | None = None
    ids: IdMap | None = None


@dataclass(frozen=True, slots=True)
class BackupResult:
    """What is in the snapshot, what is not, and what it took."""

    snapshot: Snapshot
    sent_bytes: int
    copied_bytes: int
    files_read: int
    left_out: Sequence[LeftOut]
    duration_s: float
    note: str | None = None


@dataclass(slots=True)
class _Written:
    """What the writing thread leaves behind."""

    spool: LineSpool
    pieces: list[Piece] = field(default_factory=list)
    left_out: list[LeftOut] = field(default_factory=list)
    content_bytes: int = 0
    files_read: int = 0


async def back_up(
    request: BackupRequest,
    store: MultipartStore,
    *,
    progress: Progress | None = None,
    clock: Clock = SystemClock(),
    pace: DiskPace | None = None,
) -> BackupResult:
    """Returns when the snapshot is committed; reads as fast as ``pace`` lets it.

    Raises TreeUnfinished, Fenced, PointerMoved, LocalDiskError, and what the store raises.
    """
    started_s = clock.monotonic()
    await asyncio.to_thread(check_complete, request.tree)
    catalog = Catalog(store, request.workspace)
    held = await catalog.load()
    incarnation = held.pointer.check_fence(request.incarnation)
    parent = held.pointer.latest
    run = _Run(request, store, progress or Progress(), keys.new_snapshot_id(clock.time()), pace or DiskPace())
    async with run:
        note = await run.plan(parent)
        info, crc32 = await run.upload()
        await prove(store, info, crc32)
        index = await run.store_index(info.size_bytes, crc32)
    snapshot = Snapshot(
        id=run.snapshot_id,
        created_s=clock.time(),
        tar_key=info.key,
        tar_bytes=info.size_bytes,
        tar_crc32=crc32,
        index_key=index.key,
        index_bytes=index.size_bytes,
        index_sha256=index.sha256,
        entries=run.written.spool.count,
        content_bytes=run.written.content_bytes,
        left_out=len(run.written.left_out),
        incarnation=incarnation,
        parent=parent.id if parent else None,
        copied_bytes=run.copied_bytes,
    )
    await catalog.commit(held, snapshot)
    return BackupResult(
        snapshot=snapshot,
        sent_bytes=run.sent_bytes + index.size_bytes,
        copied_bytes=run.copied_bytes,
        files_read=run.written.files_read,
        left_out=run.written.left_out,
        duration_s=clock.monotonic() - started_s,
        note=note,
    )


def _write_back(tree: Path) -> None:
    """Makes the file system stamp a new time on whatever is stored to a mapped page from now on."""
    descriptor = os.open(tree, os.O_RDONLY | os.O_DIRECTORY)
    try:
        sync_file_system(descriptor)
    finally:
        os.close(descriptor)


async def prove(store: MultipartStore, made: ObjectInfo, crc32: int) -> None:
    """Asks the store what it has. Raises ObjectCorrupt when that is not what was sent."""
    there = await store.stat(made.key)
    if there.size_bytes != made.size_bytes:
        reason = f"the store has {there.size_bytes} bytes of the {made.size_bytes} sent"
        raise ObjectCorrupt(made.key, reason)
    if there.crc32 is not None and there.crc32 != crc32:
        raise ObjectCorrupt(made.key, "the store has other bytes than those sent")


class _Run:
    """One backup under way; as a context manager it aborts the upload unless that was completed."""

    def __init__(
        self,
        request: BackupRequest,
        store: MultipartStore,
        progress: Progress,
        snapshot_id: str,
        pace: DiskPace,
    ) -> None:
        self._request = request
        self._store = store
        self._progress = progress
        self._pace = pace
        self.snapshot_id = snapshot_id
        self._started_ns = 0
        self._increment: increment.Increment | None = None
        self.written = _Written(LineSpool())
        self.sent_bytes = 0

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_: object) -> None:
        self.written.spool.close()
        if self._increment is not None:
            self._increment.close()

    @property
    def copied_bytes(self) -> int:
        return self._increment.copied_bytes if self._increment is not None else 0

    async def plan(self, parent: Snapshot | None) -> str | None:
        """Finds out what the store can copy; returns why nothing, when it is nothing."""
        self._progress.phase = "comparing"
        await asyncio.to_thread(_write_back, self._request.tree)
        self._started_ns = time.time_ns()
        try:
            self._increment = await increment.plan(
                self._store, parent, str(self._request.tree), self._request.excludes
            )
        except increment.FullBackupNeeded as reason:
            return f"full backup: {reason}"
        return None

    async def upload(self) -> tuple[ObjectInfo, int]:
        """The tar, completed, and its CRC-32."""
        self._progress.phase = "sending"
        key = keys.tar_key(self._request.workspace, self.snapshot_id)
        upload = await self._store.create_upload(key, copies=self._increment is not None)
        try:
            parts = PartUploader(
                self._store, upload, concurrency=self._store.properties.concurrency, read=self._pace.read
            )
            async with parts.running():
                if self._increment is not None:
                    parts.copy(self._increment.source, self._increment.ranges)
                await parts.fill(lambda: self._write(parts))
            self.sent_bytes = parts.sent_bytes
            return await transfer.complete(self._store, parts)
        except BaseException:
            with contextlib.suppress(Exception):
                await asyncio.shield(self._store.abort_upload(upload))
            raise

    def _write(self, parts: PartUploader) -> None:
        """Runs in the writing thread."""
        request, written, base = self._request, self.written, self._increment
        first = len(base.ranges) + 1 if base else 1
        sink = PartSink(parts.emit, parts.lend, number=first, offset=self.copied_bytes)
        writer = ArchiveWriter(
            sink, written.spool.add, ids=request.ids, first_segment=base.next_segment if base else 0
        )
        tree = str(request.tree)
        walk = Listed(tree, base.write) if base else Walk(tree, Excludes(request.excludes))
        try:
            for found in walk:
                writer.add(found)
                self._progress.bytes = sink.offset
                self._progress.entries = written.spool.count
        except OSError as error:
            raise LocalDiskError.from_os(tree, error) from error
        writer.close()
        written.spool.finish()
        written.pieces = writer.pieces
        written.left_out = (base.left_out if base else []) + walk.left_out + writer.left_out
        written.content_bytes = writer.content_bytes
        written.files_read = writer.files_read
        if base is not None:
            self._merge(base)

    def _merge(self, base: increment.Increment) -> None:
        written = self.written
        whole = increment.merged(base, written.spool)
        written.spool.close()
        written.spool = whole.spool
        written.pieces = whole.pieces + written.pieces
        written.content_bytes += whole.content_bytes

    async def store_index(self, tar_bytes: int, crc32: int) -> transfer.StoredFile:
        self._progress.phase = "committing"
        header = Header(
            self.snapshot_id,
            tar_bytes,
            crc32,
            self.written.spool.count,
            self._started_ns,
            tuple(self.written.pieces),
        )
        file: IO[bytes] = await asyncio.to_thread(assemble, header, self.written.spool)
        try:
            key = keys.index_key(self._request.workspace, self.snapshot_id)
            return await transfer.put_file(self._store, key, file)
        finally:
            file.close()
