"""A tar as eStargz: a gzip that any reader unpacks, of which a lazy one fetches the files it needs.

After containerd/stargz-snapshotter, docs/estargz.md: each file's content begins a gzip member of its own, the
last member but one is a tar of ``stargz.index.json`` (the TOC: names, offsets, digests), and a footer of 51
bytes says where that begins. The members hold stored blocks (RFC 1951, 3.2.4).
"""

import functools
import io
import itertools
import json
import struct
import tarfile
import zlib
from pathlib import Path
from typing import IO

from ocikit import media_types
from ocikit.compose import Layer
from ocikit.digest import Digest
from registry_facade.layers.chunking import fixed_chunks
from registry_facade.layers.stored import StoredFile
from registry_facade.layers.toc import Item, members, padding, write_member

TOC_DIGEST = "containerd.io/snapshot/stargz/toc.digest"
UNCOMPRESSED_SIZE = "io.containers.estargz.uncompressed-size"
TOC_NAME = "stargz.index.json"
FOOTER_BYTES = 51
CHUNK_BYTES = 4 << 20
_LANDMARK = ".no.prefetch.landmark"
_GZIP_HEAD = b"\x1f\x8b\x08\x00\0\0\0\0\x00\xff"


class _Members(StoredFile):
    BLOCK_BYTES = 0xFFFF

    def _head(self) -> bytes:
        self._crc, self._member_bytes = 0, 0
        return _GZIP_HEAD

    def _block(self, data: bytes) -> bytes:
        self._crc = zlib.crc32(data, self._crc)
        self._member_bytes += len(data)
        return struct.pack("<BHH", 0, len(data), len(data) ^ 0xFFFF) + data

    def _tail(self) -> bytes:
        end = struct.pack("<BHH", 1, 0, 0xFFFF)
        return end + struct.pack("<II", self._crc, self._member_bytes & 0xFFFFFFFF)

    def end(self, toc_at: int) -> None:
        extra = f"{toc_at:016x}STARGZ".encode()
        head = _GZIP_HEAD[:3] + b"\x04" + _GZIP_HEAD[4:]
        field = b"SG" + struct.pack("<H", len(extra)) + extra
        self.put(head + struct.pack("<H", len(field)) + field)
        self.put(struct.pack("<BHH", 1, 0, 0xFFFF) + struct.pack("<II", 0, 0))


def write_estargz(source: Path, file: IO[bytes]) -> Layer:
    """Writes the uncompressed tar ``source`` to ``file``; blocking. Raises what `toc.members` does.

    The layer's descriptor bears the TOC's digest, by which a lazy reader checks all that it reads.
    """
    out, entries = _Members(file), list[Item]()
    chunks = functools.partial(fixed_chunks, chunk_bytes=CHUNK_BYTES)
    mark = _landmark()
    first = (mark, mark.tobuf(tarfile.PAX_FORMAT), io.BytesIO(b"\x0f"))
    for member, head, content in itertools.chain([first], members(source)):
        entries += write_member(out, member, head, content, chunks)
        out.write(padding(member.size))
    toc_at = out.cut()
    toc = json.dumps({"version": 1, "entries": entries}, indent="\t").encode()
    described = tarfile.TarInfo(TOC_NAME)
    described.size = len(toc)
    out.write(described.tobuf(tarfile.PAX_FORMAT) + toc + padding(len(toc)) + bytes(2 * tarfile.BLOCKSIZE))
    out.cut()
    annotations = {TOC_DIGEST: str(Digest.of(toc)), UNCOMPRESSED_SIZE: str(out.content_size)}
    out.end(toc_at)
    return out.layer(media_types.OCI_LAYER_GZIP, annotations)


def _landmark() -> tarfile.TarInfo:
    """Says that no file is to be fetched before it is asked for."""
    entry = tarfile.TarInfo(_LANDMARK)
    entry.size, entry.mode = 1, 0o644
    return entry
