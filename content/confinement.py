"""Keeps what clients name below one directory."""

import os
from pathlib import Path

from content.errors import PathOutsideRoot


def confined(root: Path, path: str) -> Path:
    """``path`` below ``root``, with every link resolved. Raises PathOutsideRoot. Blocking."""
    try:
        base = Path(os.path.realpath(root, strict=True))
        found = Path(os.path.realpath(base / path))
    except (OSError, ValueError):
        raise PathOutsideRoot(path) from None
    if base not in found.parents:
        raise PathOutsideRoot(path)
    return found
