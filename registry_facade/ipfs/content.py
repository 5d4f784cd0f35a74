"""Reading files by CID, from a node or a gateway: what both have in common."""

import contextlib
from collections.abc import AsyncIterator, Iterator
from contextlib import AbstractAsyncContextManager
from dataclasses import dataclass
from typing import Protocol

from ocikit.distribution.transport import Response
from ocikit.errors import SourceUnavailable, TimedOut, TransportError


class Silent(SourceUnavailable):
    """No answer in time: it looks for blocks nobody has, or does not run."""


class Refused(SourceUnavailable):
    """An answer, which was an error."""


@dataclass(frozen=True, slots=True)
class Content:
    """Part of a file as it comes: ``length`` bytes, if whoever gives it keeps its word."""

    length: int
    pieces: AsyncIterator[bytes]


class ContentReader(Protocol):
    """Safe for concurrent use. Raises Silent, Refused or another SourceUnavailable."""

    def cat(
        self, cid: str, start: int = 0, length: int | None = None
    ) -> AbstractAsyncContextManager[Content]:
        """The bytes of a file from ``start`` on. Raises on entering when the first byte does not come."""

    async def size(self, cid: str) -> int:
        """The size of a file."""

    async def is_alive(self) -> bool:
        """Whether anything at all is answered. Never raises."""


@contextlib.contextmanager
def translated(name: str) -> Iterator[None]:
    """The transport's errors as those of the source ``name``."""
    try:
        yield
    except TimedOut as error:
        raise Silent(name, str(error)) from error
    except TransportError as error:
        raise SourceUnavailable(name, str(error)) from error


async def unavailable_pieces(response: Response, name: str) -> AsyncIterator[bytes]:
    with translated(name):
        async for data in response.pieces():
            yield data
