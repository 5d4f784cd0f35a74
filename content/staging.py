"""A new directory beside the target, swapped in when it is whole, deleted when it is not."""

import asyncio
import contextlib
import ctypes
import fcntl
import glob
import os
import secrets
import shutil
from collections.abc import Iterable
from pathlib import Path
from typing import Self

from content import tree
from content.errors import LocalDiskError, TargetNotEmpty
from servicekit.atomic import fsync_dir

_libc = ctypes.CDLL(None, use_errno=True)
_AT_FDCWD = -100
_RENAME_EXCHANGE = 2
_PREFIX = ".lapstrake-staging-"


def sync_file_system(descriptor: int) -> None:
    """Writes back all of the file system that ``descriptor`` is on; blocking."""
    if _libc.syncfs(descriptor):
        error = ctypes.get_errno()
        raise OSError(error, os.strerror(error))


class Staging:
    """An async context manager around a restore to ``target``.

    Raises TargetNotEmpty unless the target is absent, empty, or to be replaced; LocalDiskError.
    """

    def __init__(self, target: Path, *, replace: bool, sync: bool = True) -> None:
        self._target = target
        self._replace = replace
        self._sync = sync
        self._path = target.parent / f"{_PREFIX}{target.name}-{secrets.token_hex(4)}"
        self.descriptor = -1

    @property
    def path(self) -> Path:
        """Where the tree is until it is whole."""
        return self._path

    async def __aenter__(self) -> Self:
        await asyncio.to_thread(self._create)
        return self

    def _create(self) -> None:
        try:
            if not self._replace and self._target.exists() and any(self._target.iterdir()):
                raise TargetNotEmpty(str(self._target))
            self._target.parent.mkdir(parents=True, exist_ok=True)
            self._path.mkdir(mode=0o700)
            self.descriptor = os.open(self._path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
            fcntl.flock(self.descriptor, fcntl.LOCK_EX)  # says to `sweep` that somebody is at work
            tree.mark_unfinished(self.descriptor)
        except OSError as error:
            raise LocalDiskError.from_os(str(self._target), error) from error

    async def commit(self) -> None:
        """The staged tree becomes the target; what was there before is deleted after that."""
        await asyncio.to_thread(self._commit)

    def _commit(self) -> None:
        try:
            root = os.fstat(self.descriptor)
            if self._sync:
                sync_file_system(self.descriptor)
            tree.mark_complete(self.descriptor)
            os.utime(self.descriptor, ns=(root.st_mtime_ns, root.st_mtime_ns))
            if self._target.is_dir() and any(self._target.iterdir()):
                _exchange(self._path, self._target)
            else:
                self._path.rename(self._target)
            fsync_dir(self._target.parent)
        except OSError as error:
            raise LocalDiskError.from_os(str(self._target), error) from error

    async def __aexit__(self, *_: object) -> None:
        await asyncio.to_thread(self._clean_up)

    def _clean_up(self) -> None:
        if self.descriptor >= 0:
            os.close(self.descriptor)
        with contextlib.suppress(FileNotFoundError):
            shutil.rmtree(self._path)


def sweep_target(target: Path) -> bool:
    """Deletes what a crashed restore to ``target`` left; False while one of its processes is still ending.
    Blocking.
    """
    found = list(target.parent.glob(f"{_PREFIX}{glob.escape(target.name)}-*"))
    return len(_sweep(found)) == len(found)


def sweep(directory: Path) -> list[Path]:
    """Deletes what crashed restores left in ``directory`` or right below; those under way hold a lock.
    Blocking.
    """
    return _sweep([*directory.glob(f"{_PREFIX}*"), *directory.glob(f"*/{_PREFIX}*")])


def _sweep(found: Iterable[Path]) -> list[Path]:
    swept: list[Path] = []
    for path in found:
        try:
            descriptor = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC)
        except OSError:
            continue
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            shutil.rmtree(path)
            swept.append(path)
        except BlockingIOError:
            continue
        finally:
            os.close(descriptor)
    return swept


def _exchange(one: Path, other: Path) -> None:
    """Swaps two names in one step (renameat2)."""
    done = _libc.renameat2(_AT_FDCWD, os.fsencode(one), _AT_FDCWD, os.fsencode(other), _RENAME_EXCHANGE)
    if done:
        error = ctypes.get_errno()
        raise OSError(error, os.strerror(error))
