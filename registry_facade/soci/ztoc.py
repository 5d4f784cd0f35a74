"""A zTOC: where the files of a gzip layer lie, and where its inflation can be begun, as SOCI has it.

After awslabs/soci-snapshotter, ztoc/fbs/ztoc.fbs: FlatBuffers, here written in the order in which SOCI's own
tool writes, so that both make the same bytes of the same layer. Needs flatbuffers, of ``lapstrake[soci]``.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import flatbuffers

VERSION = "0.9"
_GZIP = 1
_OFFSET_BYTES = 4


@dataclass(frozen=True, slots=True)
class FileEntry:
    """One entry of the tar; ``offset`` is where its content begins in the uncompressed tar."""

    name: bytes
    type: str
    offset: int
    size: int
    linkname: bytes
    mode: int
    uid: int
    gid: int
    uname: bytes
    gname: bytes
    modified: str
    devmajor: int
    devminor: int
    pax: Sequence[tuple[bytes, bytes]]
    """The extended header's records, sorted by key."""


@dataclass(frozen=True, slots=True)
class Spans:
    """``checkpoints`` is one record of compressed and uncompressed offset, bits and window for each span."""

    digests: Sequence[str]
    checkpoints: bytes


@dataclass(frozen=True, slots=True)
class Ztoc:
    build_tool: str
    compressed_bytes: int
    uncompressed_bytes: int
    files: Sequence[FileEntry]
    spans: Spans


def dump(ztoc: Ztoc) -> memoryview:
    """Its bytes, the same for the same content. Raises ValueError for a number that does not fit."""
    out = flatbuffers.Builder(1 << 16)
    try:
        out.Finish(_root(out, ztoc))
    except (TypeError, flatbuffers.builder.BuilderSizeError) as error:
        raise ValueError(f"the zTOC cannot say this: {error}") from error
    return memoryview(out.Bytes)[out.Head() :]


def _root(out: flatbuffers.Builder, ztoc: Ztoc) -> int:
    version = out.CreateString(VERSION)
    build_tool = out.CreateString(ztoc.build_tool)
    files = [_file(out, entry) for entry in reversed(ztoc.files)]
    metadata = _vector(out, files[::-1])
    out.StartObject(1)
    out.PrependUOffsetTRelativeSlot(0, metadata, 0)
    toc = out.EndObject()
    compression = _compression(out, ztoc.spans)
    out.StartObject(6)
    out.PrependUOffsetTRelativeSlot(0, version, 0)
    out.PrependUOffsetTRelativeSlot(1, build_tool, 0)
    out.PrependUOffsetTRelativeSlot(4, toc, 0)
    out.PrependInt64Slot(2, ztoc.compressed_bytes, 0)
    out.PrependInt64Slot(3, ztoc.uncompressed_bytes, 0)
    out.PrependUOffsetTRelativeSlot(5, compression, 0)
    return int(out.EndObject())


def _compression(out: flatbuffers.Builder, spans: Spans) -> int:
    checkpoints = out.CreateByteVector(spans.checkpoints)
    digests = _vector(out, [out.CreateString(digest) for digest in spans.digests])
    out.StartObject(4)
    out.PrependInt32Slot(1, len(spans.digests) - 1, 0)
    out.PrependUOffsetTRelativeSlot(2, digests, 0)
    out.PrependUOffsetTRelativeSlot(3, checkpoints, 0)
    out.PrependInt8Slot(0, _GZIP, _GZIP)
    return int(out.EndObject())


def _file(out: flatbuffers.Builder, entry: FileEntry) -> int:
    texts = {
        0: entry.name,
        1: entry.type.encode(),
        4: entry.linkname,
        8: entry.uname,
        9: entry.gname,
        10: entry.modified.encode(),
    }
    offsets = {slot: out.CreateString(text) for slot, text in texts.items()}
    offsets[13] = _vector(out, [_pax(out, *record) for record in entry.pax])
    numbers: dict[int, tuple[Callable[[int, int, int], None], int]] = {
        2: (out.PrependInt64Slot, entry.offset),
        3: (out.PrependInt64Slot, entry.size),
        5: (out.PrependInt64Slot, entry.mode),
        6: (out.PrependUint32Slot, entry.uid),
        7: (out.PrependUint32Slot, entry.gid),
        11: (out.PrependInt64Slot, entry.devmajor),
        12: (out.PrependInt64Slot, entry.devminor),
    }
    out.StartObject(14)
    for slot in range(14):
        if slot in numbers:
            put, value = numbers[slot]
            put(slot, value, 0)
        else:
            out.PrependUOffsetTRelativeSlot(slot, offsets[slot], 0)
    return int(out.EndObject())


def _pax(out: flatbuffers.Builder, key: bytes, value: bytes) -> int:
    texts = (out.CreateString(key), out.CreateString(value))
    out.StartObject(2)
    out.PrependUOffsetTRelativeSlot(0, texts[0], 0)
    out.PrependUOffsetTRelativeSlot(1, texts[1], 0)
    return int(out.EndObject())


def _vector(out: flatbuffers.Builder, offsets: Sequence[int]) -> int:
    out.StartVector(_OFFSET_BYTES, len(offsets), _OFFSET_BYTES)
    for offset in reversed(offsets):
        out.PrependUOffsetTRelative(offset)
    return int(out.EndVector())
