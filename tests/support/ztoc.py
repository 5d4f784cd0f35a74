"""A reader of zTOCs, written after the published schema (awslabs/soci-snapshotter, ztoc/fbs/ztoc.fbs) alone.

It shares nothing with what writes them: FlatBuffers are read by their layout, and files are taken out of the
compressed layer by zlib itself, begun at a checkpoint, from the bytes of the spans they lie in and no others.
"""

import ctypes
import hashlib
import struct
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

WINDOW_BYTES = 32768
_TRAILER_BYTES = 8


@dataclass(frozen=True)
class Table:
    """One FlatBuffers table; a slot's default is what the schema says."""

    data: bytes
    at: int

    @classmethod
    def root(cls, data: bytes) -> "Table":
        return cls(data, _number(data, 0, "<I"))

    def _slot(self, slot: int) -> int | None:
        vtable = self.at - _number(self.data, self.at, "<i")
        if 4 + 2 * slot >= _number(self.data, vtable, "<H"):
            return None
        offset = _number(self.data, vtable + 4 + 2 * slot, "<H")
        return self.at + offset if offset else None

    def number(self, slot: int, kind: str, default: int = 0) -> int:
        at = self._slot(slot)
        return default if at is None else _number(self.data, at, kind)

    def _followed(self, slot: int) -> int:
        at = self._slot(slot)
        assert at is not None
        return at + _number(self.data, at, "<I")

    def table(self, slot: int) -> "Table":
        return Table(self.data, self._followed(slot))

    def bytes(self, slot: int) -> bytes:
        return _bytes(self.data, self._followed(slot))

    def text(self, slot: int) -> str:
        return self.bytes(slot).decode("utf-8", "surrogateescape")

    def _elements(self, slot: int) -> Sequence[int]:
        at = self._followed(slot)
        places = [at + 4 + 4 * item for item in range(_number(self.data, at, "<I"))]
        return [place + _number(self.data, place, "<I") for place in places]

    def tables(self, slot: int) -> "Sequence[Table]":
        return [Table(self.data, at) for at in self._elements(slot)]

    def texts(self, slot: int) -> Sequence[str]:
        return [_bytes(self.data, at).decode() for at in self._elements(slot)]


def _number(data: bytes, at: int, kind: str) -> int:
    assert at >= 0
    return int(struct.unpack_from(kind, data, at)[0])


def _bytes(data: bytes, at: int) -> bytes:
    size = _number(data, at, "<I")
    assert at + 4 + size <= len(data)
    return data[at + 4 : at + 4 + size]


@dataclass(frozen=True)
class File:
    type: str
    offset: int
    size: int
    linkname: str
    mode: int
    owner: tuple[int, int, str, str]
    modified: str
    device: tuple[int, int]
    pax: Mapping[str, str]


@dataclass(frozen=True)
class Checkpoint:
    start: int
    out: int
    bits: int
    window: bytes


@dataclass(frozen=True)
class ReadZtoc:
    version: str
    build_tool: str
    compressed_bytes: int
    uncompressed_bytes: int
    files: Mapping[str, File]
    span_digests: Sequence[str]
    span_bytes: int
    checkpoints: Sequence[Checkpoint]

    def span(self, number: int) -> tuple[int, int]:
        """The range of the layer that has to be fetched for a span."""
        here = self.checkpoints[number]
        is_last = number + 1 == len(self.checkpoints)
        stop = self.compressed_bytes if is_last else self.checkpoints[number + 1].start
        return here.start - (1 if here.bits else 0), stop

    def spans_of(self, file: File) -> range:
        first = max(at for at, point in enumerate(self.checkpoints) if point.out <= file.offset)
        end = file.offset + file.size
        last = max(at for at, point in enumerate(self.checkpoints) if point.out <= end)
        return range(first, last + 1)

    def content(self, layer: bytes, name: str) -> bytes:
        """A file's content, from its spans only, each of which must have the digest that is stated."""
        file = self.files[name]
        if file.size == 0:
            return b""
        spans = self.spans_of(file)
        for number in spans:
            start, stop = self.span(number)
            assert f"sha256:{hashlib.sha256(layer[start:stop]).hexdigest()}" == self.span_digests[number]
        first = self.checkpoints[spans[0]]
        fetched = layer[self.span(spans[0])[0] : self.span(spans[-1])[1]]
        skipped = file.offset - first.out
        return inflate_from(fetched, first, skipped + file.size)[skipped:]


def read_ztoc(data: bytes) -> ReadZtoc:
    root = Table.root(data)
    compression = root.table(5)
    assert compression.number(0, "<b", 1) == 1, "gzip"
    checkpoints = compression.bytes(3)
    count, span_bytes = struct.unpack_from("<iq", checkpoints)
    record = struct.Struct(f"<qqB{WINDOW_BYTES}s")
    assert len(checkpoints) == 12 + count * record.size
    assert compression.number(1, "<i") == count - 1
    entries = root.table(4).tables(0)
    files = {entry.text(0): _file(entry) for entry in entries}
    return ReadZtoc(
        root.text(0),
        root.text(1),
        root.number(2, "<q"),
        root.number(3, "<q"),
        files,
        compression.texts(2),
        span_bytes,
        [Checkpoint(*record.unpack_from(checkpoints, 12 + at * record.size)) for at in range(count)],
    )


def _file(entry: Table) -> File:
    return File(
        entry.text(1),
        entry.number(2, "<q"),
        entry.number(3, "<q"),
        entry.text(4),
        entry.number(5, "<q"),
        (entry.number(6, "<I"), entry.number(7, "<I"), entry.text(8), entry.text(9)),
        entry.text(10),
        (entry.number(11, "<q"), entry.number(12, "<q")),
        {record.text(0): record.text(1) for record in entry.tables(13)},
    )


class _Stream(ctypes.Structure):
    """z_stream of zlib.h."""

    _fields_ = (
        ("next_in", ctypes.c_void_p),
        ("avail_in", ctypes.c_uint),
        ("total_in", ctypes.c_ulong),
        ("next_out", ctypes.c_void_p),
        ("avail_out", ctypes.c_uint),
        ("total_out", ctypes.c_ulong),
        ("msg", ctypes.c_char_p),
        ("state", ctypes.c_void_p),
        ("zalloc", ctypes.c_void_p),
        ("zfree", ctypes.c_void_p),
        ("opaque", ctypes.c_void_p),
        ("data_type", ctypes.c_int),
        ("adler", ctypes.c_ulong),
        ("reserved", ctypes.c_ulong),
    )


def inflate_from(data: bytes, checkpoint: Checkpoint, size: int) -> bytes:
    """``size`` uncompressed bytes from a checkpoint on; ``data`` begins where its span does."""
    zlib: Any = ctypes.CDLL("libz.so.1")
    stream = _Stream()
    source = ctypes.create_string_buffer(data, len(data))
    out = ctypes.create_string_buffer(size)
    head = 1 if checkpoint.bits else 0
    stream.next_in, stream.avail_in = ctypes.addressof(source) + head, len(data) - head
    stream.next_out, stream.avail_out = ctypes.addressof(out), size
    window = ctypes.create_string_buffer(checkpoint.window, WINDOW_BYTES)
    assert zlib.inflateInit2_(ctypes.byref(stream), -15, b"1.2.11", ctypes.sizeof(stream)) == 0
    try:
        if head:
            bits = ctypes.c_int(checkpoint.bits)
            assert zlib.inflatePrime(ctypes.byref(stream), bits, data[0] >> (8 - checkpoint.bits)) == 0
        assert zlib.inflateSetDictionary(ctypes.byref(stream), window, WINDOW_BYTES) == 0
        is_raw = True
        while stream.avail_out:
            status = zlib.inflate(ctypes.byref(stream), 0)
            assert status in {0, 1}, f"zlib says {status}"
            if status == 1 and stream.avail_out:  # a member ended; raw inflation leaves its trailer
                dropped = _TRAILER_BYTES if is_raw else 0
                stream.next_in, stream.avail_in = stream.next_in + dropped, stream.avail_in - dropped
                is_raw = False
                assert zlib.inflateReset2(ctypes.byref(stream), 47) == 0
    finally:
        zlib.inflateEnd(ctypes.byref(stream))
    return out.raw
