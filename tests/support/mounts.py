"""File systems of a test's own that are small, have quotas, or have gone bad; for root."""

import contextlib
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.support.components import require


def _run(*command: object) -> None:
    subprocess.run(list(map(str, command)), check=True, capture_output=True)


@contextlib.contextmanager
def _mounted(point: Path, *options: object) -> Iterator[Path]:
    point.mkdir(exist_ok=True)
    try:
        _run("mount", *options, point)
    except subprocess.CalledProcessError as error:
        pytest.skip(f"cannot mount: {error.stderr.decode().strip()}")
    try:
        yield point
    finally:
        _run("umount", point)


def tmpfs(point: Path, **options: object) -> contextlib.AbstractContextManager[Path]:
    """A tmpfs with mount options such as ``size="4m"``, ``nr_inodes=20``."""
    text = ",".join(f"{key}={value}" for key, value in options.items())
    return _mounted(point, "-t", "tmpfs", "-o", text, "lapstrake-test")


class Btrfs:
    """A btrfs in a file, which checks what it reads: flipped bytes on the disk are EIO to its readers."""

    def __init__(self, root: Path) -> None:
        require("btrfs-progs")
        self._image = root / "btrfs.img"
        self._point = root / "btrfs"
        with self._image.open("wb") as file:
            file.truncate(128 << 20)
        _run("mkfs.btrfs", "--quiet", "--mixed", self._image)

    def mounted(self) -> contextlib.AbstractContextManager[Path]:
        return _mounted(self._point, "-o", "loop", self._image)

    def limit(self, point: Path, size_bytes: int) -> None:
        """No more than so many bytes: what is written beyond is EDQUOT."""
        _run("btrfs", "quota", "enable", point)
        _run("btrfs", "qgroup", "limit", size_bytes, "0/5", point)

    def corrupt(self, content: bytes) -> None:
        """Flips a bit where ``content`` lies on the unmounted disk."""
        image = bytearray(self._image.read_bytes())
        at = image.find(content)
        assert at >= 0, "the content is not on the disk in one piece"
        image[at] ^= 1
        self._image.write_bytes(image)
