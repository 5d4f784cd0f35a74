"""Checking a stream against its name before its end is believed."""

from collections.abc import AsyncIterable, AsyncIterator

from ocikit.digest import Digest
from ocikit.errors import DigestMismatch, SizeMismatch


class Verifier:
    """Counts and hashes bytes as they pass; `finish` raises when they are not what was expected.

    ``size`` None leaves the size unchecked. Overlong input is refused at the first byte too many.
    """

    def __init__(self, expected: Digest, size: int | None, where: str) -> None:
        self._expected = expected
        self._size = size
        self._where = where
        self._hasher = expected.hasher()
        self.seen_bytes = 0

    def update(self, data: bytes) -> None:
        self.seen_bytes += len(data)
        if self._size is not None and self.seen_bytes > self._size:
            raise SizeMismatch(self._expected, self._size, self.seen_bytes, self._where)
        self._hasher.update(data)

    def finish(self) -> None:
        """Raises SizeMismatch or DigestMismatch."""
        if self._size is not None and self.seen_bytes != self._size:
            raise SizeMismatch(self._expected, self._size, self.seen_bytes, self._where)
        actual = f"{self._expected.algorithm}:{self._hasher.hexdigest()}"
        if actual != self._expected:
            raise DigestMismatch(self._expected, actual, self._where)


async def verified(
    data: AsyncIterable[bytes], expected: Digest, size: int | None, where: str
) -> AsyncIterator[bytes]:
    """Passes ``data`` on; raises instead of ending when size or digest are wrong."""
    verifier = Verifier(expected, size, where)
    async for piece in data:
        verifier.update(piece)
        yield piece
    verifier.finish()
