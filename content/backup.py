"""A tree to a committed snapshot.

1. Read the pointer; refuse a tree whose restore did not finish, or whose workspace was started elsewhere.
2. Walk, compare with the previous index, and plan what the store can copy (`content.reuse`).
3. Stream the rest as parts of one upload under a key never used before; copied ranges go beside them.
4. Complete, and prove: the store's size and CRC-32 must be ours.
5. Store the index, then move the pointer on the condition that no other backup came between.

Until the last step nothing is visible. A failure aborts the upload; with a journal, one that may pass, a
cancellation or a kill leaves it to the next backup, which continues it (`content.resume`).
"""

import asyncio
import contextlib
import os
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO, Self

from content import increment, keys, resume, transfer
from content.archive.excludes import Excludes
from content.archive.id_map import IdMap
from content.archive.index import Header, LineSpool, Piece, assemble
from content.archive.listed import Listed
from content.archive.parts import PartSink
from content.archive.readahead import Readahead
from content.archive.walk import LeftOut, Walk
from content.archive.writer import ArchiveWriter
from content.catalog import Catalog
from content.disk_time import DiskTime
from content.errors import LocalDiskError, ObjectCorrupt, StoreRefused, UploadGone
from content.journal import JournalDirectory, OpenUpload, UploadJournal
from content.keys import Workspace
from content.objects.base import MultipartStore, ObjectInfo, Upload
from content.progress import Progress
from content.rates import DiskPace
from content.snapshot import Pointer, Snapshot
from content.staging import sync_file_system
from content.tree import check_complete
from content.upload import PartUploader
from servicekit.backoff import is_retryable
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
    """What is in the snapshot, what is not, and what it took. ``resumed_bytes`` had been sent or copied by
    a backup that did not end.
    """

    snapshot: Snapshot
    sent_bytes: int
    copied_bytes: int
    files_read: int
    left_out: Sequence[LeftOut]
    duration_s: float
    note: str | None = None
    resumed_bytes: int = 0


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
    journals: JournalDirectory | None = None,
    clock: Clock = SystemClock(),
    pace: DiskPace | None = None,
) -> BackupResult:
    """Returns when the snapshot is committed; reads as fast as ``pace`` lets it.

    Raises TreeUnfinished, Fenced, PointerMoved, LocalDiskError, WorkspaceBusy, and what the store raises.
    """
    started_s = clock.monotonic()
    await asyncio.to_thread(check_complete, request.tree)
    async with contextlib.AsyncExitStack() as stack:
        journal = None
        if journals is not None:
            journal = await stack.enter_async_context(journals.open(store.name, request.workspace))
        catalog = Catalog(store, request.workspace)
        held = await catalog.load()
        incarnation = held.pointer.check_fence(request.incarnation)
        run = _Run(request, store, journal, progress or Progress(), clock, pace or DiskPace())
        await stack.enter_async_context(run)
        await run.plan(held.pointer, incarnation)
        info, crc32 = await run.upload()
        await prove(store, info, crc32)
        index = await run.store_index(info.size_bytes, crc32)
        snapshot = run.snapshot(info, crc32, index, clock.time())
        await catalog.commit(held, snapshot)
        if journal is not None:
            await journal.end()
    return BackupResult(
        snapshot=snapshot,
        sent_bytes=run.sent_bytes + index.size_bytes,
        copied_bytes=run.copied_bytes,
        files_read=run.written.files_read,
        left_out=run.written.left_out,
        duration_s=clock.monotonic() - started_s,
        note="; ".join(run.notes) or None,
        resumed_bytes=run.resumed_bytes,
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
    """One backup under way."""

    def __init__(
        self,
        request: BackupRequest,
        store: MultipartStore,
        journal: UploadJournal | None,
        progress: Progress,
        clock: Clock,
        pace: DiskPace,
    ) -> None:
        self._request = request
        self._store = store
        self._journal = journal
        self._progress = progress
        self._clock = clock
        self._pace = pace
        self._snapshot_id = keys.new_snapshot_id(clock.time())
        self._parent: Snapshot | None = None
        self._incarnation = 0
        self._started_ns = 0
        self._increment: increment.Increment | None = None
        self._resumed: resume.Resumed | None = None
        self._upload: Upload | None = None
        self.written = _Written(LineSpool())
        self.notes: list[str] = []
        self.sent_bytes = 0
        self.resumed_bytes = 0

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, _: object, error: BaseException | None, __: object) -> None:
        if error is not None and (self._journal is None or not _may_continue(error)):
            await self._give_up()
        self.written.spool.close()
        if self._increment is not None:
            self._increment.close()

    async def _give_up(self) -> None:
        if self._upload is None:
            return
        with contextlib.suppress(Exception):
            await asyncio.shield(self._store.abort_upload(self._upload))
        if self._journal is not None:
            await asyncio.shield(self._journal.end())

    @property
    def copied_bytes(self) -> int:
        return self._increment.copied_bytes if self._increment is not None else 0

    async def plan(self, pointer: Pointer, incarnation: int) -> None:
        """Finds out what the store can copy, and what it has of a backup that did not end."""
        self._progress.phase = "comparing"
        self._parent, self._incarnation = pointer.latest, incarnation
        await asyncio.to_thread(_write_back, self._request.tree)
        self._started_ns = time.time_ns()
        try:
            self._increment = await increment.plan(
                self._store,
                self._parent,
                str(self._request.tree),
                self._request.excludes,
                self._request.ids,
                self._pace.disk,
            )
        except increment.FullBackupNeeded as reason:
            self.notes.append(f"full backup: {reason}")
        if self._journal is not None and (pending := await self._journal.pending()) is not None:
            await self._take_over(self._journal, pending, pointer)

    async def _take_over(self, journal: UploadJournal, pending: OpenUpload, pointer: Pointer) -> None:
        if any(known.id == pending.snapshot_id for known in pointer.snapshots):
            await journal.end()  # it was killed after its commit
            return
        copies, now_s = self._increment is not None, self._clock.time()
        try:
            self._resumed = await resume.find(
                self._store, journal, pending, pointer, copies=copies, now_s=now_s
            )
        except resume.CannotResume as reason:
            self.notes.append(f"an interrupted upload was not continued: {reason}")
            await resume.abandon(self._store, self._request.workspace, pending)
            await journal.end()

    async def upload(self) -> tuple[ObjectInfo, int]:
        """The tar, completed, and its CRC-32."""
        self._progress.phase = "sending"
        if self._resumed is not None:
            try:
                return await self._send(self._resumed)
            except (UploadGone, StoreRefused, ObjectCorrupt) as error:
                self.notes.append(f"an interrupted upload could not be continued: {error}")
                await resume.abandon(self._store, self._request.workspace, self._resumed)
                self.written.spool.close()
                self.written = _Written(LineSpool())
        return await self._send(await self._begin())

    async def _begin(self) -> resume.Resumed:
        copies = self._increment is not None
        key = keys.tar_key(self._request.workspace, self._snapshot_id)
        if self._journal is not None:
            parent = self._parent.id if self._parent else None
            await self._journal.begin(OpenUpload(self._snapshot_id, key, copies, parent, self._clock.time()))
        upload = await self._store.create_upload(key, copies=copies)
        if self._journal is not None:
            await self._journal.opened(upload)
        return resume.Resumed(upload, self._snapshot_id)

    async def _send(self, into: resume.Resumed) -> tuple[ObjectInfo, int]:
        disk = DiskTime(self._pace.disk)
        parts = PartUploader(
            self._store,
            into.upload,
            disk=disk,
            concurrency=self._store.properties.concurrency,
            held=into.parts,
            journal=self._journal,
            read=self._pace.read,
        )
        self._upload = into.upload
        try:
            async with parts.running():
                if self._increment is not None:
                    parts.copy(self._increment.source, self._increment.ranges)
                await parts.fill(lambda: self._write(parts, disk))
        finally:
            self.sent_bytes += parts.sent_bytes
        made = await transfer.complete(self._store, parts)
        self._snapshot_id = into.snapshot_id
        self.resumed_bytes = parts.resumed_bytes
        return made

    def _write(self, parts: PartUploader, disk: DiskTime) -> None:
        """Runs in the writing thread."""
        disk.begin()
        request, written, base = self._request, self.written, self._increment
        first = len(base.ranges) + 1 if base else 1
        sink = PartSink(parts.emit, parts.lend, number=first, offset=self.copied_bytes)
        writer = ArchiveWriter(
            sink,
            written.spool.add,
            ids=request.ids,
            first_segment=base.next_segment if base else 0,
            look=disk.look,
        )
        tree = str(request.tree)
        excludes = Excludes(request.excludes)
        walk = Listed(tree, base.write) if base else Walk(tree, excludes)
        ahead = (
            contextlib.nullcontext() if base else Readahead(tree, excludes, is_held=lambda: disk.is_needed)
        )
        try:
            with ahead as readahead:
                for found in readahead.following(walk) if readahead else walk:
                    writer.add(found)
                    disk.look()
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
            self._snapshot_id,
            tar_bytes,
            crc32,
            self.written.spool.count,
            self._started_ns,
            tuple(self.written.pieces),
            self._request.ids,
        )
        file: IO[bytes] = await asyncio.to_thread(assemble, header, self.written.spool)
        try:
            key = keys.index_key(self._request.workspace, self._snapshot_id)
            return await transfer.put_file(self._store, key, file)
        finally:
            file.close()

    def snapshot(self, tar: ObjectInfo, crc32: int, index: transfer.StoredFile, created_s: float) -> Snapshot:
        """The record to commit."""
        return Snapshot(
            id=self._snapshot_id,
            created_s=created_s,
            tar_key=tar.key,
            tar_bytes=tar.size_bytes,
            tar_crc32=crc32,
            index_key=index.key,
            index_bytes=index.size_bytes,
            index_sha256=index.sha256,
            entries=self.written.spool.count,
            content_bytes=self.written.content_bytes,
            left_out=len(self.written.left_out),
            incarnation=self._incarnation,
            parent=self._parent.id if self._parent else None,
            copied_bytes=self.copied_bytes,
        )


def _may_continue(error: BaseException) -> bool:
    """Whether the next backup should find the upload: what stopped this one was not the upload's fault."""
    return isinstance(error, (asyncio.CancelledError, KeyboardInterrupt)) or is_retryable(error)
