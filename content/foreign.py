"""Tars that have no index: any tool's, read front to back, trusted in nothing."""

import asyncio
import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

from content.archive.extract import Limits, TreeWriter
from content.archive.id_map import IdMap
from content.archive.reader import TarReader
from content.archive.walk import LeftOut
from content.errors import LocalDiskError
from content.staging import Staging


@dataclass(frozen=True, slots=True)
class Unpacked:
    """``bytes`` is what was read of the archive."""

    entries: int
    bytes: int
    left_out: Sequence[LeftOut]


async def unpack(
    file: BinaryIO, target: Path, *, where: str, replace: bool = False, ids: IdMap | None = None
) -> Unpacked:
    """The tree of an uncompressed tar, into a new directory. Device nodes are refused.

    Raises MalformedArchive, UnsafeArchiveEntry, TargetNotEmpty, LocalDiskError; the target is then as it was.
    """
    async with Staging(target, replace=replace) as staging:
        limits = Limits.of_free_space(staging.descriptor, devices=False)
        tree = TreeWriter(staging.descriptor, limits, where=str(target), ids=ids)
        unpacked = await asyncio.to_thread(_unpack, file, tree, where)
        await staging.commit()
    return unpacked


def _unpack(file: BinaryIO, tree: TreeWriter, where: str) -> Unpacked:
    reader = TarReader(file, where)
    try:
        for member in reader:
            tree.add(member, reader.chunks())
        tree.finish()
    finally:
        tree.close()
    return Unpacked(tree.entries, reader.offset, tree.left_out)


def _open(path: Path) -> BinaryIO:
    descriptor = os.dup(0) if str(path) == "-" else os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    return os.fdopen(descriptor, "rb", 1 << 20)


async def unpack_file(
    path: Path, target: Path, *, replace: bool = False, ids: IdMap | None = None
) -> Unpacked:
    """As `unpack`, from a file or, for ``-``, from standard input."""
    try:
        file = await asyncio.to_thread(_open, path)
    except OSError as error:
        raise LocalDiskError.from_os(str(path), error) from error
    with file:
        return await unpack(file, target, where=str(path), replace=replace, ids=ids)
