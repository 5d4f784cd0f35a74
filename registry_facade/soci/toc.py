"""The table of contents of a gzipped tar, as SOCI's own tool reads it with Go's archive/tar.

A SOCI snapshotter compares what the zTOC says of a file with the file's header in the tar before it serves
it. So whatever Go and Python may read differently is refused rather than described.
"""

import datetime as dt
import gzip
import io
import re
import tarfile
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import Self

from registry_facade.soci.errors import NotIndexable
from registry_facade.soci.ztoc import FileEntry

_TYPES = {
    tarfile.REGTYPE: "reg",
    tarfile.AREGTYPE: "reg",
    tarfile.DIRTYPE: "dir",
    tarfile.SYMTYPE: "symlink",
    tarfile.LNKTYPE: "hardlink",
    tarfile.CHRTYPE: "char",
    tarfile.BLKTYPE: "block",
    tarfile.FIFOTYPE: "fifo",
}
_MAGIC = slice(257, 265)
_PREFIX = slice(345, 500)
_USTAR, _GNU, _STAR = b"ustar\0", b"ustar  \0", b"tar\0"
_TRAILER_BYTES = 2 * tarfile.BLOCKSIZE
_MAX_ENDS = 8
_EPOCH = dt.datetime(1970, 1, 1, tzinfo=dt.UTC)


class _Ending(io.RawIOBase):
    """What `tarfile` reads from: a hostile size or map of holes makes it read on at the end, for ever."""

    def __init__(self, stream: gzip.GzipFile) -> None:
        self._stream = stream
        self._ends = 0

    def read(self, size: int = -1, /) -> bytes:
        data = self._stream.read(size)
        self._ends += not data
        if self._ends > _MAX_ENDS:
            raise NotIndexable("the tar ends early")
        return data


class _Header(tarfile.TarInfo):
    """Refuses what `tarfile` reads with tolerance, or by other rules than Go."""

    @classmethod
    def frombuf(cls, buf: bytes | bytearray, encoding: str, errors: str) -> Self:
        magic = bytes(buf[_MAGIC])
        is_known = magic == _GNU or magic.startswith(_USTAR) or not any(buf[_MAGIC.start :])
        if not is_known or buf.endswith(_STAR) or (magic == _GNU and any(buf[_PREFIX])):
            raise NotIndexable("a header of the tar is of a format that is read in different ways")
        try:
            return super().frombuf(buf, encoding, errors)
        except tarfile.HeaderError as error:
            if any(buf):
                raise NotIndexable(f"the tar is damaged: {error}") from error
            raise  # its end


def read_toc(path: Path) -> tuple[list[FileEntry], int]:
    """The entries, and where the end of the archive is in the uncompressed tar; blocking.

    Raises NotIndexable for what is no gzipped tar or holds what SOCI knows no word for, OSError.
    """
    try:
        with (
            gzip.open(path) as stream,
            tarfile.open(
                fileobj=_Ending(stream),
                mode="r|",
                tarinfo=_Header,
                encoding="utf-8",
                errors="surrogateescape",
            ) as tar,
        ):
            entries = list(_entries(tar))
            end = tar.offset
            while data := stream.read(1 << 20):  # what is behind the archive must unpack too
                del data
            return entries, min(end + _TRAILER_BYTES, stream.tell())
    except (gzip.BadGzipFile, EOFError, zlib.error, tarfile.TarError) as error:
        raise NotIndexable(str(error)) from error
    except (ArithmeticError, LookupError, ValueError) as error:  # which a hostile header gets out of tarfile
        raise NotIndexable(f"the tar is damaged: {error}") from error


def _entries(tar: tarfile.TarFile) -> Iterator[FileEntry]:
    while (member := tar.next()) is not None:
        tar.members.clear()  # type: ignore[attr-defined] # it remembers every one
        if tar.pax_headers:
            raise NotIndexable("the tar has headers for all its entries")
        yield _entry(member)


def _entry(member: tarfile.TarInfo) -> FileEntry:
    kind = _TYPES.get(member.type)
    if kind is None or member.issparse() or member.size < 0:
        raise NotIndexable(
            f"{member.name[:200]!r} in the tar is of type {member.type!r}, sparse, or too large"
        )
    return FileEntry(
        _raw(member.name + ("/" if member.isdir() else "")),
        kind,
        member.offset_data,
        member.size if member.isreg() else 0,
        _raw(member.linkname),
        member.mode,
        member.uid,
        member.gid,
        _raw(member.uname),
        _raw(member.gname),
        _modified(member),
        member.devmajor,
        member.devminor,
        sorted((_raw(key), _raw(value)) for key, value in member.pax_headers.items()),
    )


def _raw(text: str) -> bytes:
    return text.encode("utf-8", "surrogateescape")


def _modified(member: tarfile.TarInfo) -> str:
    """RFC 3339 in UTC, with as many digits of the second as are said."""
    stated = member.pax_headers.get("mtime") or str(int(member.mtime))
    found = re.fullmatch(r"(-?)(\d+)(?:\.(\d*))?", stated)
    if found is None:
        raise NotIndexable(f"{member.name[:200]!r} in the tar was modified at {stated[:50]!r}")
    second, nanoseconds = int(found[2]), int((found[3] or "")[:9].ljust(9, "0"))
    if found[1]:
        second, nanoseconds = (-second - 1, 10**9 - nanoseconds) if nanoseconds else (-second, 0)
    try:
        whole = _EPOCH + dt.timedelta(seconds=second)
    except OverflowError as error:
        raise NotIndexable(f"{member.name[:200]!r} in the tar was modified at {stated[:50]!r}") from error
    fraction = f".{nanoseconds:09d}".rstrip("0") if nanoseconds else ""
    return f"{whole.replace(tzinfo=None).isoformat()}{fraction}Z"
