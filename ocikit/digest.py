"""Digests: the names of bytes.

A digest names bytes as stored or transferred; a diff_id names a layer's *uncompressed* tar; a chain_id
names a stack of layers (image-spec v1.1, descriptor.md "Digests" and config.md "Layer ChainID").
"""

import hashlib
import re
from collections.abc import Iterable
from typing import Protocol

from ocikit.errors import InvalidDigest

_HEX_LENGTHS = {"sha256": 64, "sha512": 128}
_HEX = re.compile(r"^[0-9a-f]+\Z")


class Hasher(Protocol):
    """The part of hashlib's objects that is used here; releases the GIL for large data."""

    def update(self, data: bytes | bytearray | memoryview, /) -> None: ...

    def hexdigest(self) -> str: ...


class Digest(str):
    """``algorithm:hex`` of a registered algorithm (sha256 or sha512), lower case, length checked.

    Being a str, it compares and serialises as the text it is; make one with `parse` or `of`.
    """

    __slots__ = ()

    @classmethod
    def parse(cls, text: str) -> "Digest":
        """Raises InvalidDigest."""
        algorithm, separator, encoded = text.partition(":")
        if not separator or len(encoded) != _HEX_LENGTHS.get(algorithm) or not _HEX.match(encoded):
            raise InvalidDigest(text)
        return cls(text)

    @classmethod
    def of(cls, data: bytes | bytearray | memoryview, algorithm: str = "sha256") -> "Digest":
        return cls(f"{algorithm}:{hashlib.new(algorithm, data).hexdigest()}")

    @property
    def algorithm(self) -> str:
        return self.partition(":")[0]

    @property
    def encoded(self) -> str:
        return self.partition(":")[2]

    @property
    def short(self) -> str:
        """Twelve hexadecimal digits, for people."""
        return self.encoded[:12]

    def hasher(self) -> Hasher:
        """A fresh hash object of this digest's algorithm."""
        return hashlib.new(self.algorithm)


def chain_id(diff_ids: Iterable[Digest]) -> Digest:
    """The ChainID of a stack of layers, bottom first; ValueError when there is none."""
    chain: Digest | None = None
    for diff_id in diff_ids:
        chain = diff_id if chain is None else Digest.of(f"{chain} {diff_id}".encode())
    if chain is None:
        raise ValueError("a chain_id needs at least one diff_id")
    return chain
