"""From a directory to the disks that its bytes go to, as the io controllers want them named.

A partition is limited through its disk (io.max refuses partitions); overlay and btrfs have no device of
their own and are resolved through the mount table; device mapper, md and loop devices are limited as they
are, where requests enter them.
"""

import os
import re
from dataclasses import dataclass
from pathlib import Path

from content.errors import LocalDiskError


@dataclass(frozen=True, slots=True, order=True)
class Device:
    """A whole block device."""

    major: int
    minor: int

    def __str__(self) -> str:
        return f"{self.major}:{self.minor}"


def device_of(path: Path, *, root: Path = Path("/")) -> Device:
    """The device under ``path``; ``root`` is where ``sys`` and ``proc`` are. Blocking.

    Raises LocalDiskError when there is none that can be limited (tmpfs, network file systems).
    """
    try:
        number = path.stat().st_dev
    except OSError as error:
        raise LocalDiskError.from_os(str(path), error) from error
    return resolve(os.major(number), os.minor(number), path, root=root)


def resolve(major: int, minor: int, path: Path, *, root: Path = Path("/"), depth: int = 0) -> Device:
    """As `device_of`, for a device number that is known."""
    if major == 0:
        beneath = _beneath(f"{major}:{minor}", root)
        if beneath is None or depth > 4:
            raise LocalDiskError(str(path), "no block device lies under it, so its I/O cannot be limited")
        try:
            status = beneath.stat()
        except OSError as error:
            raise LocalDiskError.from_os(f"{beneath} under {path}", error) from error
        number = status.st_rdev or status.st_dev
        return resolve(os.major(number), os.minor(number), path, root=root, depth=depth + 1)
    node = root / "sys/dev/block" / f"{major}:{minor}"
    if (node / "partition").exists():
        disk = (node.resolve().parent / "dev").read_text().strip()
        major, minor = map(int, disk.split(":"))
    return Device(major, minor)


def _beneath(number: str, root: Path) -> Path | None:
    """The source of a mount without a device of its own: btrfs's disk, overlay's upper directory."""
    for line in (root / "proc/self/mountinfo").read_text().splitlines():
        left, _, right = line.partition(" - ")
        if left.split()[2] != number:
            continue
        kind, source, options = [*right.split(" ", 2), "", ""][:3]
        if kind == "overlay":
            upper = [item[9:] for item in options.split(",") if item.startswith("upperdir=")]
            return _unescaped(upper[0]) if upper else None
        if source.startswith("/"):
            return _unescaped(source)
    return None


def _unescaped(text: str) -> Path:
    r"""Spaces and the like are octal in the mount table: ``\040``."""
    return Path(re.sub(r"\\([0-7]{3})", lambda match: chr(int(match[1], 8)), text))
