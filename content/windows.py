"""Writes a window of a tar, which is in memory, into a tree; here, or in an extractor process."""

import os
from collections.abc import Iterator
from dataclasses import dataclass

from content.archive import crc32
from content.archive.extract import Limits, TreeWriter
from content.archive.id_map import IdMap
from content.archive.reader import BufferSource, TarReader, plain_file
from content.errors import ArchiveCorrupt, MalformedArchive
from content.selection import Window


@dataclass(frozen=True, slots=True)
class Setup:
    """What an extractor process begins with. ``root`` and ``memory`` are descriptors that it inherits; the
    rest is as for a `TreeWriter` and `write_window`.
    """

    root: int
    memory: int
    limits: Limits
    where: str
    archive: str
    ids: IdMap | None


def write_window(data: bytes | bytearray | memoryview, window: Window, tree: TreeWriter, where: str) -> None:
    """Checks all of the window before any of it is written. Raises ArchiveCorrupt, and as `TreeWriter.add`.
    Blocking.
    """
    spans = list(_members(memoryview(data), window))
    for span, expected in zip(spans, window.crc32, strict=True):
        if crc32.of(span) != expected:
            raise ArchiveCorrupt(_name(span, where), where)
    for span in spans:
        member, at = plain_file(span) or (None, 0)
        if member is not None and at + member.size_bytes <= len(span):
            tree.add(member, (span[at : at + member.size_bytes],))
        else:
            _write_other(span, tree, where)


def _write_other(span: memoryview, tree: TreeWriter, where: str) -> None:
    reader = TarReader(BufferSource(span), where)
    member = reader.next()
    if member is not None:
        tree.add(member, reader.chunks())


def _members(view: memoryview, window: Window) -> Iterator[memoryview]:
    for offset, length in zip(window.offsets, window.lengths, strict=True):
        at = offset - window.span.start
        yield view[at : at + length]


def _name(span: memoryview, where: str) -> str:
    try:
        member = TarReader(BufferSource(span), where).next()
    except MalformedArchive:
        return "a member"
    return os.fsdecode(member.path) if member is not None else "a member"
