"""An upstream registry over real sockets that holds what it is given and misbehaves as it is told.

It counts what it is asked and what it sends. A fault is used up by one blob request; see `Fault`.
"""

import asyncio
import contextlib
from collections import Counter
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass, field
from typing import Literal

from aiohttp import web

from ocikit.digest import Digest
from ocikit.manifest import detect_media_type
from ocikit.media_types import OCI_INDEX
from ocikit.ranges import ByteRange, parse_range_header

Kind = Literal["truncate", "reset", "corrupt", "short", "long", "ignore_range", "status", "freeze"]
_PIECE_BYTES = 64 << 10


@dataclass(frozen=True, slots=True)
class Fault:
    """``at`` is a byte of the answer (truncate, reset, corrupt, freeze) or an HTTP status."""

    kind: Kind
    at: int = 0
    retry_after: str = ""


@dataclass
class ScriptedRegistry:
    """``faults`` go to blob requests in turn; ``always`` to all that find none there.

    Each answer waits for ``gate`` at byte ``gate_at``.
    """

    blobs: dict[str, bytes] = field(default_factory=dict)
    tags: dict[str, str] = field(default_factory=dict)
    faults: list[Fault] = field(default_factory=list)
    always: Fault | None = None
    manifest_status: int = 0
    redirect_to: str = ""
    realm: str = ""
    bytes_per_s: float | None = None
    gate: asyncio.Event | None = None
    gate_at: int = 1
    requests: list[tuple[str, str, str]] = field(default_factory=list)
    sent_bytes: Counter[str] = field(default_factory=Counter)
    open_blobs: int = 0
    origin: str = ""
    _budget_s: float = 0.0

    def add_blob(self, data: bytes) -> Digest:
        digest = Digest.of(data)
        self.blobs[digest] = data
        return digest

    def add_manifest(self, data: bytes, tag: str) -> Digest:
        digest = self.add_blob(data)
        self.tags[tag] = digest
        return digest

    def count(self, method: str, part: str) -> int:
        return sum(1 for asked, path, _ in self.requests if asked == method and part in path)

    async def handle(self, request: web.Request) -> web.StreamResponse:
        self.requests.append((request.method, request.path, request.headers.get("Range", "")))
        kind, reference = request.path.rsplit("/", 2)[-2:]
        if kind == "manifests":
            return self._manifest(request, reference)
        if kind == "blobs" and reference in self.blobs:
            return await self._blob(request, reference)
        if kind == "tags":
            return web.json_response({"name": "x", "tags": sorted(self.tags)})
        return web.json_response({"errors": [{"code": "BLOB_UNKNOWN"}]}, status=404)

    def _manifest(self, request: web.Request, reference: str) -> web.StreamResponse:
        if self.manifest_status:
            return web.Response(status=self.manifest_status)
        digest = self.tags.get(reference, reference)
        if digest not in self.blobs:
            return web.json_response({"errors": [{"code": "MANIFEST_UNKNOWN"}]}, status=404)
        data = self.blobs[digest]
        headers = {
            "Content-Type": detect_media_type(data) if len(data) < 4 << 20 else OCI_INDEX,
            "Docker-Content-Digest": digest,
            "Content-Length": str(len(data)),
        }
        return web.Response(body=None if request.method == "HEAD" else data, headers=headers)

    async def _blob(self, request: web.Request, digest: str) -> web.StreamResponse:
        data = self.blobs[digest]
        if self.redirect_to:
            return web.Response(status=307, headers={"Location": self.redirect_to})
        if self.realm:
            challenge = f'Bearer realm="{self.realm}",service="x"'
            return web.Response(status=401, headers={"WWW-Authenticate": challenge})
        if request.method == "HEAD":
            return web.Response(headers={"Content-Length": str(len(data))})
        fault = self.faults.pop(0) if self.faults else self.always
        if fault is not None and fault.kind == "status":
            headers = {"Retry-After": fault.retry_after} if fault.retry_after else {}
            return web.Response(status=fault.at, headers=headers)
        ranges = parse_range_header(request.headers.get("Range"))
        ignored = fault is not None and fault.kind == "ignore_range"
        content_range = (ranges[0] if ranges and not ignored else ByteRange()).resolve(len(data))
        body = bytearray(data[content_range.start : content_range.stop])
        if fault is not None:
            _spoil(body, fault)
        headers = {"Content-Length": str(len(body)), "Content-Type": "application/octet-stream"}
        status = 200
        if ranges and not ignored:
            status, headers["Content-Range"] = 206, content_range.header()
        response = web.StreamResponse(status=status, headers=headers)
        await response.prepare(request)
        self.open_blobs += 1
        try:
            await self._send(request, response, digest, bytes(body), fault)
        finally:
            self.open_blobs -= 1
        return response

    async def _send(
        self,
        request: web.Request,
        response: web.StreamResponse,
        digest: str,
        body: bytes,
        fault: Fault | None,
    ) -> None:
        stop = fault.at if fault is not None and fault.kind in {"truncate", "reset", "freeze"} else len(body)
        at = 0
        while at < min(stop, len(body)):
            if self.gate is not None and at >= self.gate_at:
                await self.gate.wait()
            piece = body[at : min(at + _PIECE_BYTES, stop)]
            await self._throttle(len(piece))
            await response.write(piece)
            at += len(piece)
            self.sent_bytes[digest] += len(piece)
        transport = request.transport
        assert transport is not None or fault is None
        if fault is not None and transport is not None:
            if fault.kind == "truncate":
                transport.close()
            elif fault.kind == "reset":
                transport.abort()
            elif fault.kind == "freeze":
                await asyncio.Event().wait()

    async def _throttle(self, size_bytes: int) -> None:
        if self.bytes_per_s is None:
            return
        now_s = asyncio.get_running_loop().time()
        self._budget_s = max(self._budget_s, now_s) + size_bytes / self.bytes_per_s
        await asyncio.sleep(self._budget_s - now_s)


def _spoil(body: bytearray, fault: Fault) -> None:
    match fault.kind:
        case "corrupt" if body:
            body[min(fault.at, len(body) - 1)] ^= 0xFF
        case "short":
            del body[-1:]
        case "long":
            body += b"!"
        case _:
            pass


@contextlib.asynccontextmanager
async def scripted_registry(
    configure: Callable[[ScriptedRegistry], None] = lambda _: None,
    *,
    registry: ScriptedRegistry | None = None,
) -> AsyncIterator[ScriptedRegistry]:
    """A running one; ``origin`` is its URL."""
    registry = registry or ScriptedRegistry()
    configure(registry)
    app = web.Application()
    app.router.add_route("*", "/{path:.*}", registry.handle)
    runner = web.AppRunner(app, access_log=None, handler_cancellation=True, shutdown_timeout=0.1)
    await runner.setup()
    try:
        site = web.TCPSite(runner, "127.0.0.1", 0)
        await site.start()
        host, port = runner.addresses[0][:2]
        registry.origin = f"http://{host}:{port}"
        yield registry
    finally:
        await runner.cleanup()
