"""One request to one peer: ``GET /peers/v1/blobs/<digest>``, by range.

With a place (upstream and repository) the peer fetches what it has not; without one it gives only what it
has, or is getting.
"""

import contextlib
from collections.abc import AsyncIterator, Iterator
from dataclasses import dataclass
from urllib.parse import urlencode

from ocikit.blobs import BlobReader
from ocikit.digest import Digest
from ocikit.distribution.transport import Deadlines, Response, Transport
from ocikit.errors import BlobNotFound, InvalidRange, SourceUnavailable, TransportError
from ocikit.ranges import ByteRange, ContentRange
from registry_facade.sources.neighbours import Place, as_promised
from servicekit.secrets import Secret

NAME = "peer"
PATH = "/peers/v1/blobs/"
DEADLINES = Deadlines(connect_s=0.5, first_byte_s=10.0, idle_s=10.0)
"""A keeper answers when its own first byte has come, so the wait includes the upstream's."""


@dataclass(frozen=True, slots=True)
class PeerClient:
    """Safe for concurrent use; the transport is its owner's."""

    transport: Transport
    token: Secret

    @contextlib.asynccontextmanager
    async def open(
        self, peer: str, digest: Digest, byte_range: ByteRange | None, place: Place | None
    ) -> AsyncIterator[BlobReader]:
        """Raises BlobNotFound, InvalidRange or SourceUnavailable."""
        headers = {"Range": byte_range.header()} if byte_range is not None else {}
        async with self._ask("GET", peer, digest, place, headers) as response:
            yield _Reader(_content_range(response, byte_range), response)

    async def size(self, peer: str, digest: Digest, place: Place | None) -> int:
        """Raises BlobNotFound or SourceUnavailable."""
        async with self._ask("HEAD", peer, digest, place, {}) as response:
            return _length(response)

    @contextlib.asynccontextmanager
    async def _ask(
        self, method: str, peer: str, digest: Digest, place: Place | None, headers: dict[str, str]
    ) -> AsyncIterator[Response]:
        query = f"?{urlencode(place.query())}" if place is not None else ""
        if self.token:
            headers = {**headers, "Authorization": f"Bearer {self.token.reveal()}"}
        with _translated():
            async with self.transport.send(
                method, f"{peer}{PATH}{digest}{query}", headers=headers
            ) as response:
                if response.status == 404:
                    raise BlobNotFound(digest, peer)
                if response.status == 416:
                    total = response.headers.get("Content-Range", "").removeprefix("bytes */")
                    raise InvalidRange(headers.get("Range", ""), int(total) if total.isdigit() else 0)
                if response.status not in {200, 206}:
                    raise SourceUnavailable(NAME, f"{peer} answered {response.status}")
                yield response


@contextlib.contextmanager
def _translated() -> Iterator[None]:
    try:
        yield
    except TransportError as error:
        raise SourceUnavailable(NAME, str(error)) from error


def _length(response: Response) -> int:
    text = response.headers.get("Content-Length", "")
    if not text.isdigit():
        raise SourceUnavailable(NAME, "an answer without a length")
    return int(text)


def _content_range(response: Response, asked: ByteRange | None) -> ContentRange:
    if response.status == 200 and asked is None:
        size = _length(response)
        return ContentRange(0, size, size)
    told = ContentRange.parse_header(response.headers.get("Content-Range", ""))
    if response.status != 206 or told is None or asked is None or asked.resolve(told.size) != told:
        raise SourceUnavailable(NAME, "an answer to another range")
    return told


@dataclass(frozen=True, slots=True)
class _Reader:
    content_range: ContentRange
    response: Response

    async def __aiter__(self) -> AsyncIterator[bytes]:
        with _translated():
            async for data in as_promised(self.response.pieces(), self.content_range.length, NAME):
                yield data
