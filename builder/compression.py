"""Compressed streams whose bytes depend on nothing but their input, and the way back. Blocking."""

import os
import zlib
from collections.abc import Iterable, Iterator
from typing import Protocol

import zstandard

from builder.errors import InvalidLayer
from builder.project import Compression

_GZIP_LEVEL = 6
_ZSTD_LEVEL = 3
_MAX_THREADS = 2
_WBITS_GZIP = 31
_OUT_BYTES = 2 << 20


class _Compressor(Protocol):
    def compress(self, data: bytes, /) -> bytes: ...

    def flush(self) -> bytes: ...


class _Decompressor(Protocol):
    @property
    def unused_data(self) -> bytes: ...

    @property
    def eof(self) -> bool: ...

    def decompress(self, data: bytes, /) -> bytes: ...


def compressed(data: Iterable[bytes], kind: Compression) -> Iterator[bytes]:
    """Without names or times: gzip as the linked zlib makes it, or one zstd frame with a checksum."""
    if kind is Compression.GZIP:
        compressor: _Compressor = zlib.compressobj(_GZIP_LEVEL, zlib.DEFLATED, _WBITS_GZIP)
    else:
        compressor = _zstd(os.cpu_count() or 1).compressobj()
    buffer = bytearray()
    for piece in data:
        buffer += compressor.compress(piece)
        if len(buffer) >= _OUT_BYTES:
            yield bytes(buffer)
            buffer.clear()
    buffer += compressor.flush()
    yield bytes(buffer)


def _zstd(processors: int) -> zstandard.ZstdCompressor:
    """In jobs of a fixed size, which several threads share.

    The bytes are the same for every number of threads but none (zstd.h, ZSTD_c_nbWorkers), so it is never
    none; each thread costs some ten MiB.
    """
    threads = max(1, min(processors, _MAX_THREADS))
    return zstandard.ZstdCompressor(level=_ZSTD_LEVEL, write_checksum=True, threads=threads)


def decompressed(data: Iterable[bytes], kind: str, layer: str) -> Iterator[bytes]:
    """``kind`` is as `ocikit.media_types.layer_compression` has it; raises InvalidLayer."""
    if kind == "":
        yield from data
        return
    decompressor = _decompressor(kind)
    try:
        for piece in data:
            rest = piece
            while rest:
                if decompressor.eof:  # gzip members and zstd frames may follow one another
                    decompressor = _decompressor(kind)
                if plain := decompressor.decompress(rest):
                    yield plain
                rest = decompressor.unused_data
    except (zlib.error, zstandard.ZstdError) as error:
        raise InvalidLayer(layer, f"not {kind}: {error}") from error
    if not decompressor.eof:
        raise InvalidLayer(layer, f"the {kind} stream is cut short")


def _decompressor(kind: str) -> _Decompressor:
    if kind == "gzip":
        return zlib.decompressobj(_WBITS_GZIP)
    return zstandard.ZstdDecompressor().decompressobj()
