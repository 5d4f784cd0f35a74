"""What a tar is but for its files' contents, as vbatts/tar-split writes it: a line of JSON for each piece.

A reader that has the files makes the same tar of it again, and so learns a layer's diff_id without having
fetched the layer.
"""

import base64
import json
from collections.abc import Mapping
from typing import Any

_FILE, _SEGMENT = 1, 2
_ALL_ONES = (1 << 64) - 1


class TarSplit:
    """Takes the pieces in their order; not safe for concurrent use."""

    def __init__(self) -> None:
        self._lines: list[bytes] = []
        self._segment = bytearray()
        self._checksum = 0

    def segment(self, data: bytes) -> None:
        """Bytes of the tar that are no file's content: headers, padding, the end."""
        self._segment += data

    def content(self, data: bytes) -> None:
        """The next bytes of the file that the last header was of."""
        self._checksum = crc64(data, self._checksum)

    def file(self, name: str, size: int) -> None:
        """After the content of an entry, which may have none; ``name`` as it stands in the tar."""
        self._flush()
        checksum = self._checksum.to_bytes(8, "big") if size else None
        self._put({"type": _FILE, "name": name, **({"size": size} if size else {})}, checksum)
        self._checksum = 0

    def dump(self) -> bytes:
        """The whole of it, when all pieces have been given."""
        self._flush()
        return b"".join(self._lines)

    def _flush(self) -> None:
        if self._segment:
            self._put({"type": _SEGMENT}, bytes(self._segment))
            self._segment.clear()

    def _put(self, entry: Mapping[str, Any], payload: bytes | None) -> None:
        said = None if payload is None else base64.b64encode(payload).decode()
        line = {**entry, "payload": said, "position": len(self._lines)}
        self._lines.append(json.dumps(line, separators=(",", ":")).encode() + b"\n")


def crc64(data: bytes, before: int = 0) -> int:
    """Of ISO 3309, as Go's hash/crc64 has it; ``before`` is that of the bytes in front.

    Its polynomial x^64+x^4+x^3+x+1 has few terms, and squaring keeps their number: x^64u is
    x^4u+x^3u+x^u+1 for u a power of two. So half of what is left is folded at once, in large integers.
    Bits are mirrored: the lowest has the highest degree.
    """
    rest = int.from_bytes(data, "little") ^ before ^ _ALL_ONES
    left = 8 * len(data)
    while left:
        unit = 1 << ((left + 63) // 64).bit_length() - 1
        count = min(60 * unit, left + 64 - 64 * unit)
        folded = rest & (1 << count) - 1
        rest >>= count
        for term in (60, 61, 63, 64):
            rest ^= folded << term * unit - count
        left -= count
    return rest ^ _ALL_ONES
