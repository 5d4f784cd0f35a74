"""Where the inflation of a gzip can be begun: checkpoints, each with the 32 KiB that came before it.

indexed_gzip finds them, by zlib's own inflate; here they become SOCI's record of them (ztoc/compression/
gzip_zinfo.c, its second version) and the digests of the spans between them. Needs ``lapstrake[soci]``.
"""

import hashlib
import io
import struct
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import indexed_gzip

from registry_facade.soci.errors import NotIndexable
from registry_facade.soci.ztoc import Spans

WINDOW_BYTES = 32 << 10
_HEAD = struct.Struct("<5sBBQQIII")
_POINT = struct.Struct("<QQBB")
_HASH_BYTES = 1 << 20


@dataclass(frozen=True, slots=True)
class Checkpoint:
    """``start`` is the first whole byte of the compressed data; ``bits`` of the one before belong to it."""

    start: int
    out: int
    bits: int
    window: bytes

    @property
    def span_start(self) -> int:
        return self.start - (1 if self.bits else 0)

    def dump(self) -> bytes:
        return struct.pack("<qqB", self.start, self.out, self.bits) + self.window


def checkpoints_of(path: Path, span_bytes: int) -> tuple[Sequence[Checkpoint], int]:
    """Checkpoints at least ``span_bytes`` of uncompressed data apart, and the size of all that; blocking.

    Checks every member's CRC-32. Raises NotIndexable for what is no whole gzip.
    """
    exported = io.BytesIO()
    try:
        with indexed_gzip.IndexedGzipFile(
            str(path), spacing=span_bytes + 1, window_size=WINDOW_BYTES, drop_handles=False
        ) as file:
            file.build_full_index()
            file.export_index(fileobj=exported)
    except (indexed_gzip.ZranError, indexed_gzip.NotCoveredError, EOFError) as error:
        raise NotIndexable(f"the gzip is damaged: {error}") from error
    exported.seek(0)
    _, version, _, _, uncompressed_bytes, _, window_bytes, count = _HEAD.unpack(exported.read(_HEAD.size))
    if version != 1 or window_bytes != WINDOW_BYTES:
        raise RuntimeError(f"indexed_gzip exports version {version} with windows of {window_bytes} bytes")
    points = [_POINT.unpack(exported.read(_POINT.size)) for _ in range(count)]
    found = list(_spaced(points, exported, span_bytes, uncompressed_bytes))
    return found, uncompressed_bytes


def _spaced(
    points: Sequence[tuple[int, int, int, int]], windows: io.BytesIO, span_bytes: int, end: int
) -> Iterator[Checkpoint]:
    """Of the points those that begin a span: not the end, nor each of many small members."""
    last: int | None = None
    for start, out, bits, has_window in points:
        window = windows.read(WINDOW_BYTES) if has_window else bytes(WINDOW_BYTES)
        if last is None or (out < end and out - last > span_bytes):
            last = out
            yield Checkpoint(start, out, bits, window)


def spans_of(path: Path, checkpoints: Sequence[Checkpoint], span_bytes: int) -> Spans:
    """What the zTOC says of the spans; blocking. Raises OSError."""
    stops = [*(checkpoint.start for checkpoint in checkpoints[1:]), path.stat().st_size]
    with path.open("rb") as file:
        digests = [
            _hash(file, checkpoint.span_start, stop)
            for checkpoint, stop in zip(checkpoints, stops, strict=True)
        ]
    head = struct.pack("<iq", len(checkpoints), span_bytes)
    return Spans(digests, head + b"".join(checkpoint.dump() for checkpoint in checkpoints))


def _hash(file: io.BufferedReader, start: int, stop: int) -> str:
    hasher = hashlib.sha256()
    file.seek(start)
    while start < stop and (data := file.read(min(_HASH_BYTES, stop - start))):
        hasher.update(data)
        start += len(data)
    return f"sha256:{hasher.hexdigest()}"
