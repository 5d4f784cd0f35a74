"""Byte ranges (RFC 9110, section 14): what was asked, and what that means for a blob of known size.

`ByteRange` is a wish (``bytes=5-``, ``bytes=-3``); `ContentRange` is resolved and fits the blob. A header
that is not understood means "no range", as the RFC demands; only a well-formed range that no byte
satisfies is an error.
"""

import dataclasses
import re
from collections.abc import Sequence

from ocikit.errors import InvalidRange

MAX_RANGES = 1024
"""zstd:chunked clients ask for up to this many at once."""

_SPEC = re.compile(r"^([0-9]*)-([0-9]*)\Z")
_CONTENT_RANGE = re.compile(r"^bytes ([0-9]+)-([0-9]+)/([0-9]+|\*)\Z")


@dataclasses.dataclass(frozen=True, slots=True)
class ContentRange:
    """Bytes ``start`` up to, not including, ``stop`` of a blob of ``size`` bytes."""

    start: int
    stop: int
    size: int

    @property
    def length(self) -> int:
        return self.stop - self.start

    @property
    def is_whole(self) -> bool:
        return self.start == 0 and self.stop == self.size

    def header(self) -> str:
        """The Content-Range value."""
        return f"bytes {self.start}-{self.stop - 1}/{self.size}"

    @classmethod
    def parse_header(cls, text: str) -> "ContentRange | None":
        """From a Content-Range header; None when it is malformed or leaves the size unknown."""
        match = _CONTENT_RANGE.match(text)
        if match is None or match[3] == "*":
            return None
        start, last, size = int(match[1]), int(match[2]), int(match[3])
        return cls(start, last + 1, size) if start <= last < size else None


@dataclasses.dataclass(frozen=True, slots=True)
class ByteRange:
    """From ``start`` up to, not including, ``stop`` (None: the end); a negative start counts from the end."""

    start: int = 0
    stop: int | None = None

    def resolve(self, size_bytes: int) -> ContentRange:
        """Raises InvalidRange when no byte of the blob is meant."""
        if self.start < 0:
            start, stop = max(0, size_bytes + self.start), size_bytes
        else:
            start, stop = self.start, size_bytes if self.stop is None else min(self.stop, size_bytes)
        whole_of_empty = size_bytes == 0 and self.start == 0 and self.stop is None
        if start >= stop and not whole_of_empty:
            raise InvalidRange(self.header(), size_bytes)
        return ContentRange(start, stop, size_bytes)

    def header(self) -> str:
        """The Range value."""
        if self.start < 0:
            return f"bytes={self.start}"
        return f"bytes={self.start}-{'' if self.stop is None else self.stop - 1}"


def parse_range_header(text: str | None) -> Sequence[ByteRange]:
    """The asked ranges in their order; empty when there are none to honour (absent, malformed, too many)."""
    if text is None or not text.startswith("bytes="):
        return ()
    parts = text.removeprefix("bytes=").split(",")
    if len(parts) > MAX_RANGES:
        return ()
    ranges: list[ByteRange] = []
    for part in parts:
        match = _SPEC.match(part.strip())
        if match is None or match[0] == "-":
            return ()
        first, last = match[1], match[2]
        if max(len(first), len(last)) > 18:  # beyond any blob; keeps hostile numbers cheap
            return ()
        if not first:
            if int(last) == 0:
                return ()
            ranges.append(ByteRange(-int(last)))
        elif last and int(last) < int(first):
            return ()
        else:
            ranges.append(ByteRange(int(first), int(last) + 1 if last else None))
    return tuple(ranges)
