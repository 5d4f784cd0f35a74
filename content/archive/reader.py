"""Reads tar as anybody writes it: ustar, pax, GNU (long names, base-256, old sparse), v7.

Suspicious of all of it: every size is bounded before it is believed, and an archive that stops before its
end-of-archive blocks is an error. Whether a *path* is safe is decided where it is created (`extract`).
"""

from collections.abc import Iterator
from typing import Protocol

from content.archive import sparse
from content.archive.tar_format import (
    BLOCK,
    GNU_LONG_LINK,
    GNU_LONG_NAME,
    GNU_SPARSE,
    PAX_GLOBAL,
    PAX_NEXT,
    REGULAR,
    BadHeader,
    Member,
    check_sum,
    extension_size,
    padding,
    parse_member,
    parse_number,
    parse_pax,
)
from content.errors import MalformedArchive

_MAX_HEADER_BYTES = 8 << 20
_CHUNK_BYTES = 1 << 20
_ZERO = bytes(BLOCK)
_NO_RECORDS: dict[bytes, bytes] = {}
_SPARSE = frozenset((b"GNU.sparse.major", b"GNU.sparse.map"))


class Source(Protocol):
    """Where the bytes come from. Blocking, one thread."""

    def read(self, size_bytes: int) -> bytes | memoryview:
        """Exactly that many bytes; fewer only at the end."""


class BufferSource:
    """A stretch of memory."""

    def __init__(self, data: memoryview) -> None:
        self._data = data
        self._at = 0

    def read(self, size_bytes: int) -> memoryview:
        start = self._at
        self._at = min(len(self._data), start + size_bytes)
        return self._data[start : self._at]


def plain_file(head: memoryview) -> tuple[Member, int] | None:
    """The regular file that ``head`` begins with, and where its data begins; None for anything else, and for
    headers that are unusual, damaged or cut off: `TarReader` knows about those.
    """
    at, pax = 0, _NO_RECORDS
    try:
        block = bytes(head[:BLOCK])
        if block[156:157] == PAX_NEXT:
            size = extension_size(block)
            if not 0 <= size <= len(head):
                return None
            pax = parse_pax(bytes(head[BLOCK : BLOCK + size]))
            at = BLOCK + size + padding(size)
            block = bytes(head[at : at + BLOCK])
        if len(block) < BLOCK or block[156:157] != REGULAR or not _SPARSE.isdisjoint(pax):
            return None
        check_sum(block)
        return parse_member(block, pax), at + BLOCK
    except BadHeader:
        return None


class TarReader:
    """Iterates over members; the data of each, from `chunks`, is to be read before the next is asked for
    (what is not, is skipped). Raises MalformedArchive naming ``where``.
    """

    def __init__(self, source: Source, where: str) -> None:
        self._source = source
        self._where = where
        self._remaining = 0
        self._padding = 0
        self._global: dict[bytes, bytes] = {}
        self.offset = 0
        """Bytes read so far."""

    def __iter__(self) -> Iterator[Member]:
        while (member := self.next()) is not None:
            yield member

    def next(self) -> Member | None:
        """The next member, or None at the end of the archive."""
        self.skip()
        try:
            return self._next()
        except BadHeader as error:
            raise MalformedArchive(self._where, f"{error} (at byte {self.offset})") from error

    def skip(self) -> None:
        """Reads over what is left of the current member, its padding included."""
        while self._remaining:
            self._remaining -= len(self._exactly(min(self._remaining, _CHUNK_BYTES)))
        self._exactly(self._padding)
        self._padding = 0

    def _next(self) -> Member | None:
        pax: dict[bytes, bytes] = dict(self._global)
        while True:
            block = bytes(self._exactly(BLOCK))
            if block == _ZERO:
                self._exactly(BLOCK)
                return None
            kind = block[156:157]
            if kind == PAX_NEXT:
                pax.update(parse_pax(self._extension(block)))
            elif kind == PAX_GLOBAL:
                self._global.update(parse_pax(self._extension(block)))
                pax = {**self._global, **pax}
            elif kind == GNU_LONG_NAME:
                pax[b"path"] = self._extension(block).rstrip(b"\0")
            elif kind == GNU_LONG_LINK:
                pax[b"linkpath"] = self._extension(block).rstrip(b"\0")
            else:
                check_sum(block)
                return self._member(block, pax)

    def _extension(self, block: bytes) -> bytes:
        size = extension_size(block)
        if not 0 <= size <= _MAX_HEADER_BYTES:
            raise BadHeader(f"an extended header claims {size} bytes")
        return bytes(self._exactly(size + padding(size)))[:size]

    def _member(self, block: bytes, pax: dict[bytes, bytes]) -> Member:
        member = parse_member(block, pax)
        self._remaining = member.size_bytes
        self._padding = padding(member.size_bytes)
        if member.kind == GNU_SPARSE:
            return self._old_sparse(block, member)
        if pax.get(b"GNU.sparse.major") == b"1":
            return self._sparse_1_0(member)
        if b"GNU.sparse.map" in pax:  # 0.1
            numbers = sparse.parse_numbers(pax[b"GNU.sparse.map"].replace(b",", b"\n"))
            return self._with_extents(member, numbers, pax.get(b"GNU.sparse.size", b""))
        return member

    def _with_extents(self, member: Member, numbers: list[int], real_size: bytes) -> Member:
        if not real_size.isdigit() or len(real_size) > 19:
            raise BadHeader("a sparse member does not say its size")
        extents = sparse.checked_extents(numbers, int(real_size))
        if sum(length for _, length in extents) != self._remaining:
            raise BadHeader("a sparse map does not add up to its data")
        return member._replace(kind=REGULAR, sparse=extents, real_size_bytes=int(real_size))

    def _sparse_1_0(self, member: Member) -> Member:
        text = bytes(self._map_block())
        count_line, _, rest = text.partition(b"\n")
        count = sparse.parse_numbers(count_line + b"\n")[0]
        if count > 1_000_000:
            raise BadHeader("a sparse map is too long")
        text = rest
        while text.count(b"\n") < 2 * count:
            text += self._map_block()
        numbers = sparse.parse_numbers(b"\n".join(text.split(b"\n")[: 2 * count]))
        return self._with_extents(member, numbers, member.pax.get(b"GNU.sparse.realsize", b""))

    def _map_block(self) -> bytes | memoryview:
        if self._remaining < BLOCK:
            raise BadHeader("a sparse map is cut short")
        self._remaining -= BLOCK
        return self._exactly(BLOCK)

    def _old_sparse(self, block: bytes, member: Member) -> Member:
        fields = [block[386 + 12 * n : 398 + 12 * n] for n in range(8)]
        real_size = parse_number(block[483:495])
        more = block[482]
        while more:
            extension = bytes(self._exactly(BLOCK))
            fields += [extension[12 * n : 12 * n + 12] for n in range(42)]
            more = extension[504]
            if len(fields) > 2_000_000:
                raise BadHeader("a sparse map is too long")
        numbers = [parse_number(text) for text in fields if text[0]]
        return self._with_extents(member, numbers, b"%d" % real_size)

    def chunks(self) -> Iterator[bytes | memoryview]:
        """The rest of the current member's data in pieces of at most a MiB."""
        while self._remaining:
            data = self._exactly(min(self._remaining, _CHUNK_BYTES))
            self._remaining -= len(data)
            yield data

    def _exactly(self, size_bytes: int) -> bytes | memoryview:
        if not size_bytes:
            return b""
        data = self._source.read(size_bytes)
        if len(data) != size_bytes:
            raise MalformedArchive(self._where, f"it ends too early, at byte {self.offset + len(data)}")
        self.offset += size_bytes
        return data
