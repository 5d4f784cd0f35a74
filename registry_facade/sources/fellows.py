"""The other worker processes of this node: what one is downloading, the others read from it.

Each worker answers on a Unix socket for the blobs it is downloading or has. A reader whose fellow dies goes
on elsewhere, in the same answer: the cache is asked again, and this process may take over the download.
"""

import asyncio
import contextlib
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Mapping
from contextlib import AbstractAsyncContextManager
from dataclasses import dataclass
from pathlib import Path

import aiohttp
from aiohttp import web

from ocikit.digest import Digest
from ocikit.errors import BlobNotFound, OciError, SourceUnavailable
from ocikit.ranges import ByteRange, ContentRange, parse_range_header
from registry_facade.open_blob import OpenBlob, Part, read_parts

_SOON = aiohttp.ClientTimeout(total=1.0)
_TIMEOUT = aiohttp.ClientTimeout(total=None, sock_connect=2.0, sock_read=120.0)
Reopen = Callable[[int], AbstractAsyncContextManager[OpenBlob]]
"""Opens the blob anew, to read from a position on."""


class Fellows:
    """Reads from fellow workers; a connection per reading, they are few and on this machine."""

    @contextlib.asynccontextmanager
    async def get(
        self, address: str, digest: Digest, start: int, stop: int | None
    ) -> AsyncIterator[tuple[int, AsyncIterator[bytes]]]:
        """(size of the blob, its bytes from ``start``). Raises SourceUnavailable or BlobNotFound."""
        headers = {"Range": ByteRange(start, stop).header()} if start or stop is not None else {}
        async with aiohttp.ClientSession(
            connector=aiohttp.UnixConnector(path=address), timeout=_TIMEOUT, read_bufsize=1 << 18
        ) as session:
            try:
                response = await session.get(f"http://worker/{digest}", headers=headers)
            except (aiohttp.ClientError, OSError, TimeoutError) as error:
                raise SourceUnavailable("worker", f"{address}: {error}") from error
            async with response:
                if response.status not in {200, 206}:
                    raise BlobNotFound(digest, f"worker {address}")
                yield int(response.headers["X-Blob-Size"]), _pieces(response, address)


async def _pieces(response: aiohttp.ClientResponse, address: str) -> AsyncIterator[bytes]:
    try:
        async for data in response.content.iter_any():
            yield data
    except (aiohttp.ClientError, OSError, TimeoutError) as error:
        raise SourceUnavailable("worker", f"{address}: {error}") from error


@dataclass(frozen=True, slots=True)
class FellowBlob:
    """A blob that another worker is downloading."""

    digest: Digest
    size: int
    address: str
    fellows: Fellows
    reopen: Reopen
    served_from: str = "worker"

    async def parts(self, wanted: ContentRange) -> AsyncGenerator[Part, None]:
        at = wanted.start
        try:
            async with self.fellows.get(self.address, self.digest, at, wanted.stop) as (_, pieces):
                async for data in pieces:
                    at += len(data)
                    yield data
        except (SourceUnavailable, BlobNotFound):
            pass  # it is gone; what is missing is read elsewhere
        if at < wanted.stop:
            async with self.reopen(at) as blob:
                async for part in blob.parts(ContentRange(at, wanted.stop, self.size)):
                    yield part


OpenOwn = Callable[[Digest], AbstractAsyncContextManager[OpenBlob]]
"""Opens what this process is downloading or has. Raises BlobNotFound."""


async def metrics_of(fellows: Mapping[str, Path]) -> dict[str, bytes]:
    """The expositions of those that answer soon."""

    async def ask(address: Path) -> bytes | None:
        connector = aiohttp.UnixConnector(path=str(address))
        try:
            async with (
                aiohttp.ClientSession(connector=connector, timeout=_SOON) as session,
                session.get("http://worker/metrics") as response,
            ):
                return await response.read() if response.status == 200 else None
        except (aiohttp.ClientError, OSError, TimeoutError):
            return None

    found = await asyncio.gather(*map(ask, fellows.values()))
    return {name: text for name, text in zip(fellows, found, strict=True) if text is not None}


@contextlib.asynccontextmanager
async def answering_fellows(
    address: Path, open_own: OpenOwn, render: Callable[[], bytes]
) -> AsyncIterator[None]:
    """Serves this process's blobs and metrics on the Unix socket ``address`` while the block lasts."""

    async def exposition(_request: web.Request) -> web.Response:
        return web.Response(body=render())

    async def blob(request: web.Request) -> web.StreamResponse:
        try:
            async with open_own(Digest.parse(request.match_info["digest"])) as found:
                return await _answer(request, found)
        except OciError as error:
            return web.Response(status=404, text=str(error))

    app = web.Application()
    app.router.add_get("/metrics", exposition)
    app.router.add_get("/{digest}", blob)
    runner = web.AppRunner(app, access_log=None, handler_cancellation=True, shutdown_timeout=1.0)
    await runner.setup()
    try:
        await web.UnixSite(runner, str(address)).start()
        yield
    finally:
        await runner.cleanup()


async def _answer(request: web.Request, blob: OpenBlob) -> web.StreamResponse:
    ranges = parse_range_header(request.headers.get("Range"))
    wanted = (ranges[0] if ranges else ByteRange()).resolve(blob.size)
    response = web.StreamResponse(
        status=206 if ranges else 200,
        headers={"X-Blob-Size": str(blob.size), "Content-Length": str(wanted.length)},
    )
    await response.prepare(request)
    try:
        async for data in read_parts(blob, wanted):
            await response.write(data)
    except OciError:
        if request.transport is not None:
            request.transport.abort()
    return response
