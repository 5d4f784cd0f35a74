"""Reads a tree in path order with directory descriptors, so that no name is ever resolved through a link
that was swapped in, and no path is too long.
"""

import os
import stat
from collections.abc import Iterator
from dataclasses import dataclass

from content.archive.excludes import Excludes

ROOT = "."


@dataclass(frozen=True, slots=True)
class LeftOut:
    """Something of the tree that is not in the backup; ``expected`` when that was asked for or is normal."""

    path: str
    reason: str
    expected: bool = False


class Found:
    """One thing in the tree. ``directory`` is the descriptor of what holds it, open until the next one is
    taken from the walk; ``directory`` and ``name`` of the root are -1 and its path.
    """

    __slots__ = ("directory", "name", "path", "status")

    def __init__(self, path: str, name: str, directory: int, status: os.stat_result) -> None:
        self.path = path
        self.name = name
        self.directory = directory
        self.status = status


def path_key(path: str) -> str:
    """Sorting by this is path order: component by component, a directory before what it holds."""
    return "" if path == ROOT else path.replace("/", "\0")


def open_directory(name: str, directory: int | None) -> int:
    flags = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC
    try:
        return os.open(name, flags | os.O_NOATIME, dir_fd=directory)
    except PermissionError:  # O_NOATIME is for owners only
        return os.open(name, flags, dir_fd=directory)


class Walk:
    """Iterates over a tree once; ``left_out`` fills meanwhile. Blocking, for one thread.

    Stays on the root's file system: a mount point is kept as an empty directory and reported.
    """

    def __init__(self, root: str, excludes: Excludes) -> None:
        self._root = root
        self._excludes = excludes
        self.left_out: list[LeftOut] = []

    def __iter__(self) -> Iterator[Found]:
        descriptor = os.open(self._root, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        stack: list[tuple[str, int, Iterator[os.DirEntry[str]]]] = []
        try:
            status = os.fstat(descriptor)
            device = status.st_dev
            yield Found(ROOT, self._root, -1, status)
            stack.append(("", descriptor, self._entries(descriptor, ROOT)))
            while stack:
                prefix, directory, entries = stack[-1]
                for entry in entries:
                    found = self._found(prefix, directory, entry)
                    if found is None:
                        continue
                    yield found
                    if stat.S_ISDIR(found.status.st_mode):
                        below = self._descend(found, device)
                        if below is not None:
                            stack.append(below)
                            break
                else:
                    stack.pop()
                    os.close(directory)
        finally:
            for _, directory, _ in stack:
                os.close(directory)

    def _entries(self, descriptor: int, path: str) -> Iterator[os.DirEntry[str]]:
        try:
            with os.scandir(descriptor) as entries:
                return iter(sorted(entries, key=_name))
        except OSError as error:
            self.left_out.append(LeftOut(path, f"cannot be listed: {error.strerror}"))
            return iter(())

    def _found(self, prefix: str, directory: int, entry: os.DirEntry[str]) -> Found | None:
        name = entry.name
        path = prefix + name
        try:
            status = entry.stat(follow_symlinks=False)
        except FileNotFoundError:
            self.left_out.append(LeftOut(path, "vanished while the tree was read", expected=True))
            return None
        except OSError as error:
            self.left_out.append(LeftOut(path, f"cannot be read: {error.strerror}"))
            return None
        if self._excludes.patterns and self._excludes.match(path, is_directory=stat.S_ISDIR(status.st_mode)):
            self.left_out.append(LeftOut(path, "excluded", expected=True))
            return None
        if stat.S_ISSOCK(status.st_mode):
            self.left_out.append(LeftOut(path, "a socket has no content", expected=True))
            return None
        return Found(path, name, directory, status)

    def _descend(self, found: Found, device: int) -> tuple[str, int, Iterator[os.DirEntry[str]]] | None:
        if found.status.st_dev != device:
            self.left_out.append(LeftOut(found.path, "another file system is mounted here", expected=True))
            return None
        try:
            descriptor = open_directory(found.name, found.directory)
        except OSError as error:
            self.left_out.append(LeftOut(found.path, f"cannot be opened: {error.strerror}"))
            return None
        return found.path + "/", descriptor, self._entries(descriptor, found.path)


def _name(entry: os.DirEntry[str]) -> str:
    return entry.name
