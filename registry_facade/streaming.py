"""Sending blobs: whole, one range, or several, by the kernel alone wherever the bytes lie in a file.

Once the headers are out there is no other way to report a failure than to break the connection: a clean end
would make a short blob look complete.
"""

import asyncio
import os
import secrets
import time
from collections.abc import Sequence
from dataclasses import dataclass

import structlog
from aiohttp import web

from ocikit.digest import Digest
from ocikit.errors import InvalidRange, OciError
from ocikit.ranges import ByteRange, ContentRange, parse_range_header
from registry_facade.local_send import MAPPED_BYTES, is_local, send_mapped
from registry_facade.metrics import FacadeMetrics
from registry_facade.open_blob import READ_BYTES, FileSpan, MemoryBlob, OpenBlob
from registry_facade.responses import ReadyResponse, content_headers, matches, may_be_ready, ready_head

_log = structlog.get_logger(__name__)
_SLICE_BYTES = 16 << 20
_END_BYTES = 64 << 10
"""The end of a span is never sent from a mapping, which has zeros where a file was cut within a page."""
_STALL_S = 300.0
"""A client must take `_SLICE_BYTES` within this time, else it is let go: about 56 KB/s."""
BLOB_TYPE = "application/octet-stream"


@dataclass(frozen=True, slots=True)
class Plan:
    """What is sent of a blob, and as what."""

    ranges: tuple[ContentRange, ...]
    status: int
    boundary: str = ""

    @property
    def is_multipart(self) -> bool:
        return bool(self.boundary)


def asked_ranges(request: web.Request, digest: Digest) -> Sequence[ByteRange]:
    """The ranges to honour; none when If-Range names another version (RFC 9110, 13.1.5)."""
    condition = request.headers.get("If-Range")
    if condition is not None and not matches(condition, digest):
        return ()
    return parse_range_header(request.headers.get("Range"))


def plan(asked: Sequence[ByteRange], size: int) -> Plan:
    """Raises InvalidRange only when no range of the set can be satisfied (RFC 9110, 14.2).

    Unsatisfiable members of a set are left out; a set that covers more than the blob is answered whole.
    """
    if not asked:
        return Plan((ContentRange(0, size, size),), 200)
    resolved: list[ContentRange] = []
    failure: InvalidRange | None = None
    for item in asked:
        try:
            resolved.append(item.resolve(size))
        except InvalidRange as error:
            failure = error
    if failure is not None and not resolved:
        raise failure
    if len(resolved) == 1:
        return Plan((resolved[0],), 206)
    if sum(item.length for item in resolved) > size:
        return Plan((ContentRange(0, size, size),), 200)
    return Plan(tuple(resolved), 206, secrets.token_hex(16))


def _part_head(chosen: Plan, item: ContentRange) -> bytes:
    head = f"\r\n--{chosen.boundary}\r\nContent-Type: {BLOB_TYPE}\r\nContent-Range: {item.header()}\r\n\r\n"
    return head.encode()


def _closing(chosen: Plan) -> bytes:
    return f"\r\n--{chosen.boundary}--\r\n".encode()


def _length(chosen: Plan) -> int:
    total = sum(item.length for item in chosen.ranges)
    if chosen.is_multipart:
        total += sum(len(_part_head(chosen, item)) for item in chosen.ranges) + len(_closing(chosen))
    return total


def blob_headers(digest: Digest, chosen: Plan, namespace: str) -> dict[str, str]:
    """All headers of a blob answer; never a Content-Encoding, which clients would undo."""
    media_type = f"multipart/byteranges; boundary={chosen.boundary}" if chosen.is_multipart else BLOB_TYPE
    headers = content_headers(digest, media_type, namespace)
    headers["Accept-Ranges"] = "bytes"
    headers["Content-Length"] = str(_length(chosen))
    if chosen.status == 206 and not chosen.is_multipart:
        headers["Content-Range"] = chosen.ranges[0].header()
    return headers


class BlobSender:
    """Sends one answer, asked for at ``started_s``. It is prepared only when its first byte is there."""

    def __init__(self, request: web.Request, metrics: FacadeMetrics, started_s: float | None = None) -> None:
        self._request = request
        self._metrics = metrics
        self._started_s = started_s if started_s is not None else time.perf_counter()
        self.sent_bytes = 0
        self.waited_s = 0.0

    async def send(self, digest: Digest, blob: OpenBlob, chosen: Plan, namespace: str) -> web.StreamResponse:
        """Raises OciErrors that come before the first byte; later ones break the connection."""
        if isinstance(blob, MemoryBlob) and chosen.status == 200 and may_be_ready(self._request):
            self.sent_bytes = blob.size
            self._first_byte(blob)
            return ReadyResponse(ready_head(digest, BLOB_TYPE, blob.size, namespace), blob.data)
        headers = blob_headers(digest, chosen, namespace)
        if blob.served_from == "memory" and not chosen.is_multipart:
            item = chosen.ranges[0]
            async for part in blob.parts(item):
                if isinstance(part, bytes):
                    self.sent_bytes = len(part)
                    self._first_byte(blob)
                    return web.Response(status=chosen.status, body=part, headers=headers)
        response = web.StreamResponse(status=chosen.status, headers=headers)
        try:
            for item in chosen.ranges:
                await self._send_range(response, blob, chosen, item)
            if chosen.is_multipart:
                await response.write(_closing(chosen))
            await self._prepare(response)
            await response.write_eof()
        except (OciError, TimeoutError, EOFError) as error:
            if not response.prepared:
                raise
            self._break_off(digest, error)
        return response

    def _first_byte(self, blob: OpenBlob) -> None:
        self.waited_s = time.perf_counter() - self._started_s
        self._metrics.first_byte_s.labels(blob.served_from).observe(self.waited_s)

    async def _prepare(self, response: web.StreamResponse) -> None:
        if not response.prepared:
            await response.prepare(self._request)

    async def _send_range(
        self, response: web.StreamResponse, blob: OpenBlob, chosen: Plan, item: ContentRange
    ) -> None:
        headed = not chosen.is_multipart
        async for part in blob.parts(item):
            if not response.prepared:
                self._first_byte(blob)
                await self._prepare(response)
            if not headed:
                await response.write(_part_head(chosen, item))
                headed = True
            if isinstance(part, FileSpan):
                await self._send_span(response, part)
            elif part:
                async with asyncio.timeout(_STALL_S):
                    await response.write(part)
                self.sent_bytes += len(part)

    async def _send_span(self, response: web.StreamResponse, span: FileSpan) -> None:
        """In slices, each within the stall time."""
        at = span.start
        while at < span.stop:
            count = min(_SLICE_BYTES, span.stop - at)
            transport = self._request.transport
            if transport is None or transport.is_closing():
                raise ConnectionResetError("the client has gone")
            async with asyncio.timeout(_STALL_S):
                sent = await self._send_slice(response, transport, span, at, count)
            if sent == 0:
                raise EOFError(f"the file ended at byte {at} of {span.stop}")
            at += sent
            self.sent_bytes += sent

    async def _send_slice(
        self, response: web.StreamResponse, transport: asyncio.Transport, span: FileSpan, at: int, count: int
    ) -> int:
        mapped = min(MAPPED_BYTES, span.stop - _END_BYTES - at)
        may_map = mapped > 0 and not transport.get_write_buffer_size() and is_local(transport)
        if may_map and await send_mapped(transport, span.descriptor, at, mapped):
            return mapped
        loop = asyncio.get_running_loop()
        try:
            return await loop.sendfile(transport, span, at, count, fallback=False)  # type: ignore[arg-type] # the native way needs fileno() only
        except (RuntimeError, asyncio.SendfileNotAvailableError):  # TLS, or no such system call
            return await self._copy(response, span.descriptor, at, count)

    async def _copy(self, response: web.StreamResponse, descriptor: int, at: int, count: int) -> int:
        data = await asyncio.to_thread(os.pread, descriptor, min(READ_BYTES, count), at)
        await response.write(data)
        return len(data)

    def _break_off(self, digest: Digest, error: BaseException) -> None:
        _log.warning("response_broken_off", digest=digest, sent_bytes=self.sent_bytes, reason=str(error))
        self._metrics.broken_off.inc()
        if self._request.transport is not None:
            self._request.transport.abort()
