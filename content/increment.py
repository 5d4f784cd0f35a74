"""What a backup can take over from the previous snapshot, and the index that results.

`plan` reads the previous index twice beside the tree (once to compare, once to find what its layout drops);
`merged` joins it with the lines of what was written. Blocking parts run in threads.
"""

import asyncio
import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import IO

from content import sidecar
from content.archive import reuse
from content.archive.compare import Changes, compare, is_joined, rejoin
from content.archive.excludes import Excludes
from content.archive.id_map import IdMap
from content.archive.index import Entry, IndexReader, LineSpool, Piece, Places, parse_line
from content.archive.reuse import CopyRange, Layout, Member
from content.archive.walk import ROOT, LeftOut, Walk, path_key
from content.disk_time import DiskTime, DiskTurns
from content.errors import ContentError
from content.objects.base import MultipartStore, ObjectInfo
from content.snapshot import Snapshot

_FEW_ENTRIES = 1000


class FullBackupNeeded(Exception):
    """Nothing, or too little, can be taken over."""


@dataclass(slots=True)
class Increment:
    """A plan: ``ranges`` are copied from ``source``, ``write`` is read and sent after them."""

    index: IO[bytes]
    source: ObjectInfo
    parent: Snapshot
    layout: Layout
    pieces: list[Piece]
    ranges: list[CopyRange]
    write: set[str]
    gone: set[str]
    next_segment: int
    left_out: list[LeftOut] = field(default_factory=list)

    @property
    def copied_bytes(self) -> int:
        return self.layout.copied_bytes

    def close(self) -> None:
        self.index.close()


async def plan(
    store: MultipartStore,
    parent: Snapshot | None,
    tree: str,
    excludes: Sequence[str],
    ids: IdMap | None,
    turns: DiskTurns,
) -> Increment:
    """Raises FullBackupNeeded with the reason."""
    if parent is None:
        raise FullBackupNeeded("the first backup of this workspace")
    if not store.properties.part_copy:
        raise FullBackupNeeded("the store cannot copy parts")
    if parent.tar_bytes < reuse.MIN_COPY_BYTES:
        raise FullBackupNeeded("the previous snapshot is too small to copy from")
    index = tempfile.TemporaryFile(prefix="lapstrake-index-")  # noqa: SIM115 (belongs to the plan)
    try:
        source = await _fetch(store, parent, index)
        disk = DiskTime(turns)
        try:
            return await asyncio.to_thread(_plan, index, source, parent, tree, excludes, ids, disk)
        finally:
            disk.release()
    except BaseException:
        index.close()
        raise


async def _fetch(store: MultipartStore, parent: Snapshot, index: IO[bytes]) -> ObjectInfo:
    try:
        source = await store.stat(parent.tar_key)
        if source.size_bytes != parent.tar_bytes:
            raise FullBackupNeeded("the previous snapshot is damaged")
        await sidecar.fetch(store, parent, index)
    except ContentError as error:
        if error.retryable:
            raise
        raise FullBackupNeeded(f"the previous snapshot cannot be used: {error}") from error
    return source


def _plan(
    index: IO[bytes],
    source: ObjectInfo,
    parent: Snapshot,
    tree: str,
    excludes: Sequence[str],
    ids: IdMap | None,
    disk: DiskTime,
) -> Increment:
    reader = IndexReader(index)
    if reader.header.ids != ids:
        raise FullBackupNeeded("the id map is another one")
    walk = Walk(tree, Excludes(excludes))
    limit = max(_FEW_ENTRIES, parent.entries // 2)
    changes = compare(disk.paced(walk), reader.lines(), reader.header.trusted_before_ns, limit=limit)
    if changes is None:
        raise FullBackupNeeded("most of the tree has changed")
    pieces = reader.header.pieces
    while True:
        if changes.torn:
            index.seek(0)
            rejoin(changes, IndexReader(index).lines())
        layout = reuse.lay_out(pieces, changes.cut, changes.replaced)
        if layout.copied_bytes < reuse.MIN_COPIED_SHARE * parent.tar_bytes:
            raise FullBackupNeeded("too little of the previous snapshot could be copied")
        write = set(changes.write)
        gone = {entry.path for entry in changes.cut} - write
        dropped, members, torn = _dropped(index, layout, changes, gone)
        if not torn:
            break
        changes.torn |= torn  # a name that moves to the tail takes the other names of its file along
    write |= dropped
    write |= {path.rpartition("/")[0] or ROOT for path in write | gone if path != ROOT}
    write -= gone
    copied = reuse.new_pieces(layout, pieces, members)
    return Increment(
        index=index,
        source=source,
        parent=parent,
        layout=layout,
        pieces=copied,
        ranges=reuse.copy_ranges(layout, copied),
        write=write,
        gone=gone,
        next_segment=max(piece.segment for piece in pieces) + 1,
        left_out=walk.left_out,
    )


def _dropped(
    index: IO[bytes], layout: Layout, changes: Changes, gone: set[str]
) -> tuple[set[str], list[Member], set[int]]:
    """Unchanged paths that the layout does not take over, all members of pieces that it splits, and inodes of
    several names among those paths.
    """
    index.seek(0)
    reader = IndexReader(index)
    pieces = reader.header.pieces
    split = {piece.segment for piece in pieces if not _whole(layout, piece)}
    if not split:
        return set(), [], set()
    places = Places(pieces)
    paths: set[str] = set()
    members: list[Member] = []
    torn: set[int] = set()
    for entry in reader.entries():
        if entry.segment in split:
            offset = places.tar_offset(entry.segment, entry.at)
            members.append(Member(offset, entry.length, entry.crc32))
            if not layout.holds(offset) and entry.path not in gone and entry.path not in changes.write:
                paths.add(entry.path)
                if is_joined(entry):
                    torn.add(entry.ino)
    for piece in pieces:
        if piece.segment in split:
            members += [
                Member(piece.tar_offset + dead.at - piece.start, dead.length, dead.crc32)
                for dead in piece.dead
            ]
    members.sort(key=lambda member: member.old_offset)
    return paths, members, torn


def _whole(layout: Layout, piece: Piece) -> bool:
    last = piece.tar_offset + piece.length
    return any(start <= piece.tar_offset and last <= stop for start, stop in layout.kept)


@dataclass(slots=True)
class Merged:
    """The lines of the new index, in path order, and the pieces with their dead members."""

    spool: LineSpool
    pieces: list[Piece]
    content_bytes: int


def merged(increment: Increment, written: LineSpool) -> Merged:
    """Old lines that still hold, and the written ones. Blocking."""
    increment.index.seek(0)
    reader = IndexReader(increment.index)
    places = Places(reader.header.pieces)
    spool = LineSpool()
    dead: list[Entry] = []
    content_bytes = increment.parent.content_bytes
    fresh = _keyed(written.lines())
    key, line = next(fresh)
    for raw in reader.lines():
        old = parse_line(raw)
        old_key = path_key(old.path)
        while line is not None and key < old_key:
            spool.add(line)
            key, line = next(fresh)
        held = increment.layout.holds(places.tar_offset(old.segment, old.at))
        if line is not None and key == old_key:
            if held:
                dead.append(old)
        elif held and old.path not in increment.gone:
            spool.add(raw.decode().rstrip("\n"))
            continue
        content_bytes -= old.size if old.type == "f" and not old.link else 0
    while line is not None:
        spool.add(line)
        key, line = next(fresh)
    spool.finish()
    return Merged(spool, reuse.with_dead(increment.pieces, dead), content_bytes)


def _keyed(lines: Iterator[str]) -> Iterator[tuple[str, str | None]]:
    for line in lines:
        yield path_key(parse_line(line).path), line
    while True:
        yield "", None
