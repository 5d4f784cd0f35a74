"""A snapshot, or a part of one, to a new directory.

1. The index says what there is: quota, free space and the paths asked for are checked before any byte moves.
2. The tar is fetched in windows of whole members by several ranged reads at once, and each member is checked
   against its CRC-32 before it is written; what was damaged on the way is fetched once more.
3. Everything goes into a directory beside the target that is marked as unfinished; only when all is there,
   with owners, modes, attributes and times, is the mark removed and the directory swapped in.
"""

import asyncio
import os
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from content import sidecar, transfer, workers
from content.archive.extract import Limits, TreeWriter, safe_path
from content.archive.id_map import IdMap
from content.archive.index import Entry, IndexReader
from content.archive.tar_format import DIRECTORY, Member
from content.archive.walk import LeftOut
from content.catalog import Catalog
from content.errors import ArchiveCorrupt, LocalDiskError
from content.extractors import WORTHWHILE_WINDOWS, Extractors
from content.keys import Workspace
from content.large_files import Archive, restore_large
from content.objects.base import ObjectSource, ObjectStore
from content.progress import Progress
from content.rates import DiskPace
from content.selection import Selection, Window, choose
from content.snapshot import Snapshot
from content.staging import Staging
from servicekit.clock import Clock, SystemClock
from servicekit.throttle import Bucket


@dataclass(frozen=True, slots=True)
class RestoreRequest:
    """``snapshot_id`` None means the latest; ``only`` names paths, each with all below it, none all."""

    target: Path
    workspace: Workspace
    snapshot_id: str | None = None
    only: Sequence[str] = ()
    replace: bool = False
    ids: IdMap | None = None
    sync: bool = True


@dataclass(frozen=True, slots=True)
class RestoreResult:
    """``bytes`` were fetched; ``left_out`` could not be restored here; ``rebuilt_index``: it was lost."""

    snapshot: Snapshot
    entries: int
    bytes: int
    left_out: Sequence[LeftOut]
    duration_s: float
    rebuilt_index: bool = False


async def restore(
    request: RestoreRequest,
    store: ObjectStore,
    *,
    progress: Progress | None = None,
    clock: Clock = SystemClock(),
    pace: DiskPace | None = None,
) -> RestoreResult:
    """Returns when the target is there, whole; writes as fast as ``pace`` lets it.

    Raises SnapshotNotFound, WorkspaceEmpty, PathNotInSnapshot, TargetNotEmpty, ArchiveCorrupt, ObjectCorrupt,
    LocalDiskError, and what the store raises; the target is then as it was.
    """
    started_s = clock.monotonic()
    snapshot = await Catalog(store, request.workspace).snapshot(request.snapshot_id)
    selection = await select(store, snapshot, request.only)
    progress = progress or Progress()
    progress.phase, progress.total_bytes = "receiving", selection.tar_bytes
    progress.total_entries = selection.entries
    async with Staging(request.target, replace=request.replace, sync=request.sync) as staging:
        place = Place(staging.descriptor, str(request.target), request.ids)
        tree = await fill(place, store, snapshot, selection, progress=progress, pace=pace)
        await staging.commit()
    return RestoreResult(
        snapshot=snapshot,
        entries=tree.entries,
        bytes=progress.bytes,
        left_out=tree.left_out,
        duration_s=clock.monotonic() - started_s,
        rebuilt_index=selection.rebuilt,
    )


@dataclass(frozen=True, slots=True)
class Place:
    """Where to restore: an open directory, and its name for messages."""

    descriptor: int
    name: str
    ids: IdMap | None = None


async def fill(
    place: Place,
    store: ObjectStore,
    snapshot: Snapshot,
    selection: Selection,
    *,
    progress: Progress,
    pace: DiskPace | None = None,
) -> TreeWriter:
    """Restores ``selection`` into an unfinished directory. Raises as `restore`."""
    limits = Limits.of_free_space(place.descriptor, devices=os.geteuid() == 0)
    if selection.content_bytes > limits.bytes:
        reason = f"needs {selection.content_bytes} bytes, {limits.bytes} are free"
        raise LocalDiskError(place.name, reason)
    if selection.entries > limits.entries:
        raise LocalDiskError(place.name, f"needs {selection.entries} inodes, {limits.entries} are free")
    tree = TreeWriter(place.descriptor, limits, where=place.name, ids=place.ids)
    try:
        for entry in selection.above:
            tree.add(_directory(entry, selection.ids), ())
        await _extract(store, snapshot, selection, tree, progress, (pace or DiskPace()).write)
        await asyncio.to_thread(tree.finish)
    finally:
        tree.close()
    return tree


def _directory(entry: Entry, ids: IdMap | None) -> Member:
    uid, gid = (entry.uid, entry.gid) if ids is None else ids.to_archive(entry.path, entry.uid, entry.gid)
    return Member(os.fsencode(entry.path), DIRECTORY, entry.mode, uid, gid, 0, entry.mtime_ns)


async def select(
    store: ObjectSource, snapshot: Snapshot, only: Sequence[str], *, rebuild: bool = True
) -> Selection:
    """What of ``snapshot`` is wanted, and where in the tar it lies. A lost index is made again from the tar,
    unless ``rebuild`` is off.
    """
    wanted = [os.fsdecode(safe_path(os.fsencode(path))) for path in only]
    with tempfile.TemporaryFile(prefix="lapstrake-index-") as file:
        rebuilt = False
        if rebuild:
            rebuilt = await sidecar.fetch_or_rebuild(store, snapshot, file)
        else:
            await sidecar.fetch(store, snapshot, file)
        selection = await asyncio.to_thread(lambda: choose(IndexReader(file), wanted, snapshot.id))
        selection.rebuilt = rebuilt
        return selection


async def _extract(
    store: ObjectSource,
    snapshot: Snapshot,
    selection: Selection,
    tree: TreeWriter,
    progress: Progress,
    written: Bucket,
) -> None:
    held = sum(not window.is_streamed for window in selection.windows)
    processes = len(os.sched_getaffinity(0)) if held >= WORTHWHILE_WINDOWS else 0

    archive, at_once = Archive(store, snapshot.tar_key), store.properties.concurrency

    async with Extractors(tree, snapshot.tar_key, processes=processes, windows=at_once) as extractors:

        async def restored(window: Window) -> None:
            if window.is_streamed:
                await restore_large(archive, window, tree, written)
            else:
                await _restore_window(store, snapshot, window, extractors, written)
            progress.bytes += window.span.length
            progress.entries += len(window.offsets)

        await workers.each(selection.windows, restored, concurrency=at_once)
        await extractors.hand_over()


async def _restore_window(
    store: ObjectSource, snapshot: Snapshot, window: Window, extractors: Extractors, written: Bucket
) -> None:
    async def fetch(room: memoryview) -> None:
        await transfer.get_span(store, snapshot.tar_key, window.span, room)
        await written.acquire(len(room))

    try:
        await extractors.write(window, fetch)
    except ArchiveCorrupt:
        await extractors.write(window, fetch)
