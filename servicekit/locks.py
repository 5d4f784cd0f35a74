"""Locks between processes that the kernel gives up with their holder."""

import contextlib
import fcntl
import os
from collections.abc import Iterator
from pathlib import Path


@contextlib.contextmanager
def exclusive(path: Path) -> Iterator[None]:
    """Blocks until no other holder of ``path``, which is made when missing and stays. Raises OSError.

    The lock belongs to this open of the file: it keeps out threads of this process as well as other
    processes, and must not be taken again inside the block.
    """
    descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX)
        yield
    finally:
        os.close(descriptor)
