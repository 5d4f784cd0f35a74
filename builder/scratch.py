"""Directories for work under way, which are found and removed when who made them was killed."""

import contextlib
import fcntl
import os
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path

_GUARD = ".guard"


class Scratch:
    """Makes directories in ``root``. Several processes may share it. Blocking.

    A directory is locked for as long as it is used. Looking for those that nobody holds, and making one and
    locking it, exclude each other: between the two a new one would look like a forgotten one.
    """

    def __init__(self, root: Path) -> None:
        self.root = root

    @contextlib.contextmanager
    def directory(self) -> Iterator[Path]:
        """An empty one, gone after the block; what processes that were killed have left is removed first."""
        self.root.mkdir(parents=True, exist_ok=True)
        with contextlib.ExitStack() as held:
            with (self.root / _GUARD).open("wb") as guard:
                fcntl.flock(guard, fcntl.LOCK_EX)
                forgotten = [path for path in self.root.iterdir() if path.is_dir() and _hold(path, held)]
                path = Path(tempfile.mkdtemp(dir=self.root))
                _hold(path, held)
            for stale in forgotten:
                shutil.rmtree(stale, ignore_errors=True)
            try:
                yield path
            finally:
                shutil.rmtree(path, ignore_errors=True)


def _hold(path: Path, held: contextlib.ExitStack) -> bool:
    """Whether nobody has held ``path``; if so it is held until ``held`` ends."""
    try:
        opened = os.open(path, os.O_RDONLY | os.O_DIRECTORY)
    except FileNotFoundError:  # its owner has just removed it
        return False
    try:
        fcntl.flock(opened, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        os.close(opened)
        return False
    held.callback(os.close, opened)
    return True
