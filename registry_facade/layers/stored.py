"""A compressed file in parts that unpack alone, and that hold their bytes as they are.

No compressor takes part, so that nothing depends on one's version: every node makes the same bytes.
"""

import abc
import hashlib
from collections.abc import Mapping
from typing import IO

from ocikit.compose import Layer
from ocikit.descriptor import Descriptor
from ocikit.digest import Digest


class StoredFile(abc.ABC):
    """Counts and hashes what is made and what it unpacks to; blocking. ``file`` is its owner's to close."""

    BLOCK_BYTES: int
    """What one block of the format can hold."""

    def __init__(self, file: IO[bytes]) -> None:
        self._file = file
        self._made = hashlib.sha256()
        self._content = hashlib.sha256()
        self._is_open = False
        self.size = 0
        self.content_size = 0

    @abc.abstractmethod
    def _head(self) -> bytes:
        """What a part begins with."""

    @abc.abstractmethod
    def _block(self, data: bytes) -> bytes:
        """``data`` within a part; at most `BLOCK_BYTES`."""

    @abc.abstractmethod
    def _tail(self) -> bytes:
        """What a part ends with."""

    def write(self, data: bytes) -> None:
        """Content; opens a part where none is."""
        if not self._is_open:
            self.put(self._head())
            self._is_open = True
        for at in range(0, len(data), self.BLOCK_BYTES):
            self.put(self._block(data[at : at + self.BLOCK_BYTES]))
        self._content.update(data)
        self.content_size += len(data)

    def cut(self) -> int:
        """Ends the part; where the next one begins."""
        if self._is_open:
            self.put(self._tail())
            self._is_open = False
        return self.size

    def put(self, data: bytes) -> None:
        """Bytes of the format that unpack to nothing."""
        self._file.write(data)
        self._made.update(data)
        self.size += len(data)

    def layer(self, media_type: str, annotations: Mapping[str, str]) -> Layer:
        """What was written, as a layer."""
        digest = Digest(f"sha256:{self._made.hexdigest()}")
        diff_id = Digest(f"sha256:{self._content.hexdigest()}")
        return Layer(Descriptor(media_type, digest, self.size, annotations), diff_id)
