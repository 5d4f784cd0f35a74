"""The sidecar of a tar: every entry and where it lies (docs/backup-format.md, "The index").

Entries are kept as lines, encoded once: what did not change since the last snapshot is compared and copied
as bytes, never parsed. Lines are in path order.
"""

import contextlib
import dataclasses
import io
import itertools
import json
import shutil
import stat
import tempfile
from collections.abc import Iterator, Sequence
from json.encoder import encode_basestring_ascii as _text
from os import stat_result
from typing import IO, Any, NamedTuple

import zstandard

from content.archive.id_map import IdMap, IdRange
from content.errors import FormatUnsupported, LocalDiskError, ObjectCorrupt

FORMAT = "lapstrake-index"
VERSION = 1
TYPES = {
    stat.S_IFREG: "f",
    stat.S_IFDIR: "d",
    stat.S_IFLNK: "l",
    stat.S_IFIFO: "p",
    stat.S_IFCHR: "c",
    stat.S_IFBLK: "b",
}
_MAX_LINE_BYTES = 1 << 20
_LEVEL = 3
_BATCH = 256
_INTEGERS = frozenset((int,))


class Entry(NamedTuple):
    """One line of the index; the columns, in this order."""

    path: str
    type: str
    mode: int
    uid: int
    gid: int
    size: int
    mtime_ns: int
    ctime_ns: int
    ino: int
    nlink: int
    rdev: int
    segment: int
    at: int
    length: int
    crc32: int
    link: str


COLUMNS = Entry._fields
UNREADABLE = ""
"""The path of dead members that hold what could be read of a file, and zeros."""


class Dead(NamedTuple):
    """A member that a later one replaces, by its place in its segment. When ``path`` is deleted, this goes as
    well, or a plain reader would bring it back. One of `UNREADABLE` goes at the next occasion.
    """

    at: int
    length: int
    crc32: int
    path: str


@dataclasses.dataclass(frozen=True, slots=True)
class Piece:
    """Bytes ``start .. start + length`` of a segment, which lie at ``tar_offset`` of this tar."""

    segment: int
    start: int
    length: int
    tar_offset: int
    crc32: int
    dead: tuple[Dead, ...] = ()


@dataclasses.dataclass(frozen=True, slots=True)
class Header:
    """The first line of an index. ``ids`` is how the owners in the lines became those in the tar."""

    snapshot_id: str
    tar_bytes: int
    tar_crc32: int
    entries: int
    trusted_before_ns: int
    pieces: tuple[Piece, ...]
    ids: IdMap | None = None


class Places:
    """Where in the tar a segment's bytes lie now."""

    def __init__(self, pieces: Sequence[Piece]) -> None:
        self._by_segment: dict[int, list[Piece]] = {}
        for piece in pieces:
            self._by_segment.setdefault(piece.segment, []).append(piece)

    def tar_offset(self, segment: int, at: int) -> int:
        """Raises ObjectCorrupt when the index contradicts itself."""
        for piece in self._by_segment.get(segment, ()):
            if piece.start <= at < piece.start + piece.length:
                return piece.tar_offset + at - piece.start
        raise ObjectCorrupt("index", f"no piece holds byte {at} of segment {segment}")


def fingerprint(path: str, status: stat_result) -> str:
    """How the line of an entry begins; equal beginnings mean that nothing about the entry changed."""
    mode = status.st_mode
    return (
        f'[{_text(path)},"{TYPES[mode & 0o170000]}",{mode & 0o7777},{status.st_uid},{status.st_gid},'
        f"{status.st_size},{status.st_mtime_ns},{status.st_ctime_ns},{status.st_ino},{status.st_nlink},"
        f"{status.st_rdev},"
    )


def line_of(entry: Entry) -> str:
    """The entry as it stands in the index, without the newline."""
    return json.dumps(entry, separators=(",", ":"))


def parse_line(line: str | bytes) -> Entry:
    """Raises ObjectCorrupt."""
    try:
        return _checked(json.loads(line))
    except (ValueError, TypeError) as error:
        raise ObjectCorrupt("index", "a line is not an entry") from error


def _checked(row: Any) -> Entry:
    """Raises ObjectCorrupt, TypeError."""
    entry = Entry._make(row)
    numbers = entry[2:6] + entry[7:15]
    if not isinstance(entry.path, str) or set(map(type, numbers)) != _INTEGERS or min(numbers) < 0:
        raise ObjectCorrupt("index", "a line is not an entry")
    return entry


def dump_header(header: Header) -> bytes:
    """The first line, with its newline."""
    document = {
        "format": FORMAT,
        "format_version": VERSION,
        "snapshot_id": header.snapshot_id,
        "tar_bytes": header.tar_bytes,
        "tar_crc32": header.tar_crc32,
        "entries": header.entries,
        "trusted_before_ns": header.trusted_before_ns,
        "columns": COLUMNS,
        "pieces": [[p.segment, p.start, p.length, p.tar_offset, p.crc32, p.dead] for p in header.pieces],
    }
    if header.ids is not None:
        document["ids"] = {
            name: [[r.archive, r.host, r.count] for r in ranges]
            for name, ranges in (("uids", header.ids.uids), ("gids", header.ids.gids))
        }
    return json.dumps(document, separators=(",", ":")).encode() + b"\n"


def _piece(row: list[Any]) -> Piece:
    segment, start, length, tar_offset, crc32, dead = row
    return Piece(segment, start, length, tar_offset, crc32, tuple(Dead(*one) for one in dead))


def _id_map(document: dict[str, Any] | None) -> IdMap | None:
    if document is None:
        return None
    uids, gids = (tuple(IdRange(*row) for row in document[name]) for name in ("uids", "gids"))
    return IdMap(uids, gids)


def parse_header(line: bytes) -> Header:
    """Raises FormatUnsupported, ObjectCorrupt."""
    try:
        document: dict[str, Any] = json.loads(line)
        if document["format"] != FORMAT:
            raise ObjectCorrupt("index", "it is something else")
        if document["format_version"] != VERSION:
            raise FormatUnsupported("the index", document["format_version"], VERSION)
        return Header(
            document["snapshot_id"],
            document["tar_bytes"],
            document["tar_crc32"],
            document["entries"],
            document["trusted_before_ns"],
            tuple(_piece(row) for row in document["pieces"]),
            _id_map(document.get("ids")),
        )
    except (ValueError, KeyError, TypeError) as error:
        if isinstance(error, FormatUnsupported):
            raise
        raise ObjectCorrupt("index", "its first line is damaged") from error


class IndexReader:
    """Reads an index from a compressed stream; ``header`` first, then lines, once. Blocking."""

    def __init__(self, source: IO[bytes]) -> None:
        raw = zstandard.ZstdDecompressor().stream_reader(source, read_across_frames=True, closefd=False)
        self._lines = io.BufferedReader(raw, 1 << 20)
        try:
            self.header = parse_header(self._lines.readline(256 << 20))
        except zstandard.ZstdError as error:
            raise ObjectCorrupt("index", "it cannot be decompressed") from error

    def lines(self) -> Iterator[bytes]:
        """Each entry's line with its newline. Raises ObjectCorrupt, also when lines are missing."""
        count = 0
        try:
            for line in self._lines:
                if len(line) > _MAX_LINE_BYTES:
                    raise ObjectCorrupt("index", "a line is too long")
                count += 1
                yield line
        except zstandard.ZstdError as error:
            raise ObjectCorrupt("index", "it cannot be decompressed") from error
        if count != self.header.entries:
            raise ObjectCorrupt("index", f"it has {count} entries, not {self.header.entries}")

    def entries(self) -> Iterator[Entry]:
        """As `lines`, parsed many at a time, which takes half as long."""
        lines = self.lines()
        while batch := list(itertools.islice(lines, _BATCH)):
            try:
                rows = json.loads(b"[%b]" % b",".join(batch))
                yield from map(_checked, rows)
            except (ValueError, TypeError) as error:
                raise ObjectCorrupt("index", "a line is not an entry") from error
            if len(rows) != len(batch):
                raise ObjectCorrupt("index", "a line is not an entry")


class LineSpool:
    """Index lines on their way, compressed in a temporary file. Blocking, one thread at a time."""

    def __init__(self) -> None:
        self.file = tempfile.TemporaryFile(prefix="lapstrake-index-")  # noqa: SIM115 (closed by `close`)
        self._frame = zstandard.ZstdCompressor(level=_LEVEL).stream_writer(self.file, closefd=False)
        self._buffer: list[str] = []
        self.count = 0

    def add(self, line: str) -> None:
        """Takes a line without its newline."""
        self._buffer.append(line)
        self.count += 1
        if len(self._buffer) >= 1024:  # one call of the compressor per 128 KiB or so
            self._drain()

    def _drain(self) -> None:
        if self._buffer:
            with _disk_errors():
                self._frame.write(("\n".join(self._buffer) + "\n").encode())
            self._buffer.clear()

    def finish(self) -> None:
        """No more lines; then `lines` may be read."""
        self._drain()
        with _disk_errors():
            self._frame.close()  # type: ignore[no-untyped-call] # zstandard leaves it untyped
            self.file.flush()

    def lines(self) -> Iterator[str]:
        self.file.seek(0)
        raw = zstandard.ZstdDecompressor().stream_reader(self.file, read_across_frames=True, closefd=False)
        for line in io.BufferedReader(raw, 1 << 20):
            yield line.decode().rstrip("\n")

    def close(self) -> None:
        with contextlib.suppress(OSError):  # nobody wants what could not be written
            self.file.close()


def assemble(header: Header, spool: LineSpool) -> IO[bytes]:
    """The whole index in a temporary file at its start: the header's frame, then the spool's. Blocking."""
    with _disk_errors():
        whole = tempfile.TemporaryFile(prefix="lapstrake-index-")  # noqa: SIM115 (the caller closes it)
        whole.write(zstandard.ZstdCompressor(level=_LEVEL).compress(dump_header(header)))
        spool.file.seek(0)
        shutil.copyfileobj(spool.file, whole, 1 << 20)
        whole.seek(0)
    return whole


@contextlib.contextmanager
def _disk_errors() -> Iterator[None]:
    """A spool that cannot be written is nobody's unreadable file: it ends the backup."""
    try:
        yield
    except OSError as error:
        raise LocalDiskError.from_os(tempfile.gettempdir(), error) from error
