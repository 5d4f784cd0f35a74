"""Directories of a tree under construction, by descriptor; no name is ever followed through a link."""

import contextlib
import os
from collections.abc import Container

from content.errors import UnsafeArchiveEntry

_OPEN = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC
_KEPT = 128
_KEPT_DEPTH = 16


class Directories:
    """A bounded cache of open directories below ``root``; for one thread.

    ``links`` are paths promised to symbolic links that do not exist yet: nothing may lead through them.
    """

    def __init__(self, root: int, links: Container[bytes]) -> None:
        self._root = root
        self._links = links
        self._open: dict[bytes, int] = {}

    def parent(self, path: bytes, *, create: bool = True) -> tuple[int, bytes]:
        """(descriptor of the directory that holds ``path``, last component); valid until the next-but-one
        call. Raises UnsafeArchiveEntry, OSError.
        """
        directory, _, name = path.rpartition(b"/")
        return self.open(directory, create=create, entry=path), name

    def open(self, path: bytes, *, create: bool = True, entry: bytes = b"") -> int:
        """The directory ``path``, made (mode 0700) when it is missing, like those above it; ``entry`` is the
        member that needs it, for messages.
        """
        if not path:
            return self._root
        found = self._open.pop(path, None)
        if found is None:
            return self._walk(path, entry or path, create=create)
        self._open[path] = found  # the latest is the last to be forgotten
        return found

    def _walk(self, path: bytes, entry: bytes, *, create: bool) -> int:
        if len(self._open) > _KEPT:
            self._forget_old()
        known, at = path, self._root
        while known := known.rpartition(b"/")[0]:
            if known in self._open:
                at = self._open[known]
                break
        passing = -1  # a descriptor between two kept ones
        current = known
        parts = path[len(known) :].strip(b"/").split(b"/")
        for depth, part in enumerate(parts, start=current.count(b"/") + 2 if current else 1):
            current = current + b"/" + part if current else part
            if current in self._links:
                raise UnsafeArchiveEntry(
                    os.fsdecode(entry), f"it leads through the symbolic link {os.fsdecode(current)!r}"
                )
            below = self._step(part, at, create=create)
            if passing >= 0:
                os.close(passing)
            at, passing = below, below
            if depth <= _KEPT_DEPTH or current == path:
                self._open[current], passing = below, -1
        return at

    @staticmethod
    def _step(part: bytes, at: int, *, create: bool) -> int:
        try:
            return os.open(part, _OPEN, dir_fd=at)
        except FileNotFoundError:
            if not create:
                raise
        with contextlib.suppress(FileExistsError):  # another thread was first
            os.mkdir(part, 0o700, dir_fd=at)
        return os.open(part, _OPEN, dir_fd=at)

    def _forget_old(self) -> None:
        for path in list(self._open)[: _KEPT // 2]:
            os.close(self._open.pop(path))

    def close(self) -> None:
        for descriptor in self._open.values():
            os.close(descriptor)
        self._open.clear()

    @staticmethod
    def forbid_none(opened: "list[Directories]") -> None:
        """From now on the links exist, and ``O_NOFOLLOW`` alone guards."""
        for directories in opened:
            directories._links = ()  # noqa: SLF001 (own class)
