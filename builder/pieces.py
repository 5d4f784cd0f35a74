"""Pieces of bytes as a file, for readers that know nothing else."""

from collections.abc import Iterable


class PieceReader:
    """Pieces as the file-like object that tarfile's stream mode reads."""

    def __init__(self, pieces: Iterable[bytes]) -> None:
        self._pieces = iter(pieces)
        self._buffer = bytearray()

    def read(self, size: int) -> bytes:
        while len(self._buffer) < size and (piece := next(self._pieces, None)) is not None:
            self._buffer += piece
        data = bytes(self._buffer[:size])
        del self._buffer[:size]
        return data

    def drain(self) -> None:
        """To the end, so that whoever hashes the pieces has seen all of them."""
        self._buffer.clear()
        for _ in self._pieces:
            pass
