"""Files that image specs name by URL: read whole, in ranges, or as a source of blobs.

Every redirect is judged by the transport's wall again. ``file:`` URLs are for what the operator configures;
a spec cannot name one.
"""

import asyncio
import contextlib
from collections.abc import AsyncIterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from urllib.parse import unquote, urljoin, urlsplit

from ocikit.blobs import BLOB_MEDIA_TYPE, BlobReader
from ocikit.descriptor import Descriptor
from ocikit.digest import Digest
from ocikit.distribution.transport import Response, Transport
from ocikit.errors import BlobNotFound, Denied, ReadFailed, RegistryError, SourceUnavailable
from ocikit.ranges import ByteRange, ContentRange
from registry_facade.cache.memory import MemoryCache
from servicekit.redact import redact_url

_MAX_REDIRECTS = 5


@dataclass(frozen=True, slots=True)
class Web:
    """Safe for concurrent use; the transport is its owner's. ``headers`` go to the first host only."""

    transport: Transport
    headers: dict[str, str] = field(default_factory=dict)

    @contextlib.asynccontextmanager
    async def ask(self, method: str, url: str, **headers: str) -> AsyncIterator[Response]:
        """The answer after redirects, whatever its status. Raises TransportError, Denied, RegistryError."""
        shown = {**self.headers, **headers}
        async with contextlib.AsyncExitStack() as stack:
            for _ in range(_MAX_REDIRECTS):
                response = await stack.enter_async_context(self.transport.send(method, url, headers=shown))
                if response.status not in {301, 302, 303, 307, 308}:
                    yield response
                    return
                target = urljoin(url, response.headers.get("Location", ""))
                if urlsplit(target).scheme not in {"http", "https"}:
                    raise Denied(urlsplit(url).hostname or "", "", "it redirects to what is no web address")
                if urlsplit(url).scheme == "https" and urlsplit(target).scheme != "https":
                    raise Denied(urlsplit(url).hostname or "", "", "it redirects from TLS to plain HTTP")
                if urlsplit(target)[:2] != urlsplit(url)[:2]:
                    shown = headers
                url = target
            raise RegistryError(method, redact_url(url), 310, "too many redirects")

    async def read(self, url: str, limit_bytes: int) -> bytes | None:
        """A small file, or None when it is not there. Raises SourceUnavailable for more than the limit."""
        if url.startswith("file:"):
            return await asyncio.to_thread(_read_file, url, limit_bytes)
        async with self.ask("GET", url) as response:
            if response.status in {404, 410}:
                return None
            data = await response.read(limit_bytes)
            check_answer(url, response.status, len(data), limit_bytes)
            return data

    @contextlib.asynccontextmanager
    async def pieces(self, url: str) -> AsyncIterator[AsyncIterator[bytes]]:
        """The bytes of a file of any size. Raises SourceUnavailable unless it can be had."""
        if url.startswith("file:"):
            path = _path(url)
            try:
                file = await asyncio.to_thread(path.open, "rb")
            except OSError as error:
                raise SourceUnavailable("snapshot store", error.strerror or str(error)) from error
            with contextlib.closing(file):
                yield _file_pieces(file)
            return
        async with self.ask("GET", url) as response:
            check_answer(url, response.status, 0, 0)
            yield response.pieces()


def check_answer(url: str, status: int, size: int, limit_bytes: int) -> None:
    """Raises SourceUnavailable."""
    if status != 200:
        raise SourceUnavailable(redact_url(url), f"it answers with status {status}")
    if size > limit_bytes:
        raise SourceUnavailable(redact_url(url), f"it sends more than {limit_bytes} bytes")


def _path(url: str) -> Path:
    return Path(unquote(urlsplit(url).path))


def _read_file(url: str, limit_bytes: int) -> bytes | None:
    try:
        with _path(url).open("rb") as file:
            data = file.read(limit_bytes + 1)
    except FileNotFoundError:
        return None
    except OSError as error:
        raise SourceUnavailable("snapshot store", error.strerror or str(error)) from error
    check_answer(url, 200, len(data), limit_bytes)
    return data


async def _file_pieces(file: Any) -> AsyncIterator[bytes]:
    while data := await asyncio.to_thread(file.read, 1 << 20):
        yield data


@dataclass(frozen=True, slots=True)
class UrlBlob:
    """One blob under one URL, as a source."""

    web: Web
    url: str
    name: str = "url"

    async def stat(self, digest: Digest) -> Descriptor:
        async with self.web.ask("HEAD", self.url) as response:
            length = response.headers.get("Content-Length", "")
            if response.status in {404, 410}:
                raise BlobNotFound(digest, redact_url(self.url))
            if response.status == 200 and length.isdecimal():
                return Descriptor(BLOB_MEDIA_TYPE, digest, int(length))
        async with self.open(digest, None) as reader:  # some answer only GET
            return Descriptor(BLOB_MEDIA_TYPE, digest, reader.content_range.size)

    @contextlib.asynccontextmanager
    async def open(self, digest: Digest, byte_range: ByteRange | None = None) -> AsyncIterator[BlobReader]:
        headers = {"Range": byte_range.header()} if byte_range is not None else {}
        async with self.web.ask("GET", self.url, **headers) as response:
            if response.status in {404, 410}:
                raise BlobNotFound(digest, redact_url(self.url))
            given = _given(response)
            if given is None:
                raise SourceUnavailable(redact_url(self.url), f"its answer {response.status} says no length")
            wanted = (byte_range or ByteRange()).resolve(given.size)
            if given.start > wanted.start or given.stop < wanted.stop:
                raise SourceUnavailable(redact_url(self.url), "it sends another range than was asked for")
            yield _Reader(response, given, wanted)


def _given(response: Response) -> ContentRange | None:
    if response.status == 206:
        return ContentRange.parse_header(response.headers.get("Content-Range", ""))
    length = response.headers.get("Content-Length", "")
    if response.status == 200 and length.isdecimal():
        return ContentRange(0, int(length), int(length))
    return None


@dataclass(frozen=True, slots=True)
class _Reader:
    response: Response
    given: ContentRange
    content_range: ContentRange

    async def __aiter__(self) -> AsyncIterator[bytes]:
        """Out of an answer that may be longer (Range was ignored)."""
        at, start, stop = self.given.start, self.content_range.start, self.content_range.stop
        async for data in self.response.pieces():
            piece = data[max(0, start - at) : max(0, stop - at)]
            at += len(data)
            if piece:
                yield piece
            if at >= stop:
                return
        if at < stop:
            raise ReadFailed(self.response.url, f"{stop - at} bytes are missing")


class UrlPlaces:
    """Under which URL a blob lies that a spec named. One event loop only."""

    def __init__(self, web: Web) -> None:
        self.web = web
        self._urls: MemoryCache[Digest, str] = MemoryCache(10_000)

    def put(self, digest: Digest, url: str) -> None:
        self._urls.put(digest, url, 1)

    def source(self, digest: Digest) -> UrlBlob | None:
        url = self._urls.get(digest)
        return UrlBlob(self.web, url) if url is not None else None
