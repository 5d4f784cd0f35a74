"""The directory of a workspace on this node: fit to be read, or in the middle of a restore."""

import os
from pathlib import Path

from content.errors import LocalDiskError, TreeUnfinished

MARKER = ".lapstrake-restoring"
"""At the root of a tree whose restore has not finished; such a tree is never backed up."""


def check_complete(tree: Path) -> None:
    """Raises LocalDiskError when ``tree`` is no readable directory, TreeUnfinished when it has the marker.
    Blocking.
    """
    try:
        with os.scandir(tree) as entries:
            if any(entry.name == MARKER for entry in entries):
                raise TreeUnfinished(str(tree))
    except OSError as error:
        raise LocalDiskError.from_os(str(tree), error) from error


def mark_unfinished(directory: int) -> None:
    """Blocking."""
    os.close(os.open(MARKER, os.O_WRONLY | os.O_CREAT | os.O_CLOEXEC, 0o600, dir_fd=directory))


def mark_complete(directory: int) -> None:
    """Blocking."""
    os.unlink(MARKER, dir_fd=directory)
