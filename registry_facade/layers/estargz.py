"""A tar as eStargz: a gzip that any reader unpacks, of which a lazy one fetches the files it needs.

After containerd/stargz-snapshotter, docs/estargz.md: each file's content begins a gzip member of its own, the
last member but one is a tar of ``stargz.index.json`` (the TOC: names, offsets, digests), and a footer of 51
bytes says where that begins. The members hold their bytes as they are (RFC 1951, 3.2.4): nothing depends on
a compressor's version, so that every node makes the same bytes.
"""

import datetime as dt
import hashlib
import io
import json
import struct
import tarfile
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import IO, Any

from ocikit import media_types
from ocikit.compose import Layer
from ocikit.descriptor import Descriptor
from ocikit.digest import Digest

TOC_DIGEST = "containerd.io/snapshot/stargz/toc.digest"
UNCOMPRESSED_SIZE = "io.containers.estargz.uncompressed-size"
TOC_NAME = "stargz.index.json"
FOOTER_BYTES = 51
CHUNK_BYTES = 4 << 20
_LANDMARK = ".no.prefetch.landmark"
_GZIP_HEAD = b"\x1f\x8b\x08\x00\0\0\0\0\x00\xff"
_STORED_MAX = 0xFFFF
_TYPES = {
    tarfile.REGTYPE: "reg",
    tarfile.AREGTYPE: "reg",
    tarfile.DIRTYPE: "dir",
    tarfile.SYMTYPE: "symlink",
    tarfile.LNKTYPE: "hardlink",
    tarfile.CHRTYPE: "char",
    tarfile.BLKTYPE: "block",
    tarfile.FIFOTYPE: "fifo",
}


class _Members:
    """Gzip members of stored bytes; counts and hashes what is in them and what they make."""

    def __init__(self, file: IO[bytes]) -> None:
        self._file = file
        self._made = hashlib.sha256()
        self._content = hashlib.sha256()
        self._is_open = False
        self._crc = 0
        self._member_bytes = 0
        self.size = 0
        self.content_size = 0

    def _put(self, data: bytes) -> None:
        self._file.write(data)
        self._made.update(data)
        self.size += len(data)

    def write(self, data: bytes) -> None:
        if not self._is_open:
            self._put(_GZIP_HEAD)
            self._is_open, self._crc, self._member_bytes = True, 0, 0
        for at in range(0, len(data), _STORED_MAX):
            piece = data[at : at + _STORED_MAX]
            self._put(struct.pack("<BHH", 0, len(piece), len(piece) ^ 0xFFFF) + piece)
        self._crc = zlib.crc32(data, self._crc)
        self._member_bytes += len(data)
        self._content.update(data)
        self.content_size += len(data)

    def end_member(self) -> int:
        """Where the next one begins."""
        if self._is_open:
            self._put(struct.pack("<BHH", 1, 0, 0xFFFF))
            self._put(struct.pack("<II", self._crc, self._member_bytes & 0xFFFFFFFF))
            self._is_open = False
        return self.size

    def end(self, toc_at: int) -> None:
        extra = f"{toc_at:016x}STARGZ".encode()
        head = _GZIP_HEAD[:3] + b"\x04" + _GZIP_HEAD[4:]
        field = b"SG" + struct.pack("<H", len(extra)) + extra
        self._put(head + struct.pack("<H", len(field)) + field)
        self._put(struct.pack("<BHH", 1, 0, 0xFFFF) + struct.pack("<II", 0, 0))

    @property
    def digest(self) -> Digest:
        return Digest(f"sha256:{self._made.hexdigest()}")

    @property
    def diff_id(self) -> Digest:
        return Digest(f"sha256:{self._content.hexdigest()}")


def write_estargz(source: Path, file: IO[bytes]) -> Layer:
    """Writes the uncompressed tar ``source`` to ``file``; blocking. Raises OSError and tarfile.TarError.

    The layer's descriptor bears the TOC's digest, by which a lazy reader checks all that it reads.
    """
    out, entries = _Members(file), []
    with source.open("rb") as raw, tarfile.open(fileobj=raw, mode="r:") as tar:
        entries += _file(out, _landmark(), io.BytesIO(b"\x0f"), _landmark().tobuf(tarfile.PAX_FORMAT))
        for member in tar:
            raw.seek(member.offset)
            head = raw.read(member.offset_data - member.offset)
            entries += _file(out, member, raw, head)
    toc_at = out.end_member()
    toc = json.dumps({"version": 1, "entries": entries}, indent="\t").encode()
    described = tarfile.TarInfo(TOC_NAME)
    described.size = len(toc)
    out.write(described.tobuf(tarfile.PAX_FORMAT) + toc + _padding(len(toc)) + bytes(2 * tarfile.BLOCKSIZE))
    out.end_member()
    content_size = out.content_size
    out.end(toc_at)
    annotations = {TOC_DIGEST: str(Digest.of(toc)), UNCOMPRESSED_SIZE: str(content_size)}
    descriptor = Descriptor(media_types.OCI_LAYER_GZIP, out.digest, out.size, annotations)
    return Layer(descriptor, out.diff_id)


def _landmark() -> tarfile.TarInfo:
    """Says that no file is to be fetched before it is asked for."""
    entry = tarfile.TarInfo(_LANDMARK)
    entry.size, entry.mode = 1, 0o644
    return entry


def _padding(size: int) -> bytes:
    return bytes(-size % tarfile.BLOCKSIZE)


def _file(out: _Members, member: tarfile.TarInfo, content: IO[bytes], head: bytes) -> list[dict[str, Any]]:
    """Writes one entry; what the TOC says about it: one item, and one more for each further chunk."""
    out.write(head)
    described = _described(member)
    if not member.isreg() or member.size == 0:
        return [described]
    whole, items = hashlib.sha256(), []
    for at, data in _chunks(content, member.size):
        offset = out.end_member()
        out.write(data)
        whole.update(data)
        item = described if at == 0 else {"name": member.name, "type": "chunk"}
        items.append({**item, "offset": offset, "chunkDigest": str(Digest.of(data))})
        if at:
            items[-1]["chunkOffset"] = at
        if at + len(data) < member.size or at:
            items[-1]["chunkSize"] = len(data)
    out.write(_padding(member.size))
    items[0]["digest"] = f"sha256:{whole.hexdigest()}"
    return items


def _chunks(content: IO[bytes], size: int) -> Iterator[tuple[int, bytes]]:
    for at in range(0, size, CHUNK_BYTES):
        data = content.read(min(CHUNK_BYTES, size - at))
        if len(data) < min(CHUNK_BYTES, size - at):
            raise tarfile.ReadError("the tar ends early")
        yield at, data


def _described(member: tarfile.TarInfo) -> dict[str, Any]:
    name = member.name + ("/" if member.isdir() else "")
    modified = dt.datetime.fromtimestamp(int(member.mtime), dt.UTC).strftime("%Y-%m-%dT%H:%M:%SZ")
    item: dict[str, Any] = {"name": name, "type": _TYPES.get(member.type, "reg"), "modtime": modified}
    if member.isreg() and member.size:
        item["size"] = member.size
    if member.linkname:
        item["linkName"] = member.linkname
    item |= {"mode": member.mode, "uid": member.uid, "gid": member.gid, "NumLink": 0}
    if member.ischr() or member.isblk():
        item |= {"devMajor": member.devmajor, "devMinor": member.devminor}
    return item
