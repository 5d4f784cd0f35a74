"""Layers into the one tree that a container sees, without unpacking them: whiteouts applied. Blocking."""

import tarfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import BinaryIO

from builder.layer_tar import OPAQUE, WHITEOUT, TarEntry, read_entries, tar_stream


@dataclass(frozen=True, slots=True)
class _Placed:
    entry: TarEntry
    file: BinaryIO


def flattened_tar(layers: Sequence[BinaryIO]) -> Iterator[bytes]:
    """``layers`` are uncompressed tars, bottom first. Sorted, with neither whiteouts nor what they hide."""
    tree: dict[str, _Placed] = {}
    for at, file in enumerate(layers):
        entries = read_entries(file, f"{at}")
        for entry in entries:
            _hide(tree, entry)
        for entry in _self_contained(entries):
            name = entry.path.rpartition("/")[2]
            if not name.startswith(WHITEOUT):
                _place(tree, entry, file)
    ordered = sorted(tree.values(), key=lambda placed: placed.entry.sort_key)
    return tar_stream((entry, file) for entry, file in _linked(ordered))


def _hide(tree: dict[str, _Placed], entry: TarEntry) -> None:
    parent, _, name = entry.path.rpartition("/")
    if name == OPAQUE:
        _drop_below(tree, parent)
    elif name.startswith(WHITEOUT):
        hidden = f"{parent}/{name.removeprefix(WHITEOUT)}".lstrip("/")
        tree.pop(hidden, None)
        _drop_below(tree, hidden)


def _drop_below(tree: dict[str, _Placed], path: str) -> None:
    prefix = f"{path}/" if path else ""
    for below in [known for known in tree if known.startswith(prefix) and known != path]:
        del tree[below]


def _place(tree: dict[str, _Placed], entry: TarEntry, file: BinaryIO) -> None:
    if (
        entry.kind != tarfile.DIRTYPE
        and entry.path in tree
        and tree[entry.path].entry.kind == tarfile.DIRTYPE
    ):
        _drop_below(tree, entry.path)
    tree[entry.path] = _Placed(entry, file)


def _self_contained(entries: Sequence[TarEntry]) -> Iterator[TarEntry]:
    """Hard links carry the place of their data, for the name they point at may be hidden by a layer above."""
    files = {entry.path: entry for entry in entries if entry.kind == tarfile.REGTYPE}
    for entry in entries:
        target = files.get(entry.link) if entry.kind == tarfile.LNKTYPE else None
        if target is None:
            yield entry
        else:
            yield replace(target, path=entry.path)


def _linked(ordered: Sequence[_Placed]) -> Iterator[tuple[TarEntry, BinaryIO]]:
    """The names that share one place of data become hard links of the first of them again."""
    first: dict[tuple[int, int], str] = {}
    for placed in ordered:
        entry = placed.entry
        if entry.kind == tarfile.REGTYPE and entry.size:
            carrier = first.setdefault((id(placed.file), entry.offset), entry.path)
            if carrier != entry.path:
                entry = replace(entry, kind=tarfile.LNKTYPE, link=carrier, size=0, xattrs={})
        yield entry, placed.file
