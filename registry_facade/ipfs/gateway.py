"""What is read from a read-only gateway: ``GET /ipfs/<cid>``, by range.

Reference: https://specs.ipfs.tech/http-gateways/path-gateway/. A gateway is asked for the file, not for
blocks: what it gives is believed as little as anything else, until the digest is right. One that redirects
(to a subdomain) is not followed.
"""

import contextlib
from collections.abc import AsyncIterator

from ocikit.distribution.transport import Response, Transport
from ocikit.errors import SourceUnavailable
from ocikit.ranges import ByteRange, ContentRange
from registry_facade.ipfs.content import Content, Refused, Silent, translated, unavailable_pieces

NAME = "gateway"


class Gateway:
    """Safe for concurrent use; the transport is its owner's. ``url`` is without ``/ipfs``."""

    def __init__(self, transport: Transport, url: str) -> None:
        self._transport = transport
        self._url = url.rstrip("/")

    @contextlib.asynccontextmanager
    async def cat(self, cid: str, start: int = 0, length: int | None = None) -> AsyncIterator[Content]:
        """The bytes of a file from ``start`` on. Raises on entering when the first byte does not come."""
        stop = None if length is None else start + length
        wanted = ByteRange(start, stop) if start or stop is not None else None
        headers = {"Range": wanted.header()} if wanted is not None else {}
        async with self._ask("GET", cid, headers) as response:
            yield Content(_length(response, wanted), unavailable_pieces(response, NAME))

    async def size(self, cid: str) -> int:
        async with self._ask("HEAD", cid, {}) as response:
            return _length(response, None)

    async def is_alive(self) -> bool:
        """Whether it answers anything at all; the empty identity CID is everywhere."""
        try:
            with translated(NAME):
                async with self._transport.send("HEAD", f"{self._url}/ipfs/bafkqaaa"):
                    return True
        except SourceUnavailable:
            return False

    @contextlib.asynccontextmanager
    async def _ask(self, method: str, cid: str, headers: dict[str, str]) -> AsyncIterator[Response]:
        with translated(NAME):
            async with self._transport.send(method, f"{self._url}/ipfs/{cid}", headers=headers) as response:
                if response.status in {408, 504}:
                    raise Silent(NAME, f"{response.status} for {cid}")
                if response.status >= 500 or response.status == 429:
                    raise SourceUnavailable(NAME, f"{response.status} for {cid}")
                if response.status != (206 if headers else 200):
                    raise Refused(NAME, f"status {response.status} for {cid}")
                yield response


def _length(response: Response, wanted: ByteRange | None) -> int:
    if wanted is not None:
        told = ContentRange.parse_header(response.headers.get("Content-Range", ""))
        if told is None or wanted.resolve(told.size) != told:
            raise SourceUnavailable(NAME, "an answer to another range")
        return told.length
    text = response.headers.get("Content-Length", "")
    if not text.isdigit():
        raise SourceUnavailable(NAME, "an answer without a length")
    return int(text)
