"""Files that are there whole or not at all.

POSIX promises nothing about a rename surviving a power cut until the directory itself is synced, hence
the order: write, fsync the file, rename, fsync the directory.
"""

import contextlib
import os
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO

_TEMP_PREFIX = ".lapstrake-tmp-"


def fsync_dir(path: Path) -> None:
    """Makes renames and deletions inside ``path`` durable."""
    descriptor = os.open(path, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def durable_rename(source: Path, target: Path) -> None:
    """Renames within one file system and syncs both directories. ``source`` must be synced already."""
    source.rename(target)
    fsync_dir(target.parent)
    if source.parent != target.parent:
        fsync_dir(source.parent)


@contextlib.contextmanager
def atomic_file(target: Path, *, mode: int = 0o644) -> Iterator[BinaryIO]:
    """A file that appears at ``target`` when the block ends without an error; blocking.

    On any exception nothing is left behind and an older ``target`` stays as it was.
    """
    descriptor, name = tempfile.mkstemp(prefix=_TEMP_PREFIX, dir=target.parent)
    temp = Path(name)
    try:
        with os.fdopen(descriptor, "wb") as file:
            os.fchmod(file.fileno(), mode)
            yield file
            file.flush()
            os.fsync(file.fileno())
        durable_rename(temp, target)
    except BaseException:
        temp.unlink(missing_ok=True)
        raise


def atomic_write(target: Path, data: bytes, *, mode: int = 0o644) -> None:
    """Replaces ``target`` by ``data``, durably; blocking."""
    with atomic_file(target, mode=mode) as file:
        file.write(data)


def sweep_temp_files(directory: Path) -> int:
    """Deletes what interrupted `atomic_file` calls left in ``directory``; returns how many there were.

    Only for start-up, before anything else writes there.
    """
    stale = list(directory.glob(f"{_TEMP_PREFIX}*"))
    for path in stale:
        path.unlink(missing_ok=True)
    return len(stale)
