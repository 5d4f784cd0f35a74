"""Writes what a walk finds as tar members, and says for each where it went.

A header is written only when its promise can be kept: small files are read whole first, large ones are
padded to what was promised. A file that moved under the reader is read again; one that does not hold still
is stored as last read and reported; one that cannot be read to its end has no entry, and is reported.
Nothing is opened but regular files.
"""

import errno
import os
import stat
from collections.abc import Callable
from json.encoder import encode_basestring_ascii as _text

from content.archive import crc32
from content.archive.id_map import IdMap
from content.archive.index import UNREADABLE, Dead, Piece, fingerprint
from content.archive.parts import PartSink
from content.archive.sparse import Extents, data_extents, dump_map
from content.archive.tar_format import (
    BLOCK_DEVICE,
    CHAR,
    DIRECTORY,
    END_OF_ARCHIVE,
    FIFO,
    HARD_LINK,
    REGULAR,
    SYMLINK,
    Member,
    member_headers,
    padding,
)
from content.archive.walk import ROOT, Found, LeftOut

SEGMENT_BYTES = 8 << 20
SMALL_BYTES = 1 << 20
_STEP_BYTES = 1 << 20
TRIES = 3
_OPEN = os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC
_HOST_ONLY = frozenset({"security.selinux"})
_KINDS = {stat.S_IFIFO: FIFO, stat.S_IFCHR: CHAR, stat.S_IFBLK: BLOCK_DEVICE}
Xattrs = list[tuple[bytes, bytes]]


class ArchiveWriter:
    """Adds members to a `PartSink`. Blocking, for one thread.

    ``record`` gets each entry's index line; ``look`` is called between the steps of large files, and says
    whether to read nothing ahead. ``left_out`` and ``pieces`` are complete after `close`.
    """

    def __init__(
        self,
        sink: PartSink,
        record: Callable[[str], None],
        *,
        first_segment: int = 0,
        ids: IdMap | None = None,
        look: Callable[[], bool] = lambda: False,
    ) -> None:
        self._sink = sink
        self._record = record
        self._look = look
        self._ids = ids
        self._segment = first_segment
        self._segment_offset = sink.offset
        self._dead: list[Dead] = []
        self._segment_crc32 = 0
        self._links: dict[tuple[int, int], str] = {}
        self._xattrs_known = True
        self._unreadable: OSError | None = None
        self.left_out: list[LeftOut] = []
        self.pieces: list[Piece] = []
        self.entries = 0
        self.content_bytes = 0
        self.files_read = 0

    def add(self, found: Found) -> None:
        """Adds one thing of the tree, or reports why not."""
        kind = stat.S_IFMT(found.status.st_mode)
        try:
            if kind == stat.S_IFREG:
                self._add_regular(found)
            elif kind == stat.S_IFDIR:
                self._add_directory(found)
            elif kind == stat.S_IFLNK:
                target = os.readlink(found.name, dir_fd=found.directory)
                self._add_bare(found, SYMLINK, os.fsencode(target), target)
            elif kind in _KINDS:
                self._add_bare(found, _KINDS[kind])
        except FileNotFoundError:
            self._leave_out(found, "vanished while the tree was read", expected=True)
        except OSError as error:
            self._leave_out(found, f"cannot be read: {error.strerror}")
        if self._sink.offset - self._segment_offset >= SEGMENT_BYTES:
            self._close_segment()

    def close(self) -> None:
        """Ends the archive and flushes the last part."""
        self._close_segment()
        self._sink.write(END_OF_ARCHIVE)
        self._sink.close()

    def _leave_out(self, found: Found, reason: str, *, expected: bool = False) -> None:
        self.left_out.append(LeftOut(found.path, reason, expected))

    def _close_segment(self) -> None:
        length = self._sink.offset - self._segment_offset
        if length:
            self.pieces.append(
                Piece(self._segment, 0, length, self._segment_offset, self._segment_crc32, tuple(self._dead))
            )
            self._dead = []
            self._segment_crc32 = 0
            self._segment += 1
            self._segment_offset = self._sink.offset

    def _put_bytes(self, found: Found, whole: bytes, link: str = "") -> None:
        """Writes a member that is in memory; reading it twice is cheaper than folding two checksums."""
        self._sink.write(whole)
        segment_crc32 = crc32.of(whole, self._segment_crc32)
        self._put(found, crc32.of(whole), len(whole), link)
        self._segment_crc32 = segment_crc32

    def _put(self, found: Found, crc: int, length: int, link: str) -> None:
        at = self._sink.offset - length - self._segment_offset
        self._record(
            f"{fingerprint(found.path, found.status)}{self._segment},{at},{length},{crc},{_text(link)}]"
        )
        self.entries += 1

    def _add_bare(self, found: Found, kind: bytes, link: bytes = b"", shown_link: str = "") -> None:
        headers = member_headers(self._member(found, kind, 0, (), link))
        self._put_bytes(found, headers, shown_link)

    def _add_directory(self, found: Found) -> None:
        descriptor = os.open(
            found.name,
            _OPEN | os.O_DIRECTORY if found.path != ROOT else os.O_RDONLY | os.O_DIRECTORY,
            dir_fd=found.directory if found.directory >= 0 else None,
        )
        try:
            xattrs = self._read_xattrs(descriptor)
        finally:
            os.close(descriptor)
        headers = member_headers(self._member(found, DIRECTORY, 0, xattrs))
        self._put_bytes(found, headers)

    def _member(
        self, found: Found, kind: bytes, size: int, xattrs: Xattrs | tuple[()], link: bytes = b""
    ) -> Member:
        status = found.status
        path = os.fsencode(found.path) + (b"/" if kind == DIRECTORY else b"")
        uid, gid = status.st_uid, status.st_gid
        if self._ids is not None:
            uid, gid = self._ids.to_archive(found.path, uid, gid)
            xattrs = [(key, self._ids.xattr_to_archive(found.path, key, value)) for key, value in xattrs]
        device = (os.major(status.st_rdev), os.minor(status.st_rdev)) if status.st_rdev else (0, 0)
        return Member(path, kind, status.st_mode, uid, gid, size, status.st_mtime_ns, link, device, xattrs)

    def _read_xattrs(self, descriptor: int) -> Xattrs | tuple[()]:
        if not self._xattrs_known:
            return ()
        try:
            names = os.listxattr(descriptor)
        except OSError:
            self._xattrs_known = False  # this file system has none
            return ()
        if not names:
            return ()
        return [pair for name in names if name not in _HOST_ONLY if (pair := _xattr(descriptor, name))]

    def _add_regular(self, found: Found) -> None:
        status = found.status
        if status.st_nlink > 1:
            first = self._links.setdefault((status.st_dev, status.st_ino), found.path)
            if first != found.path:
                self._add_bare(found, HARD_LINK, os.fsencode(first), first)
                return
        try:
            self._read_regular(found)
        except OSError:
            if self._links.get((status.st_dev, status.st_ino)) == found.path:
                del self._links[status.st_dev, status.st_ino]  # the next name carries the data
            raise

    def _read_regular(self, found: Found) -> None:
        descriptor = os.open(found.name, _OPEN, dir_fd=found.directory)
        try:
            self.files_read += 1
            size = found.status.st_size
            if size <= SMALL_BYTES and found.status.st_blocks * 512 >= size:
                self._add_small(found, descriptor)
            else:
                self._add_large(found, descriptor)
        finally:
            os.close(descriptor)

    def _add_small(self, found: Found, descriptor: int) -> None:
        size = found.status.st_size
        data = os.read(descriptor, size + 1)
        after = os.fstat(descriptor)
        if len(data) != size or _moved(found.status, after):
            _check_regular(after)
            if after.st_size > SMALL_BYTES:
                self._add_large(found, descriptor)
                return
            data = self._read_again(found, descriptor)
            size = len(data)
        xattrs = self._read_xattrs(descriptor)
        member = self._member(found, REGULAR, size, xattrs)
        whole = b"".join((member_headers(member), data, bytes(-size % 512)))
        self._put_bytes(found, whole)
        self.content_bytes += size

    def _read_again(self, found: Found, descriptor: int) -> bytes:
        """The content between two equal looks at the file; after `TRIES`, as last read, and reported."""
        for _ in range(TRIES):
            found.status = os.fstat(descriptor)
            data = os.pread(descriptor, SMALL_BYTES + 1, 0)
            if len(data) == found.status.st_size and not _moved(found.status, os.fstat(descriptor)):
                return data
        self._leave_out(found, "kept changing while it was read; stored as last read")
        found.status = _distrusted(found.status)
        return data

    def _add_large(self, found: Found, descriptor: int) -> None:
        for tries_left in range(TRIES - 1, -1, -1):
            found.status = os.fstat(descriptor)
            _check_regular(found.status)
            start = self._sink.offset
            crc = self._write_large(found, descriptor)
            length = self._sink.offset - start
            if self._unreadable is not None:
                self._bury_unreadable(start, length, crc)
            if not _moved(found.status, os.fstat(descriptor)):
                break
            if tries_left:  # a later member of the same name replaces this one
                self._dead.append(Dead(start - self._segment_offset, length, crc, found.path))
                self._segment_crc32 = crc32.combine(self._segment_crc32, crc, length)
            else:
                self._leave_out(found, "kept changing while it was read; stored as last read")
                found.status = _distrusted(found.status)
        self._segment_crc32 = crc32.combine(self._segment_crc32, crc, length)
        self._put(found, crc, length, "")
        self.content_bytes += found.status.st_size

    def _bury_unreadable(self, start: int, length: int, crc: int) -> None:
        """The member is whole, and what it holds is not: no entry leads to it. Raises what reading raised."""
        self._dead.append(Dead(start - self._segment_offset, length, crc, UNREADABLE))
        self._segment_crc32 = crc32.combine(self._segment_crc32, crc, length)
        error, self._unreadable = self._unreadable, None
        if error is not None:
            raise error

    def _write_large(self, found: Found, descriptor: int) -> int:
        size = found.status.st_size
        extents: Extents | None = None
        if found.status.st_blocks * 512 < size:
            extents = data_extents(descriptor, size)
        xattrs = self._read_xattrs(descriptor)
        if extents is None:
            member = self._member(found, REGULAR, size, xattrs)
            head = member_headers(member)
            extents = [(0, size)]
        else:
            sparse_map = dump_map(extents, size)
            size = len(sparse_map) + sum(length for _, length in extents)
            member = self._member(found, REGULAR, size, xattrs)
            head = (
                member_headers(member._replace(sparse=extents, real_size_bytes=found.status.st_size))
                + sparse_map
            )
        self._sink.write(head)
        crc = crc32.of(head)
        for offset, length in extents:
            crc = self._copy(descriptor, offset, length, crc)
        tail = bytes(padding(size))
        self._sink.write(tail)
        return crc32.of(tail, crc)

    def _read(self, descriptor: int, target: memoryview, offset: int) -> int:
        """0 at the end of the file, and from where it cannot be read: the header's promise is kept."""
        if self._unreadable is None:
            try:
                return os.preadv(descriptor, [target], offset)
            except OSError as error:
                self._unreadable = error
        return 0

    def _advise(self, descriptor: int, offset: int, length: int) -> None:
        """What comes next is read while this is worked on; unless others need the disk, who would be kept
        from it by reading that the kernel does unasked.
        """
        if self._look():
            os.posix_fadvise(descriptor, 0, 0, os.POSIX_FADV_RANDOM)
        else:
            os.posix_fadvise(descriptor, 0, 0, os.POSIX_FADV_NORMAL)
            os.posix_fadvise(descriptor, offset, length, os.POSIX_FADV_WILLNEED)

    def _copy(self, descriptor: int, offset: int, length: int, crc: int) -> int:
        """Reads straight into parts; what the file lost meanwhile is zeros, and found out by the caller."""
        while length:
            with self._sink.room() as room, room[: min(length, _STEP_BYTES)] as target:
                self._advise(descriptor, offset + len(target), len(target))
                count = self._read(descriptor, target, offset)
                if count == 0:
                    count = len(target)
                    target[:] = bytes(count)
                crc = crc32.of(target[:count], crc)
            self._sink.advance(count)
            offset += count
            length -= count
        return crc


def _xattr(descriptor: int, name: str) -> tuple[bytes, bytes] | None:
    """None when it was removed since it was listed."""
    try:
        return os.fsencode(name), os.getxattr(descriptor, name)
    except OSError as error:
        if error.errno == errno.ENODATA:
            return None
        raise


def _check_regular(status: os.stat_result) -> None:
    if not stat.S_ISREG(status.st_mode):
        raise OSError(0, "is not a regular file any more")


def _moved(before: os.stat_result, after: os.stat_result) -> bool:
    return (
        before.st_mtime_ns != after.st_mtime_ns
        or before.st_ctime_ns != after.st_ctime_ns
        or before.st_size != after.st_size
        or before.st_ino != after.st_ino
    )


def _distrusted(status: os.stat_result) -> os.stat_result:
    """The same with inode 0, which no file has: the next backup reads the file again."""
    fields = list(status)
    fields[stat.ST_INO] = 0
    extra = {
        name: getattr(status, name)
        for name in ("st_mtime_ns", "st_ctime_ns", "st_atime_ns", "st_blocks", "st_rdev")
    }
    return os.stat_result(fields, extra)
