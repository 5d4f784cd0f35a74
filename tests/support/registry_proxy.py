"""A reverse proxy in front of a real registry that spoils pushes on purpose.

A fault is for the requests that match its method and part of the path; each takes the next fault, None lets
one pass, and when none are left all is well again.
"""

import contextlib
import io
import socket
import struct
from collections.abc import AsyncIterator
from dataclasses import dataclass, field
from typing import Literal

import aiohttp
from aiohttp import web

Fault = Literal["refuse", "reset half-way", "lose the answer"]
_NOT_PASSED_ON = frozenset(
    {"connection", "transfer-encoding", "content-encoding", "content-length", "server"}
)


@dataclass
class RegistryProxy:
    """``address`` is what images are pushed to instead of the registry's own."""

    upstream: str
    address: str = ""
    _rules: list[tuple[str, str, list[Fault | None]]] = field(default_factory=list)

    def on(self, method: str, part: str, *faults: Fault | None) -> None:
        self._rules.append((method, part, list(faults)))

    def heal(self) -> None:
        self._rules.clear()

    def _take(self, request: web.Request) -> Fault | None:
        for method, part, faults in self._rules:
            if faults and request.method == method and part in request.path:
                return faults.pop(0)
        return None

    async def handle(self, request: web.Request) -> web.StreamResponse:
        fault = self._take(request)
        if fault == "refuse":
            return web.Response(status=503, body=b'{"errors": [{"code": "UNAVAILABLE"}]}')
        if fault == "reset half-way":
            await request.content.readany()
            return _reset(request)
        headers = {
            name: value for name, value in request.headers.items() if name.lower() not in _NOT_PASSED_ON
        }
        body = await request.read()
        async with (
            aiohttp.ClientSession(auto_decompress=False) as session,
            session.request(
                request.method, f"http://{self.upstream}{request.path_qs}", headers=headers,
                data=io.BytesIO(body), allow_redirects=False,
            ) as answer,
        ):  # fmt: skip
            content = await answer.read()
        if fault == "lose the answer":
            return _reset(request)
        kept = {name: value for name, value in answer.headers.items() if name.lower() not in _NOT_PASSED_ON}
        if request.method == "HEAD":
            kept["Content-Length"] = answer.headers.get("Content-Length", "0")
        return web.Response(status=answer.status, headers=kept, body=content)


def _reset(request: web.Request) -> web.StreamResponse:
    """RST, as when the other side's machine is gone."""
    if request.transport is not None:
        connection = request.transport.get_extra_info("socket")
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        request.transport.abort()
    return web.Response()


@contextlib.asynccontextmanager
async def registry_proxy(upstream: str) -> AsyncIterator[RegistryProxy]:
    proxy = RegistryProxy(upstream)
    app = web.Application(client_max_size=1 << 30)
    app.router.add_route("*", "/{path:.*}", proxy.handle)
    runner = web.AppRunner(app)
    await runner.setup()
    try:
        site = web.TCPSite(runner, "127.0.0.1", 0)
        await site.start()
        assert site._server is not None
        proxy.address = f"127.0.0.1:{site._server.sockets[0].getsockname()[1]}"
        yield proxy
    finally:
        await runner.cleanup()
