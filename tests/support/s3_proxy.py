"""A proxy before a real S3 server that does what networks and servers do on bad days.

A fault belongs to a step of a backup or restore and is met by its next requests, in turn; then all is well
again. `hold` stops a request at a boundary, for a SIGKILL there. Signatures stay valid: the Host header that
the client signed is passed on.
"""

import asyncio
import contextlib
import io
import socket
import struct
from collections import Counter, defaultdict
from collections.abc import AsyncIterator
from dataclasses import dataclass, field
from typing import Literal, Self

import yarl
from aiohttp import ClientError, ClientSession, web

Step = Literal[
    "begin", "part", "copy", "complete", "abort", "list_parts", "list_uploads", "list", "pointer", "index",
    "read_pointer", "read_index", "read_tar", "stat", "delete", "probe", "other",
]  # fmt: skip
_HOP = {"connection", "keep-alive", "transfer-encoding", "expect", "te", "upgrade"}


@dataclass(frozen=True, slots=True)
class Answer:
    """An error document instead of what the server would say; the server hears nothing."""

    status: int
    code: str


@dataclass(frozen=True, slots=True)
class ResetRequest:
    """The connection breaks (RST) after so many bytes of the request's body."""

    after_bytes: int


@dataclass(frozen=True, slots=True)
class ActThenDrop:
    """The server acts; its answer never arrives."""


@dataclass(frozen=True, slots=True)
class ErrorInBody:
    """200, and then an error document, as S3 may answer what takes long; the server hears nothing."""

    code: str = "InternalError"


@dataclass(frozen=True, slots=True)
class ResetAnswer:
    """The connection breaks (RST) after so many bytes of the answer's body."""

    after_bytes: int


@dataclass(frozen=True, slots=True)
class CutAnswer:
    """A well-formed answer that is one byte short."""


@dataclass(frozen=True, slots=True)
class WrongBytesSent:
    """One bit of the request's body is flipped on its way."""

    at: int = 0


@dataclass(frozen=True, slots=True)
class WrongBytesServed:
    """One bit of the answer's body is flipped on its way."""

    at: int = 0


@dataclass(frozen=True, slots=True)
class Swallow:
    """Success is answered, and the server hears nothing."""


@dataclass(slots=True)
class Hold:
    """The request stops here: half of its body passed on, nothing of it, or when the server has acted."""

    where: Literal["half", "before", "after"]
    reached: asyncio.Event = field(default_factory=asyncio.Event)
    let_go: asyncio.Event = field(default_factory=asyncio.Event)


Fault = (
    Answer | ResetRequest | ActThenDrop | ErrorInBody | ResetAnswer | CutAnswer | WrongBytesSent
    | WrongBytesServed | Swallow | Hold
)  # fmt: skip


class S3Proxy:
    """An async context manager; ``endpoint`` is where clients go. ``done`` counts requests per step that the
    server answered, ``part_bytes`` the bodies of parts among them, ``begun`` the paths of multipart uploads.
    """

    def __init__(self, upstream: str) -> None:
        self._upstream = upstream
        self._faults: dict[Step, list[Fault | None]] = defaultdict(list)
        self._changed = asyncio.Condition()
        self._holds: list[Hold] = []
        self.done: Counter[Step] = Counter()
        self.part_bytes = 0
        self.begun: list[str] = []
        self.endpoint = ""

    def on(self, step: Step, *faults: Fault | None) -> None:
        """The next requests of ``step`` meet ``faults`` in turn; None lets one pass."""
        self._faults[step] += faults

    def hold(self, step: Step, where: Literal["half", "before", "after"], *, let_pass: int = 0) -> Hold:
        """Stops the request of ``step`` that comes after ``let_pass`` others."""
        hold = Hold(where)
        self._holds.append(hold)
        self.on(step, *[None] * let_pass, hold)
        return hold

    def let_go(self) -> None:
        """Drops what is held, and forgets all faults."""
        for hold in self._holds:
            hold.let_go.set()
        self._holds.clear()
        self._faults.clear()

    async def await_done(self, step: Step, count: int) -> None:
        async with self._changed:
            await self._changed.wait_for(lambda: self.done[step] >= count)

    @property
    def is_spent(self) -> bool:
        """Whether every fault was met."""
        return not any(self._faults.values())

    async def __aenter__(self) -> Self:
        self._client = ClientSession(auto_decompress=False)
        app = web.Application(client_max_size=1 << 30)
        app.router.add_route("*", "/{path:.*}", self._handle)
        self._runner = web.AppRunner(app, access_log=None, shutdown_timeout=0)
        await self._runner.setup()
        site = web.TCPSite(self._runner, "127.0.0.1", 0)
        await site.start()
        port = self._runner.addresses[0][1]
        self.endpoint = f"http://127.0.0.1:{port}"
        return self

    async def __aexit__(self, *_: object) -> None:
        self.let_go()
        await self._runner.cleanup()
        await self._client.close()

    async def _handle(self, request: web.Request) -> web.StreamResponse:
        step = step_of(request)
        if step == "begin":
            self.begun.append(request.path)
        fault = self._faults[step].pop(0) if self._faults[step] else None
        if isinstance(fault, ResetRequest):
            await request.content.readexactly(min(fault.after_bytes, request.content_length or 0))
            return _reset(request)
        with contextlib.suppress(ConnectionError, ClientError):
            body = await request.read()
            return await self._answer(request, step, body, fault)
        return _reset(request)

    async def _answer(
        self, request: web.Request, step: Step, body: bytes, fault: Fault | None
    ) -> web.StreamResponse:
        if isinstance(fault, Hold) and fault.where == "before":
            return await _held(request, fault)
        if (instead := _instead(fault)) is not None:
            return instead
        if isinstance(fault, WrongBytesSent):
            body = _flipped(body, fault.at)
        status, headers, answer = await self._pass_on(request, body, fault)
        if isinstance(fault, ActThenDrop):
            return _reset(request)
        if isinstance(fault, Hold):
            return await _held(request, fault)
        self._count(step, status, len(body))
        async with self._changed:
            self._changed.notify_all()
        return await _spoiled(request, web.Response(status=status, headers=headers, body=answer), fault)

    def _count(self, step: Step, status: int, body_bytes: int) -> None:
        if status < 300:
            self.done[step] += 1
            self.part_bytes += body_bytes if step == "part" else 0

    async def _pass_on(
        self, request: web.Request, body: bytes, fault: Fault | None
    ) -> tuple[int, dict[str, str], bytes]:
        headers = {key: value for key, value in request.headers.items() if key.lower() not in _HOP}

        async def halved(hold: Hold) -> AsyncIterator[bytes]:
            yield body[: len(body) // 2]
            hold.reached.set()
            await hold.let_go.wait()
            raise ConnectionResetError

        url = yarl.URL(self._upstream + request.raw_path, encoded=True)
        half = isinstance(fault, Hold) and fault.where == "half"
        data = halved(fault) if half and isinstance(fault, Hold) else io.BytesIO(body) if body else None
        async with self._client.request(
            request.method, url, headers=headers, data=data, allow_redirects=False
        ) as answer:
            dropped = _HOP if request.method == "HEAD" else {*_HOP, "content-length"}
            kept = {key: value for key, value in answer.headers.items() if key.lower() not in dropped}
            return answer.status, kept, await answer.read()


def step_of(request: web.Request) -> Step:
    """What a request is for, by the S3 operation and our keys."""
    query, path, method = request.query, request.path, request.method
    if "/.lapstrake-probe/" in path:
        return "probe"
    if method == "PUT" and "partNumber" in query:
        return "copy" if "x-amz-copy-source" in request.headers else "part"
    if "uploadId" in query:
        return {"POST": "complete", "DELETE": "abort", "GET": "list_parts"}.get(method, "other")  # type: ignore[return-value]
    if "uploads" in query:
        return "begin" if method == "POST" else "list_uploads"
    if method in {"HEAD", "DELETE"}:
        return "stat" if method == "HEAD" else "delete"
    kind = {"json": "pointer", "zst": "index", "tar": "tar"}.get(path.rpartition(".")[2])
    if kind is None:
        return "list" if method == "GET" else "other"
    return f"read_{kind}" if method == "GET" else kind  # type: ignore[return-value]


def _error(status: int, code: str) -> web.Response:
    text = f'<?xml version="1.0"?><Error><Code>{code}</Code><Message>a fault on purpose</Message></Error>'
    return web.Response(status=status, text=text, content_type="application/xml")


def _instead(fault: Fault | None) -> web.Response | None:
    """The whole answer, for faults of which the server hears nothing."""
    match fault:
        case Answer(status, code):
            return _error(status, code)
        case ErrorInBody(code):
            return _error(200, code)
        case Swallow():
            return web.Response(headers={"ETag": '"d41d8cd98f00b204e9800998ecf8427e"'})
        case _:
            return None


async def _spoiled(request: web.Request, answer: web.Response, fault: Fault | None) -> web.StreamResponse:
    body = answer.body if isinstance(answer.body, bytes) else b""
    if request.method == "HEAD":
        return answer
    match fault:
        case WrongBytesServed(at):
            answer.body = _flipped(body, at)
        case CutAnswer():
            answer.body = body[:-1]
        case ResetAnswer(after):
            return await _broken_off(request, answer, body, after)
        case _:
            pass
    return answer


def _flipped(body: bytes, at: int) -> bytes:
    return body[:at] + bytes([body[at] ^ 1]) + body[at + 1 :]


async def _held(request: web.Request, hold: Hold) -> web.StreamResponse:
    hold.reached.set()
    await hold.let_go.wait()
    return _reset(request)


def _reset(request: web.Request) -> web.StreamResponse:
    transport = request.transport
    if transport is not None:
        sock: socket.socket = transport.get_extra_info("socket")
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        transport.abort()
    return web.Response()


async def _broken_off(
    request: web.Request, answer: web.Response, body: bytes, after_bytes: int
) -> web.StreamResponse:
    partial = web.StreamResponse(status=answer.status, headers=answer.headers)
    partial.content_length = len(body)
    await partial.prepare(request)
    await partial.write(body[:after_bytes])
    return _reset(request)
