"""A blob that is ready to be sent: how long it is, and its bytes as spans of a file or as they come."""

import asyncio
import os
from collections.abc import AsyncGenerator, AsyncIterator
from dataclasses import dataclass
from typing import Protocol

from ocikit.ranges import ContentRange
from registry_facade.errors import CacheUnusable

READ_BYTES = 1 << 20


@dataclass(frozen=True, slots=True)
class FileSpan:
    """Bytes ``start`` up to ``stop`` of an open file; the descriptor is its owner's to close."""

    descriptor: int
    start: int
    stop: int

    def fileno(self) -> int:
        """What sendfile wants of a file."""
        return self.descriptor


Part = bytes | FileSpan


class OpenBlob(Protocol):
    """Valid within the context that gave it. Several `parts` may run one after another."""

    @property
    def size(self) -> int: ...

    @property
    def served_from(self) -> str:
        """A word from a closed set: the metrics label."""

    def parts(self, wanted: ContentRange) -> AsyncGenerator[Part, None]:
        """All of ``wanted`` in order, as it becomes available; raises an OciError instead of ending short."""


@dataclass(frozen=True, slots=True)
class MemoryBlob:
    data: bytes
    served_from: str = "memory"

    @property
    def size(self) -> int:
        return len(self.data)

    async def parts(self, wanted: ContentRange) -> AsyncGenerator[Part, None]:
        yield self.data[wanted.start : wanted.stop]


@dataclass(frozen=True, slots=True)
class FileBlob:
    """A complete, verified file."""

    descriptor: int
    size: int
    served_from: str = "disk"

    async def parts(self, wanted: ContentRange) -> AsyncGenerator[Part, None]:
        yield FileSpan(self.descriptor, wanted.start, wanted.stop)


async def read_parts(blob: OpenBlob, wanted: ContentRange) -> AsyncIterator[bytes]:
    """The bytes themselves, for whoever cannot use sendfile."""
    async for part in blob.parts(wanted):
        if isinstance(part, bytes):
            yield part
            continue
        at = part.start
        while at < part.stop:
            data = await asyncio.to_thread(os.pread, part.descriptor, min(READ_BYTES, part.stop - at), at)
            if not data:
                raise CacheUnusable("cached blob", f"truncated at byte {at} of {blob.size}")
            at += len(data)
            yield data
