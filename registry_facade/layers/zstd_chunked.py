"""A tar as zstd:chunked: any reader unpacks it; podman and CRI-O fetch those chunks of it that they lack.

After containers/storage, pkg/chunked: each chunk of a file is a frame of its own. Behind them, in frames that
readers skip (RFC 8878, 3.1.2), lie the TOC, a tar-split, and footers that say where they are. The frames
hold raw blocks, and of TOC and tar-split what repeats one byte as RLE blocks (3.1.1.2.2).
"""

import io
import json
import re
import struct
import tarfile
from collections.abc import Iterator
from pathlib import Path, PurePosixPath
from typing import IO

from ocikit import media_types
from ocikit.compose import Layer
from ocikit.digest import Digest
from registry_facade.layers.chunking import content_chunks
from registry_facade.layers.stored import StoredFile
from registry_facade.layers.tar_split import TarSplit
from registry_facade.layers.toc import Item, entry_name, members, padding, write_member

TOC_DIGEST = "io.github.containers.zstd-chunked.manifest-checksum"
TOC_POSITION = "io.github.containers.zstd-chunked.manifest-position"
TAR_SPLIT_POSITION = "io.github.containers.zstd-chunked.tarsplit-position"
OLD_TOC_DIGEST = "io.containers.zstd-chunked.manifest-checksum"
OLD_TOC_POSITION = "io.containers.zstd-chunked.manifest-position"
"""As containers/storage before 1.44 (podman 4.3) and the stargz snapshotter read them."""
_FRAME = b"\x28\xb5\x2f\xfd"
_WINDOW_128_KIB = b"\x38"
_RAW, _LAST, _RLE = 0, 1, 2
_RUN = re.compile(rb"(.)\1{31,}", re.DOTALL)
_SKIPPABLE = 0x184D2A50
_TOC_TYPE = 1
_MAGIC, _OLD_MAGIC = b"GNUlInUx", b"GnUlInUx"
_DIRECTORY_MODE = 0o755
_USUAL_MODES = {"root": 0o700, "tmp": 0o1777, "var/tmp": 0o1777}


class _Frames(StoredFile):
    BLOCK_BYTES = 128 << 10

    def _head(self) -> bytes:
        """Neither content size nor checksum: 3.1.1.1.1."""
        return _FRAME + b"\0" + _WINDOW_128_KIB

    def _block(self, data: bytes) -> bytes:
        return _block_head(len(data), _RAW) + data

    def _tail(self) -> bytes:
        return _block_head(0, _RAW | _LAST)

    def run(self, byte: bytes, count: int) -> None:
        """``byte`` so many times, in an open frame."""
        for at in range(0, count, self.BLOCK_BYTES):
            self.put(_block_head(min(self.BLOCK_BYTES, count - at), _RLE) + byte)

    def skippable(self, data: bytes) -> int:
        """Where in the file ``data`` lies now."""
        self.put(struct.pack("<II", _SKIPPABLE, len(data)))
        at = self.size
        self.put(data)
        return at


def _block_head(size: int, flags: int) -> bytes:
    return struct.pack("<I", size << 3 | flags)[:3]


def write_zstd_chunked(source: Path, file: IO[bytes]) -> Layer:
    """Writes the uncompressed tar ``source`` to ``file``; blocking. Raises what `toc.members` does.

    The layer's descriptor bears the TOC's digest and place, without which no reader reads it in parts.
    """
    out, split, entries = _Frames(file), TarSplit(), list[Item]()

    def chunks(content: IO[bytes], size: int) -> Iterator[bytes]:
        for data in content_chunks(content, size):
            split.content(data)
            yield data

    for member, head, content in _with_directories(members(source)):
        items = write_member(out, member, head, content, chunks)
        if "offset" in items[0]:
            items[0]["endOffset"] = items[-1]["endOffset"] = out.cut()
        out.write(padding(member.size))
        split.segment(head)
        split.file(entry_name(member), member.size)
        split.segment(padding(member.size))
        entries += _lean(items)
    end = bytes(2 * tarfile.BLOCKSIZE)
    out.write(end)
    out.cut()
    split.segment(end)
    return out.layer(media_types.OCI_LAYER_ZSTD, _index(out, entries, split.dump()))


def _lean(items: list[Item]) -> list[Item]:
    """Without what is zero, or said twice of a file of one chunk: the TOC is fetched for every pull."""
    if len(items) == 1:
        items[0].pop("chunkDigest", None)
    return [{key: value for key, value in item.items() if value} for item in items]


def _index(out: _Frames, entries: list[Item], split: bytes) -> dict[str, str]:
    """Writes what comes behind the content; the annotations that lead to it."""
    packed_split = _packed(split)
    said = {"version": 1, "entries": entries, "tarSplitDigest": str(Digest.of(packed_split))}
    toc = json.dumps(said, separators=(",", ":")).encode()
    packed_toc = _packed(toc)
    toc_place = (out.skippable(packed_toc), len(packed_toc), len(toc))
    split_place = (out.skippable(packed_split), len(packed_split), len(split))
    out.skippable(struct.pack("<7Q", *toc_place, _TOC_TYPE, *split_place) + _MAGIC)
    # containers/storage goes by the annotations; the stargz snapshotter looks for the old footer, at the end
    out.skippable(struct.pack("<4Q", *toc_place, _TOC_TYPE) + _OLD_MAGIC)
    digest, position = str(Digest.of(packed_toc)), ":".join(map(str, (*toc_place, _TOC_TYPE)))
    return {
        TOC_DIGEST: digest,
        TOC_POSITION: position,
        TAR_SPLIT_POSITION: ":".join(map(str, split_place)),
        OLD_TOC_DIGEST: digest,
        OLD_TOC_POSITION: position,
    }


def _packed(data: bytes) -> bytes:
    """One frame of ``data``: half of a tar-split are the zeros of headers."""
    made, at = io.BytesIO(), 0
    frames = _Frames(made)
    for run in _RUN.finditer(data):
        frames.write(data[at : run.start()])
        frames.run(run[1], len(run[0]))
        at = run.end()
    frames.write(data[at:])
    frames.cut()
    return made.getvalue()


def _with_directories(
    found: Iterator[tuple[tarfile.TarInfo, bytes, IO[bytes]]],
) -> Iterator[tuple[tarfile.TarInfo, bytes, IO[bytes]]]:
    """In front of the first entry in a directory one of it, where there is none.

    Who unpacks a tar makes them as needed; who follows a TOC makes them without any permissions
    (containers/storage 1.59), or several at once, whereupon all but the first fail (1.43), and leaves the
    root to its owner.
    """
    known = set[str]()
    for member, head, content in found:
        for above in reversed(PurePosixPath(member.name).parents):
            if str(above) not in known:
                known.add(str(above))
                made = _directory(str(above))
                yield made, made.tobuf(tarfile.PAX_FORMAT), io.BytesIO()
        known.add(member.name)
        yield member, head, content


def _directory(name: str) -> tarfile.TarInfo:
    entry = tarfile.TarInfo(name)
    entry.type, entry.mode = tarfile.DIRTYPE, _USUAL_MODES.get(name, _DIRECTORY_MODE)
    return entry
