"""The part of a tree that is named: what a walk would find at these paths, in path order."""

import os
from collections.abc import Iterable, Iterator

from content.archive.directories import Directories
from content.archive.walk import ROOT, Found, LeftOut, path_key
from content.errors import UnsafeArchiveEntry


class Listed:
    """Iterates once; ``left_out`` fills meanwhile. Blocking, for one thread; no link is followed."""

    def __init__(self, root: str, paths: Iterable[str]) -> None:
        self._root = root
        self._paths = sorted(paths, key=path_key)
        self.left_out: list[LeftOut] = []

    def __iter__(self) -> Iterator[Found]:
        root = os.open(self._root, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        directories = Directories(root, ())
        try:
            for path in self._paths:
                if path == ROOT:
                    yield Found(ROOT, self._root, -1, os.fstat(root))
                elif (found := self._found(directories, path)) is not None:
                    yield found
        finally:
            directories.close()
            os.close(root)

    def _found(self, directories: Directories, path: str) -> Found | None:
        try:
            parent, _ = directories.parent(os.fsencode(path), create=False)
            name = path.rpartition("/")[2]
            return Found(path, name, parent, os.stat(name, dir_fd=parent, follow_symlinks=False))
        except (OSError, UnsafeArchiveEntry):
            reason = "vanished while the tree was read; its earlier version, if any, is kept"
            self.left_out.append(LeftOut(path, reason, expected=True))
            return None
