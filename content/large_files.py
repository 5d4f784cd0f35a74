"""Restores a member that is too large to be held: several ranges of it at a time, each piece of them written
where it belongs by the thread that received it.

What is not a plain file, or has headers of unusual length, is read from front to back instead.
"""

import os
from dataclasses import dataclass

from content import transfer, workers
from content.archive import crc32
from content.archive.extract import TreeWriter
from content.archive.reader import TarReader, plain_file
from content.archive.tar_format import Member, padding
from content.errors import ArchiveCorrupt, LocalDiskError, MalformedArchive
from content.objects.base import ObjectSource, Span
from content.selection import Window
from content.streams import SpanStream
from servicekit.threads import in_thread
from servicekit.throttle import Bucket

_HEAD_BYTES = 64 << 10
_RANGE_BYTES = 16 << 20
_RANGES = 3


@dataclass(frozen=True, slots=True)
class Archive:
    """A tar in a store."""

    store: ObjectSource
    key: str


@dataclass(frozen=True, slots=True)
class _Written:
    """``path`` None: the header could not be read, and nothing was written."""

    path: bytes | None
    is_good: bool


@dataclass(frozen=True, slots=True)
class _PlainFile:
    """``head_crc32`` is of what comes before the ``data``."""

    member: Member
    head_crc32: int
    data: Span


async def restore_large(archive: Archive, window: Window, tree: TreeWriter, written: Bucket) -> None:
    """Writes the window's one member as fast as ``written`` lets it. What turns out to be damaged when it is
    written is written again, by the same name. Raises ArchiveCorrupt, and as `TreeWriter.add` and the store.
    """
    first = await _write(archive, window, tree, written)
    if not first.is_good:
        again = await _write(archive, window, tree, written)
        if not again.is_good or first.path not in {None, again.path}:
            raise ArchiveCorrupt(os.fsdecode(again.path or b"a member"), archive.key)


async def _write(archive: Archive, window: Window, tree: TreeWriter, written: Bucket) -> _Written:
    head = Span(window.span.start, min(_HEAD_BYTES, window.span.length))
    data, _ = await transfer.get_whole(archive.store, archive.key, head)
    if (plain := _plain_file(data, window.span)) is None:
        return await _stream(archive, window, tree, written)
    value = await _write_plain(archive, plain, tree, written)
    is_good = value == window.crc32[0]
    if not is_good:
        tree.discount(plain.member)
    return _Written(plain.member.path, is_good)


def _plain_file(head: bytes, span: Span) -> _PlainFile | None:
    """What the first bytes of ``span`` say that it is; pure."""
    if (found := plain_file(memoryview(head))) is None:
        return None
    member, start = found
    size_bytes = member.size_bytes
    if not size_bytes or start + size_bytes + padding(size_bytes) != span.length:
        return None
    return _PlainFile(member, crc32.of(head[:start]), Span(span.start + start, size_bytes))


async def _write_plain(archive: Archive, plain: _PlainFile, tree: TreeWriter, written: Bucket) -> int:
    """The CRC-32 of the whole member, which ends with zeros that nobody needs to fetch."""
    descriptor = await in_thread(tree.begin_file, plain.member)
    try:
        value = await _write_data(archive, plain, tree, descriptor, written)
        await in_thread(tree.end_file, descriptor, plain.member)
    finally:
        os.close(descriptor)
    value = crc32.combine(plain.head_crc32, value, plain.data.length)
    rest = bytes(padding(plain.data.length))
    return crc32.of(rest, value)


async def _write_data(
    archive: Archive, plain: _PlainFile, tree: TreeWriter, descriptor: int, written: Bucket
) -> int:
    data, name = plain.data, f"{tree.where}/{os.fsdecode(plain.member.path)}"
    values: dict[int, int] = {}

    async def write(at: int) -> None:
        span = Span(data.start + at, min(_RANGE_BYTES, data.length - at))
        sink = _FileSink(descriptor, at, name)
        await transfer.pour_span(archive.store, archive.key, span, sink.write, pace=written)
        values[at] = sink.crc32

    await workers.each(range(0, data.length, _RANGE_BYTES), write, concurrency=_RANGES)
    whole = 0
    for at in range(0, data.length, _RANGE_BYTES):
        whole = crc32.combine(whole, values[at], min(_RANGE_BYTES, data.length - at))
    return whole


class _FileSink:
    """Writes one piece behind the other from ``at`` on; for one thread."""

    def __init__(self, descriptor: int, at: int, name: str) -> None:
        self._descriptor = descriptor
        self._at = at
        self._name = name
        self.crc32 = 0
        """Of all that was written."""

    def write(self, piece: bytes) -> None:
        self.crc32 = crc32.of(piece, self.crc32)
        left = memoryview(piece)
        try:
            while left:
                count = os.pwrite(self._descriptor, left, self._at)
                self._at += count
                left = left[count:]
        except OSError as error:
            raise LocalDiskError.from_os(self._name, error) from error


async def _stream(archive: Archive, window: Window, tree: TreeWriter, written: Bucket) -> _Written:
    async with SpanStream(archive.store, archive.key, window.span, pace=written) as stream:

        def work() -> _Written:
            reader = TarReader(stream, archive.key)
            try:
                member = reader.next()
            except MalformedArchive:
                member = None
            if member is None:
                return _Written(None, is_good=False)
            tree.add(member, reader.chunks())
            reader.skip()
            is_good = stream.crc32 == window.crc32[0]
            if not is_good:
                tree.discount(member)
            return _Written(member.path, is_good)

        return await stream.consume(work)
