"""A layer's tar in its one normal form, so that the same files are the same bytes.

Entries sorted, whiteouts first in their directory; mtimes clamped (also those of parent directories), no
other times; numeric owners only; xattrs and hard links kept; PAX records only where ustar cannot say it.
Blocking, and streaming: of the layer's data never more than a MiB is in memory.
"""

import tarfile
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import BinaryIO

from builder.errors import InvalidLayer

WHITEOUT = ".wh."
OPAQUE = f"{WHITEOUT}{WHITEOUT}.opq"
_BLOCK = 512
_PIECE_BYTES = 1 << 20
_XATTR = "SCHILY.xattr."
_NO_XATTRS: Mapping[str, str] = {}


@dataclass(frozen=True, slots=True)
class TarEntry:
    """One entry; ``path`` has neither leading ``./`` nor trailing ``/`` and is empty for the root."""

    path: str
    kind: bytes
    mode: int
    uid: int
    gid: int
    size: int
    mtime_s: int
    link: str
    device: tuple[int, int]
    xattrs: Mapping[str, str]
    offset: int

    @property
    def sort_key(self) -> tuple[tuple[bool, str], ...]:
        return tuple((not part.startswith(WHITEOUT), part) for part in self.path.split("/"))


def read_entries(file: BinaryIO, layer: str) -> Sequence[TarEntry]:
    """Of an uncompressed, seekable tar; of a repeated path the last counts. Raises InvalidLayer."""
    found: dict[str, TarEntry] = {}
    try:
        with tarfile.open(fileobj=file, mode="r:") as archive:
            for member in archive:
                entry = _entry(member, layer)
                found.pop(entry.path, None)
                found[entry.path] = entry
                archive.members = []  # type: ignore[attr-defined]  # else tarfile keeps every member
    except InvalidLayer:  # a ValueError too, which says already what is wrong
        raise
    except (tarfile.TarError, ValueError, OverflowError) as error:
        raise InvalidLayer(layer, f"not a tar: {error}") from error
    return list(found.values())


def _entry(member: tarfile.TarInfo, layer: str) -> TarEntry:
    if member.issparse():
        raise InvalidLayer(layer, f"{member.name} is a sparse file")
    xattrs = {key: value for key, value in member.pax_headers.items() if key.startswith(_XATTR)}
    return TarEntry(
        clean_path(member.name, layer),
        member.type if member.type not in {tarfile.AREGTYPE, tarfile.CONTTYPE} else tarfile.REGTYPE,
        member.mode & 0o7777,
        member.uid,
        member.gid,
        member.size if member.isreg() else 0,
        int(member.mtime),
        clean_path(member.linkname, layer) if member.islnk() else member.linkname,
        (member.devmajor, member.devminor) if member.ischr() or member.isblk() else (0, 0),
        xattrs or _NO_XATTRS,
        member.offset_data,
    )


def clean_path(name: str, layer: str) -> str:
    """``a/b`` for ``./a/b/``; raises InvalidLayer for what leads out of the root."""
    parts = [part for part in name.split("/") if part not in {"", "."}]
    if ".." in parts or "\0" in name:
        raise InvalidLayer(layer, f"the entry {name[:200]!r} leads out of the root")
    return "/".join(parts)


def normalised(entries: Sequence[TarEntry], *, clamp_s: int) -> Sequence[TarEntry]:
    """Sorted, clamped, and each hard link behind its file: the first name in order carries the data."""
    ordered = sorted(entries, key=lambda entry: entry.sort_key)
    files = {entry.path: entry for entry in ordered if entry.kind == tarfile.REGTYPE}
    carriers: dict[str, str] = {}
    for entry in ordered:
        if entry.kind == tarfile.LNKTYPE and entry.link in files:
            carriers.setdefault(
                entry.link, min((entry, files[entry.link]), key=lambda one: one.sort_key).path
            )
    made: list[TarEntry] = []
    for entry in ordered:
        target = entry.link if entry.kind == tarfile.LNKTYPE else entry.path
        carrier = carriers.get(target, target)
        changed = replace(entry, mtime_s=max(0, min(entry.mtime_s, clamp_s)))
        if target in carriers and entry.path == carrier:
            changed = replace(files[target], path=entry.path, mtime_s=changed.mtime_s, link="")
        elif target in carriers:
            changed = replace(changed, kind=tarfile.LNKTYPE, size=0, link=carrier)
        made.append(changed)
    return made


class NormalTar:
    """The normal form of the tar in ``path``; every iteration gives all of its bytes again."""

    def __init__(self, path: Path, *, clamp_s: int) -> None:
        self._path = path
        with path.open("rb") as file:
            self._entries = normalised(read_entries(file, path.name[:12]), clamp_s=clamp_s)

    @property
    def is_empty(self) -> bool:
        """Whether the layer changes nothing at all."""
        return not self._entries

    def files(self) -> Iterator[tuple[TarEntry, Iterator[bytes]]]:
        """Each entry with its data, which must be taken before the next entry is."""
        with self._path.open("rb") as file:
            for entry in self._entries:
                yield entry, _data(entry, file)

    def __iter__(self) -> Iterator[bytes]:
        with self._path.open("rb") as file:
            yield from tar_stream((entry, file) for entry in self._entries)


def tar_stream(entries: Iterable[tuple[TarEntry, BinaryIO]]) -> Iterator[bytes]:
    """A tar of ``entries`` as they are, the data of each read out of its file. Raises InvalidLayer."""
    buffer = bytearray()
    for entry, file in entries:
        buffer += header(entry)
        for data in _data(entry, file):
            buffer += data
            if len(buffer) >= _PIECE_BYTES:
                yield bytes(buffer)
                buffer.clear()
        buffer += bytes(-entry.size % _BLOCK)
        if len(buffer) >= _PIECE_BYTES:
            yield bytes(buffer)
            buffer.clear()
    buffer += bytes(2 * _BLOCK)
    yield bytes(buffer)


def _data(entry: TarEntry, file: BinaryIO) -> Iterator[bytes]:
    left = entry.size
    if left:
        file.seek(entry.offset)
    while left:
        data = file.read(min(left, _PIECE_BYTES))
        if not data:
            raise InvalidLayer("tar", f"truncated in {entry.path}")
        left -= len(data)
        yield data


def header(entry: TarEntry) -> bytes:
    """The header blocks of ``entry``: ustar, behind a PAX header where that is too narrow."""
    name = entry.path + "/" if entry.kind == tarfile.DIRTYPE else entry.path
    name_bytes = _encode(name or "./")
    link_bytes = _encode(entry.link)
    records = {key: _encode(value) for key, value in entry.xattrs.items()}
    if len(name_bytes) > 100 or not name_bytes.isascii():
        records["path"] = name_bytes
    if len(link_bytes) > 100 or not link_bytes.isascii():
        records["linkpath"] = link_bytes
    for key, value, limit in (
        ("size", entry.size, 8**11), ("uid", entry.uid, 8**7), ("gid", entry.gid, 8**7),
        ("mtime", entry.mtime_s, 8**11),
    ):  # fmt: skip
        if value >= limit:
            records[key] = str(value).encode()
    block = _ustar(entry, name_bytes, link_bytes)
    return _pax(records) + block if records else block


def _ustar(entry: TarEntry, name: bytes, link: bytes) -> bytes:
    fields = b"".join((
        name[:100].ljust(100, b"\0"),
        b"%07o\0%07o\0%07o\0" % (entry.mode, entry.uid % 8**7, entry.gid % 8**7),
        b"%011o\0%011o\0" % (entry.size % 8**11, entry.mtime_s % 8**11),
        b" " * 8,
        entry.kind,
        link[:100].ljust(100, b"\0"),
        b"ustar\x0000",
        bytes(64),
        b"%07o\0%07o\0" % entry.device,
        bytes(167),
    ))  # fmt: skip
    return fields[:148] + b"%06o\0 " % sum(fields) + fields[156:]


def _pax(records: Mapping[str, bytes]) -> bytes:
    body = b"".join(_record(key.encode(), records[key]) for key in sorted(records))
    carrier = TarEntry("PaxHeaders/entry", b"x", 0o644, 0, 0, len(body), 0, "", (0, 0), {}, 0)
    return _ustar(carrier, b"PaxHeaders/entry", b"") + body + bytes(-len(body) % _BLOCK)


def _record(key: bytes, value: bytes) -> bytes:
    """``length key=value`` and a newline, the length counting itself."""
    bare = len(key) + len(value) + 3
    length = bare + len(str(bare))
    if len(str(length)) > len(str(bare)):
        length = bare + len(str(length))
    return b"%d %s=%s\n" % (length, key, value)


def _encode(text: str) -> bytes:
    return text.encode("utf-8", "surrogateescape")
