"""An index made again from the tar alone, for one that was lost.

What the tar does not say stays unknown: ctime and inode are 0, so the next backup believes none of it and
reads every file again. Entries go through a temporary SQLite table, which sorts them on disk: in the tar they
are in the order of several backups, and a later member replaces an earlier one of its name.
"""

import contextlib
import os
import sqlite3
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import IO

from content.archive import crc32
from content.archive.index import Dead, Entry, Header, LineSpool, Piece, assemble, line_of, parse_line
from content.archive.reader import Source, TarReader
from content.archive.tar_format import (
    BLOCK_DEVICE,
    CHAR,
    DIRECTORY,
    FIFO,
    HARD_LINK,
    REGULAR,
    SYMLINK,
    Member,
)
from content.archive.walk import ROOT, path_key
from content.archive.writer import SEGMENT_BYTES
from content.errors import LocalDiskError, MalformedArchive, ObjectCorrupt

_TYPES = {
    REGULAR: "f",
    HARD_LINK: "f",
    DIRECTORY: "d",
    SYMLINK: "l",
    FIFO: "p",
    CHAR: "c",
    BLOCK_DEVICE: "b",
}


class _Summed:
    """Passes bytes on and sums them."""

    def __init__(self, source: Source) -> None:
        self._source = source
        self.crc32 = 0

    def read(self, size_bytes: int) -> bytes | memoryview:
        data = self._source.read(size_bytes)
        self.crc32 = crc32.of(data, self.crc32)
        return data

    def take(self) -> int:
        """The CRC-32 of what was read since the last call."""
        taken, self.crc32 = self.crc32, 0
        return taken


@dataclass(slots=True)
class _Segments:
    """Whole members in runs, as the writer makes them."""

    offset: int = 0
    number: int = 0
    crc32: int = 0
    pieces: list[Piece] = field(default_factory=list)
    dead: dict[int, list[Dead]] = field(default_factory=dict)

    def add(self, end: int, crc: int, length: int) -> None:
        self.crc32 = crc32.combine(self.crc32, crc, length)
        if end - self.offset >= SEGMENT_BYTES:
            self.close(end)

    def close(self, end: int) -> None:
        if end > self.offset:
            self.pieces.append(Piece(self.number, 0, end - self.offset, self.offset, self.crc32))
            self.offset, self.number, self.crc32 = end, self.number + 1, 0

    def finished(self) -> tuple[Piece, ...]:
        return tuple(
            Piece(p.segment, p.start, p.length, p.tar_offset, p.crc32, tuple(self.dead.get(p.segment, ())))
            for p in self.pieces
        )


def rebuild(source: Source, snapshot_id: str, where: str, *, tar_bytes: int, tar_crc32: int) -> IO[bytes]:
    """The index of the tar that ``source`` reads, in a temporary file at its start. Blocking.

    Raises MalformedArchive, ObjectCorrupt when the tar is not the one that was written, LocalDiskError.
    """
    try:
        return _rebuild(source, snapshot_id, where, tar_bytes, tar_crc32)
    except sqlite3.Error as error:
        raise LocalDiskError(tempfile.gettempdir(), str(error)) from error


def _rebuild(source: Source, snapshot_id: str, where: str, tar_bytes: int, tar_crc32: int) -> IO[bytes]:
    summed = _Summed(source)
    reader = TarReader(summed, where)
    segments, spool, whole = _Segments(), LineSpool(), 0
    with contextlib.closing(spool), contextlib.closing(sqlite3.connect("")) as table:
        table.execute("CREATE TABLE entries (key BLOB PRIMARY KEY, line TEXT NOT NULL) WITHOUT ROWID")
        table.execute("CREATE TABLE linked (path TEXT PRIMARY KEY) WITHOUT ROWID")
        start = 0
        for member in reader:
            reader.skip()
            crc, length = summed.take(), reader.offset - start
            whole = crc32.combine(whole, crc, length)
            _note(table, segments, _entry(member, segments.number, start - segments.offset, length, crc))
            segments.add(reader.offset, crc, length)
            start = reader.offset
        segments.close(start)
        whole = crc32.combine(whole, summed.take(), reader.offset - start)
        if (reader.offset, whole) != (tar_bytes, tar_crc32):
            raise ObjectCorrupt(where, "its checksum does not match")
        for line in _lines(table):
            spool.add(line)
        spool.finish()
        header = Header(snapshot_id, tar_bytes, tar_crc32, spool.count, 0, segments.finished())
        return assemble(header, spool)


def _entry(member: Member, segment: int, at: int, length: int, crc: int) -> Entry:
    if member.kind not in _TYPES:
        raise MalformedArchive(os.fsdecode(member.path), f"its type {member.kind!r} is unknown")
    path = os.fsdecode(member.path.removesuffix(b"/")) or ROOT
    return Entry(
        path=path,
        type=_TYPES[member.kind],
        mode=member.mode,
        uid=member.uid,
        gid=member.gid,
        size=member.size_bytes if member.real_size_bytes is None else member.real_size_bytes,
        mtime_ns=member.mtime_ns,
        ctime_ns=0,
        ino=0,
        nlink=2 if member.kind == HARD_LINK else 1,
        rdev=os.makedev(*member.device),
        segment=segment,
        at=at,
        length=length,
        crc32=crc,
        link=os.fsdecode(member.link) if member.kind in {HARD_LINK, SYMLINK} else "",
    )


def _note(table: sqlite3.Connection, segments: _Segments, entry: Entry) -> None:
    key = path_key(entry.path).encode(errors="surrogatepass")
    row = table.execute("SELECT line FROM entries WHERE key = ?", (key,)).fetchone()
    if row is not None:
        old = parse_line(row[0])
        segments.dead.setdefault(old.segment, []).append(Dead(old.at, old.length, old.crc32, old.path))
    table.execute("INSERT OR REPLACE INTO entries VALUES (?, ?)", (key, line_of(entry)))
    if entry.type == "f" and entry.link:
        target = path_key(entry.link).encode(errors="surrogatepass")
        table.execute("INSERT OR IGNORE INTO linked VALUES (?)", (target,))


def _lines(table: sqlite3.Connection) -> Iterator[str]:
    """In path order: UTF-8 sorts as its code points do."""
    joined = table.execute(
        "SELECT line, linked.path IS NOT NULL FROM entries LEFT JOIN linked ON linked.path = key ORDER BY key"
    )
    for line, is_linked in joined:
        yield line_of(parse_line(line)._replace(nlink=2)) if is_linked else line
