"""Directories of benchmarks, and the end of those that a killed run left behind.

Each is marked by a file that its run holds locked; the kernel frees the lock with the process. `sweep` takes
what nobody holds: mounts and loop devices first, then the files.
"""

import contextlib
import fcntl
import os
import shutil
import subprocess
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path

MEMORY = Path("/dev/shm")  # noqa: S108 (directories of our own in it)
_PREFIX = "lapstrake-bench-"
_LOCK = ".held-by-a-benchmark"


@contextlib.contextmanager
def directory(*, in_memory: bool = False) -> Iterator[Path]:
    """An empty directory, removed at the end; ``in_memory`` where the machine has room for files there."""
    parent = MEMORY if in_memory and MEMORY.is_dir() else Path(tempfile.gettempdir())
    root = Path(tempfile.mkdtemp(prefix=_PREFIX, dir=parent))
    with _locked(root) as held:
        assert held
        inside = root / "files"
        inside.mkdir()
        try:
            yield inside
        finally:
            shutil.rmtree(root)


def sweep(parents: Sequence[Path] = ()) -> list[Path]:
    """Removes what earlier runs left in ``parents`` (by default wherever `directory` makes them)."""
    swept = []
    for parent in parents or (MEMORY, Path(tempfile.gettempdir())):
        for left in sorted(parent.glob(f"{_PREFIX}*/{_LOCK}")):
            with _locked(left.parent) as held:
                if held:
                    _detach(left.parent)
                    shutil.rmtree(left.parent)
                    swept.append(left.parent)
    return swept


@contextlib.contextmanager
def _locked(root: Path) -> Iterator[bool]:
    """Whether nobody else holds it. The descriptor is not inherited by programs that are started."""
    descriptor = os.open(root / _LOCK, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        yield False
    else:
        yield True
    finally:
        os.close(descriptor)


def _detach(root: Path) -> None:
    """The deepest mount first, and the device of each before what lies under it."""
    points = [line.split()[4] for line in Path("/proc/self/mountinfo").read_text().splitlines()]
    for point in reversed([point for point in points if Path(point).is_relative_to(root)]):
        _free_loops(root)
        subprocess.run(["umount", "--lazy", point], check=True)  # programs may have outlived their run
    _free_loops(root)


def _free_loops(root: Path) -> None:
    """A device that is still mounted goes when it is not any more."""
    for backing in Path("/sys/block").glob("loop*/loop/backing_file"):
        with contextlib.suppress(OSError):
            if Path(backing.read_text().strip()).is_relative_to(root):
                subprocess.run(["losetup", "-d", f"/dev/{backing.parts[3]}"], check=False)
