"""A layer's table of contents: enough to tell which chunks disagree, without the layer.

Made once when a layer is published, kept beside the chunk as a small artifact, and cached by diff_id. The
few files that can be merged are in it whole.
"""

import base64
import contextlib
import hashlib
import json
import tarfile
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO, Any, cast

import zstandard

from builder.compression import decompressed
from builder.errors import InvalidLayer
from builder.layer_tar import OPAQUE, WHITEOUT, NormalTar, clean_path
from builder.merge_files import MERGERS
from builder.pieces import PieceReader
from ocikit.digest import Digest
from servicekit.atomic import atomic_write

_FORMAT_VERSION = 2
_READ_BYTES = 1 << 20
_MAX_MERGED_BYTES = 32 << 20
_KINDS = {tarfile.DIRTYPE: "dir", tarfile.SYMTYPE: "link", tarfile.LNKTYPE: "hard"}


@dataclass(frozen=True, slots=True)
class ContentsEntry:
    """``content`` is a file's sha256 (hex), a link's target, empty otherwise."""

    kind: str
    mode: int
    uid: int
    gid: int
    content: str


@dataclass(frozen=True, slots=True)
class Contents:
    """``entries`` by path, whiteouts among them under their own names; ``merged`` are whole files."""

    entries: Mapping[str, ContentsEntry]
    merged: Mapping[str, bytes] = field(default_factory=dict)

    def dump(self) -> bytes:
        """Compressed, and the same bytes for the same contents."""
        document = {
            "format_version": _FORMAT_VERSION,
            "entries": {
                path: [entry.kind, entry.mode, entry.uid, entry.gid, entry.content]
                for path, entry in self.entries.items()
            },
            "merged": {path: base64.b64encode(data).decode() for path, data in self.merged.items()},
        }
        data = json.dumps(document, sort_keys=True, separators=(",", ":")).encode()
        return zstandard.ZstdCompressor(level=3).compress(data)

    @classmethod
    def parse(cls, data: bytes, layer: str) -> "Contents":
        """Raises InvalidLayer."""
        try:
            plain = b"".join(decompressed([data], "zstd", layer))
            raw: Any = json.loads(plain)
            if raw["format_version"] != _FORMAT_VERSION:
                raise InvalidLayer(layer, "its table of contents is of another version")
            entries = {path: ContentsEntry(*fields) for path, fields in raw["entries"].items()}
            merged = {path: base64.b64decode(text) for path, text in raw["merged"].items()}
        except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
            raise InvalidLayer(layer, "its table of contents cannot be read") from error
        return cls(entries, merged)


def contents_of(tar: NormalTar) -> Contents:
    """Of a layer in its normal form, reading only the data of its files; blocking."""
    entries: dict[str, ContentsEntry] = {}
    merged: dict[str, bytes] = {}
    for entry, pieces in tar.files():
        content = entry.link
        if entry.kind == tarfile.REGTYPE:
            content, kept = _read_pieces(pieces, keep=entry.path in MERGERS)
            if kept is not None:
                merged[entry.path] = kept
        kind = "file" if entry.kind == tarfile.REGTYPE else _KINDS.get(entry.kind, "node")
        entries[entry.path] = ContentsEntry(kind, entry.mode, entry.uid, entry.gid, content)
    return Contents(entries, merged)


def read_contents(pieces: Iterable[bytes], layer: str) -> Contents:
    """From an uncompressed tar, in one pass; blocking. Raises InvalidLayer."""
    entries: dict[str, ContentsEntry] = {}
    merged: dict[str, bytes] = {}
    stream = PieceReader(pieces)
    try:
        with tarfile.open(fileobj=cast("IO[bytes]", stream), mode="r|") as archive:
            for member in archive:
                path = clean_path(member.name, layer)
                content = member.linkname if member.issym() else ""
                if member.islnk():
                    content = clean_path(member.linkname, layer)
                if member.isreg():
                    content, kept = _read_file(member, archive, keep=path in MERGERS)
                    if kept is not None:
                        merged[path] = kept
                kind = "file" if member.isreg() else _KINDS.get(member.type, "node")
                entries[path] = ContentsEntry(kind, member.mode & 0o7777, member.uid, member.gid, content)
                setattr(archive, "members", [])  # noqa: B010 (unknown to its stubs; else every member is kept)
            stream.drain()
    except InvalidLayer:  # a ValueError too, which says already what is wrong
        raise
    except (tarfile.TarError, ValueError, OverflowError) as error:
        raise InvalidLayer(layer, f"not a tar: {error}") from error
    return Contents(entries, merged)


def _read_file(member: tarfile.TarInfo, archive: tarfile.TarFile, *, keep: bool) -> tuple[str, bytes | None]:
    source = archive.extractfile(member)
    pieces = iter(lambda: source.read(_READ_BYTES), b"") if source is not None else iter(())
    return _read_pieces(pieces, keep=keep)


def _read_pieces(pieces: Iterable[bytes], *, keep: bool) -> tuple[str, bytes | None]:
    hasher, kept = hashlib.sha256(), bytearray()
    for data in pieces:
        hasher.update(data)
        if keep and len(kept) <= _MAX_MERGED_BYTES:
            kept += data
    return hasher.hexdigest(), bytes(kept) if keep and len(kept) <= _MAX_MERGED_BYTES else None


class ContentsCache:
    """By diff_id, in files. Blocking; several processes may share ``root``."""

    def __init__(self, root: Path) -> None:
        self._root = root

    def find(self, diff_id: Digest) -> Contents | None:
        with contextlib.suppress(OSError, InvalidLayer):
            return Contents.parse((self._root / diff_id.encoded).read_bytes(), diff_id.short)
        return None

    def put(self, diff_id: Digest, data: bytes) -> None:
        atomic_write(self._root / diff_id.encoded, data)


def stacked(layers: Sequence[Contents]) -> Contents:
    """Several layers as if they were one; what an upper layer hides is not shown, the whiteouts are."""
    if len(layers) == 1:
        return layers[0]
    entries: dict[str, ContentsEntry] = {}
    merged: dict[str, bytes] = {}
    for layer in layers:
        if deleted := deletions(layer):
            for path in [path for path in entries if is_deleted(path, deleted)]:
                del entries[path]
                merged.pop(path, None)
        entries |= layer.entries
        merged |= layer.merged
    return Contents(entries, merged)


def deletions(layer: Contents) -> Mapping[str, bool]:
    """What a layer removes: path -> whether only what is below it goes (an opaque directory)."""
    found: dict[str, bool] = {}
    for path in layer.entries:
        parent, _, name = path.rpartition("/")
        if name == OPAQUE:
            found.setdefault(parent, True)
        elif name.startswith(WHITEOUT):
            found[f"{parent}/{name.removeprefix(WHITEOUT)}".lstrip("/")] = False
    return found


def is_deleted(path: str, deleted: Mapping[str, bool]) -> bool:
    """Whether ``path``, or a directory it is in, is among ``deleted``."""
    if deleted.get(path) is False:
        return True
    parts = path.split("/")
    return any("/".join(parts[:depth]) in deleted for depth in range(len(parts)))
