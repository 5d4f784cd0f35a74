"""The stream of a tar cut into parts for an upload, and the memory that it takes.

Parts are buffers that come from a `Lender` and return to it when they are sent, so that what a backup holds
is bounded by (parts under way + the one that fills) x part size.
"""

from collections.abc import Callable
from dataclasses import dataclass

MIN_PART_BYTES = 5 << 20
MAX_PARTS = 10_000
_STEPS = ((64, 8 << 20), (3_000, 16 << 20), (6_000, 32 << 20), (8_000, 64 << 20), (MAX_PARTS, 128 << 20))


def part_size(number: int) -> int:
    """Bytes of part ``number`` (from 1): growing, so that no length need be known and small backups stay
    small in memory. 10,000 parts make about 530 GiB.
    """
    return next(size for last, size in _STEPS if number <= last)


@dataclass(frozen=True, slots=True)
class Part:
    """A filled buffer: ``data[:size_bytes]`` belongs at ``offset`` of the tar."""

    number: int
    offset: int
    size_bytes: int
    data: bytearray


class PartSink:
    """Collects a byte stream into parts; for one thread.

    ``emit`` takes each part and may block until there is room; ``lend`` gives a buffer of at least the size
    asked for.
    """

    def __init__(
        self, emit: Callable[[Part], None], lend: Callable[[int], bytearray], *, number: int, offset: int
    ) -> None:
        self._emit = emit
        self._lend = lend
        self._number = number
        self._start = offset
        self._size = part_size(number)
        self._buffer = lend(self._size)
        self._filled = 0

    @property
    def offset(self) -> int:
        """Where in the tar the next byte goes."""
        return self._start + self._filled

    def write(self, data: bytes) -> None:
        end = self._filled + len(data)
        if end < self._size:
            self._buffer[self._filled : end] = data
            self._filled = end
            return
        view = memoryview(data)
        while view:
            room = self.room()
            step = min(len(room), len(view))
            room[:step] = view[:step]
            room.release()
            view = view[step:]
            self.advance(step)

    def room(self) -> memoryview:
        """The unfilled rest of the current part, for reading straight into; release it, then `advance`."""
        return memoryview(self._buffer)[self._filled : self._size]

    def advance(self, size_bytes: int) -> None:
        self._filled += size_bytes
        if self._filled == self._size:
            self._flush()
            self._size = part_size(self._number)
            self._buffer = self._lend(self._size)

    def _flush(self) -> None:
        self._emit(Part(self._number, self._start, self._filled, self._buffer))
        self._number += 1
        self._start += self._filled
        self._filled = 0

    def close(self) -> None:
        """Emits what is left, if anything."""
        if self._filled:
            self._flush()
