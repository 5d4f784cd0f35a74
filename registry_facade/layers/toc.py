"""What eStargz and zstd:chunked have in common: the entries of a tar, each chunk a part that is read alone.

Both describe them in the same JSON, which containerd/stargz-snapshotter, docs/estargz.md defines.
"""

import datetime as dt
import hashlib
import tarfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import IO, Any

from ocikit.digest import Digest
from registry_facade.layers.stored import StoredFile

Item = dict[str, Any]
Chunks = Callable[[IO[bytes], int], Iterator[bytes]]
"""The next so many bytes of a file, cut into chunks. Raises tarfile.ReadError where they end early."""
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


def members(source: Path) -> Iterator[tuple[tarfile.TarInfo, bytes, IO[bytes]]]:
    """Of an uncompressed tar each entry, its header as it stands there, and a file at its content.

    Blocking. Raises OSError, tarfile.TarError, and UnicodeEncodeError for a name that JSON cannot say.
    """
    with source.open("rb") as raw, tarfile.open(fileobj=raw, mode="r:") as tar:
        for member in tar:
            (member.name + member.linkname).encode()
            raw.seek(member.offset)
            yield member, raw.read(member.offset_data - member.offset), raw


def write_member(
    out: StoredFile, member: tarfile.TarInfo, head: bytes, content: IO[bytes], chunks: Chunks
) -> list[Item]:
    """Writes one entry but for its padding; its item in the TOC, and one for each further chunk."""
    out.write(head)
    described = _described(member)
    if not member.isreg() or member.size == 0:
        return [described]
    whole, items, at = hashlib.sha256(), [], 0
    for data in chunks(content, member.size):
        offset = out.cut()
        out.write(data)
        whole.update(data)
        item = {"name": member.name, "type": "chunk"} if at else described
        items.append({**item, "offset": offset, "chunkDigest": str(Digest.of(data))})
        if at:
            items[-1]["chunkOffset"] = at
        if at or len(data) < member.size:
            items[-1]["chunkSize"] = len(data)
        at += len(data)
    items[0]["digest"] = f"sha256:{whole.hexdigest()}"
    return items


def padding(size: int) -> bytes:
    """What follows ``size`` bytes in a tar."""
    return bytes(-size % tarfile.BLOCKSIZE)


def entry_name(member: tarfile.TarInfo) -> str:
    """As it stands in the tar: a directory's ends in a slash."""
    return member.name + ("/" if member.isdir() else "")


def _described(member: tarfile.TarInfo) -> Item:
    modified = dt.datetime.fromtimestamp(int(member.mtime), dt.UTC).strftime("%Y-%m-%dT%H:%M:%SZ")
    item: Item = {"name": entry_name(member), "type": _TYPES.get(member.type, "reg"), "modtime": modified}
    if member.isreg() and member.size:
        item["size"] = member.size
    if member.linkname:
        item["linkName"] = member.linkname
    item |= {"mode": member.mode, "uid": member.uid, "gid": member.gid, "NumLink": 0}
    if member.ischr() or member.isblk():
        item |= {"devMajor": member.devmajor, "devMinor": member.devminor}
    return item
