"""A snapshot of a workspace as a layer: the same members, moved to the place it belongs in the image.

The tar of a snapshot begins at the workspace's own root and may hold several members of a name, of which the
last counts (docs/backup-format.md); a layer has each path once (image-spec v1.1, layer.md). Owners, modes,
times and extended attributes stay as they are.
"""

import copy
import tarfile
from pathlib import Path, PurePosixPath
from typing import IO

from registry_facade.errors import LayerUnavailable

_RENEWED = ("path", "linkpath", "size", "hdrcharset")
"""Pax records that are made anew; those of sparse files go too, since they are written out."""


def moved_tar(source: Path, out: IO[bytes], at: str) -> None:
    """Writes the layer's tar; blocking. Of each member only the name is held in memory.

    Raises LayerUnavailable or tarfile.TarError.
    """
    place = at.strip("/")
    with source.open("rb") as file:
        last = _last_members(file)
        file.seek(0)
        with (
            _tar(file) as read,
            tarfile.open(fileobj=out, mode="w", format=tarfile.PAX_FORMAT) as written,
        ):
            for number, member in enumerate(read):
                name = _moved(member.name, place)
                if last[member.name] == number and name:
                    _add(read, written, member, name, place)


def _tar(file: IO[bytes]) -> tarfile.TarFile:
    return tarfile.open(fileobj=file, mode="r:", errors="surrogateescape")


def _last_members(file: IO[bytes]) -> dict[str, int]:
    last: dict[str, int] = {}
    with _tar(file) as tar:
        for number, member in enumerate(tar):
            last[member.name] = number
            _forget(tar)
    return last


def _moved(name: str, place: str) -> str:
    path = PurePosixPath(name)
    if path.is_absolute() or ".." in path.parts:
        raise LayerUnavailable("snapshot", f"its tar holds {name!r}")
    return str(PurePosixPath(place) / path) if place or name not in {".", ""} else ""


def _add(
    read: tarfile.TarFile, written: tarfile.TarFile, member: tarfile.TarInfo, name: str, place: str
) -> None:
    moved = copy.copy(member)
    moved.name = name
    if member.islnk():
        moved.linkname = _moved(member.linkname, place)
    moved.pax_headers = {
        key: value
        for key, value in member.pax_headers.items()
        if key not in _RENEWED and not key.startswith("GNU.sparse.")
    }
    moved.sparse = None
    content = read.extractfile(member) if member.isreg() else None
    written.addfile(moved, content)
    _forget(read)
    _forget(written)


def _forget(tar: tarfile.TarFile) -> None:
    """It would keep every header it has seen."""
    tar.members.clear()  # type: ignore[attr-defined] # as the library's own tests use it
