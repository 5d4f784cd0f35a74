"""Holes: where a file has data, and the map that GNU tar 1.0 sparse members begin with."""

import errno
import os

from content.archive.tar_format import BLOCK, BadHeader, padding

Extents = list[tuple[int, int]]
_MAX_EXTENTS = 1_000_000


def data_extents(descriptor: int, size_bytes: int) -> Extents | None:
    """(offset, length) of each stretch of data, widened to whole blocks; None when there is no hole."""
    found: Extents = []
    at = 0
    while at < size_bytes:
        try:
            start = os.lseek(descriptor, at, os.SEEK_DATA)
        except OSError as error:
            if error.errno == errno.ENXIO:  # only a hole is left
                break
            return None  # the file system cannot tell
        start = max(at, start - start % BLOCK)
        stop = os.lseek(descriptor, max(start, at), os.SEEK_HOLE)
        stop = min(size_bytes, stop + padding(stop))
        if start >= size_bytes:
            break
        found.append((start, stop - start))
        at = stop
    if found == [(0, size_bytes)] or size_bytes == 0:
        return None
    return found


def dump_map(extents: Extents, real_size_bytes: int) -> bytes:
    """The text map, padded to whole blocks; a final hole is closed by an empty extent at the end."""
    rows = list(extents)
    if not rows or rows[-1][0] + rows[-1][1] < real_size_bytes:
        rows.append((real_size_bytes, 0))
    text = b"%d\n" % len(rows) + b"".join(b"%d\n%d\n" % row for row in rows)
    return text + bytes(padding(len(text)))


def parse_numbers(text: bytes) -> list[int]:
    """Decimal numbers, one per line. Raises BadHeader."""
    lines = text.split(b"\n")
    if lines and not lines[-1]:
        lines.pop()
    if not all(line.isdigit() and len(line) <= 19 for line in lines):
        raise BadHeader("a sparse map holds something other than numbers")
    return [int(line) for line in lines]


def checked_extents(numbers: list[int], real_size_bytes: int) -> Extents:
    """Pairs in ascending order within the file. Raises BadHeader."""
    if len(numbers) % 2 or len(numbers) > 2 * _MAX_EXTENTS:
        raise BadHeader("a sparse map is cut short or too long")
    extents, at = [], 0
    for offset, length in zip(numbers[::2], numbers[1::2], strict=True):
        if offset < at or offset + length > real_size_bytes:
            raise BadHeader("a sparse map reaches beyond its file or backwards")
        extents.append((offset, length))
        at = offset + length
    return extents
