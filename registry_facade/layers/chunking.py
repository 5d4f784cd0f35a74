"""Where files are cut: every so many bytes, or where their content says so.

The latter finds most chunks of a file again in a later version of it, wherever bytes were put in or taken
out. A cut is made behind 32 bytes whose CRC-32 ends in eight zero bits, where a hash of the last four of them
is zero too: every 64 KiB on average, behind the first 16. That hash is computed for all places of a megabyte
at once, as sums of large integers; CPython does bytes one by one at no useful speed. The rule is part of what
layers are: changing it changes their digests.
"""

import functools
import hashlib
import re
import tarfile
import zlib
from collections.abc import Iterator
from typing import IO

MIN_BYTES = 16 << 10
MAX_BYTES = 256 << 10
_READ_BYTES = 1 << 20
_WINDOW_BYTES = 32
_HASHED_BYTES = 4
_SEED = b"lapstrake content-defined chunks, version 1"
_ZERO = re.compile(rb"\0")


def fixed_chunks(content: IO[bytes], size: int, *, chunk_bytes: int) -> Iterator[bytes]:
    """Blocking. Raises tarfile.ReadError when ``content`` ends early."""
    for at in range(0, size, chunk_bytes):
        yield _read(content, min(chunk_bytes, size - at))


def content_chunks(content: IO[bytes], size: int) -> Iterator[bytes]:
    """Of `MIN_BYTES` to `MAX_BYTES`; the last one may be smaller.

    Blocking. Raises like `fixed_chunks`.
    """
    pending, context = b"", b""
    for read in fixed_chunks(content, size, chunk_bytes=_READ_BYTES):
        seen = context + read
        pending += read
        start, ahead = 0, len(pending) - len(seen)
        for end in _ends((place + ahead for place in _places(seen)), len(pending)):
            yield pending[start:end]
            start = end
        pending = pending[start:]
        context = seen[-(_WINDOW_BYTES - 1) :]
    if pending:
        yield pending


def _ends(places: Iterator[int], size: int) -> Iterator[int]:
    """Where chunks end of which ``size`` bytes are known; what is behind the last is in no chunk yet."""
    start = 0
    for place in places:
        while place - start > MAX_BYTES:
            start += MAX_BYTES
            yield start
        if place - start >= MIN_BYTES:
            start = place
            yield start
    while size - start > MAX_BYTES:
        start += MAX_BYTES
        yield start


def _read(content: IO[bytes], size: int) -> bytes:
    data = content.read(size)
    if len(data) < size:
        raise tarfile.ReadError("the tar ends early")
    return data


def _places(data: bytes) -> Iterator[int]:
    """Behind which bytes of ``data`` it may be cut, in order; none of the first window."""
    hashed = 0
    for distance, table in enumerate(_tables()):
        hashed ^= int.from_bytes(data.translate(table), "little") << (8 * distance)
    hashes = hashed.to_bytes(len(data) + _HASHED_BYTES, "little")
    for match in _ZERO.finditer(hashes, _WINDOW_BYTES - 1, len(data)):
        place = match.end()
        if zlib.crc32(data[place - _WINDOW_BYTES : place]) & 0xFF == 0:
            yield place


@functools.cache
def _tables() -> list[bytes]:
    """For each of the hashed bytes what it adds to the hash."""
    tables = hashlib.shake_256(_SEED).digest(256 * _HASHED_BYTES)
    return [tables[at : at + 256] for at in range(0, len(tables), 256)]
