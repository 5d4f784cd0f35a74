"""Faults on purpose, on the server's side of a real socket and around a BlobSource.

A script is a queue: each matching request, or each open, takes the next entry; when it is empty all is
well again. So a test says exactly which attempt meets which fault, and nothing depends on time.
"""

import asyncio
import contextlib
import socket
import struct
from collections.abc import AsyncIterator, Callable, Iterable
from contextlib import AbstractAsyncContextManager
from dataclasses import dataclass, field

from aiohttp import web

from ocikit.blobs import BlobReader, BlobSource
from ocikit.descriptor import Descriptor
from ocikit.digest import Digest
from ocikit.errors import SourceUnavailable
from ocikit.ranges import ByteRange, ContentRange


@dataclass(frozen=True, slots=True)
class Status:
    """An error answer instead of the real one."""

    status: int
    headers: dict[str, str] = field(default_factory=dict)
    body: bytes = b'{"errors": [{"code": "UNKNOWN", "message": "a fault on purpose"}]}'


@dataclass(frozen=True, slots=True)
class Redirect:
    """307 to ``location``."""

    location: str


@dataclass(frozen=True, slots=True)
class IgnoreRange:
    """200 and everything, whatever range was asked."""


@dataclass(frozen=True, slots=True)
class ShortBody:
    """Promises everything, closes in order after ``after_bytes``."""

    after_bytes: int


@dataclass(frozen=True, slots=True)
class ResetBody:
    """Promises everything, resets the connection (RST) after ``after_bytes``."""

    after_bytes: int


@dataclass(frozen=True, slots=True)
class StallBody:
    """Promises everything, sends ``after_bytes``, then nothing until the client goes away."""

    after_bytes: int


@dataclass(frozen=True, slots=True)
class LongBody:
    """A well-formed answer that is longer than the blob."""

    extra: bytes = b"!"


@dataclass(frozen=True, slots=True)
class CutBody:
    """A well-formed answer that is one byte shorter than the blob."""


@dataclass(frozen=True, slots=True)
class WrongBytes:
    """A well-formed answer with the byte at ``at`` flipped."""

    at: int = 0


Fault = Status | Redirect | IgnoreRange | ShortBody | ResetBody | StallBody | LongBody | CutBody | WrongBytes


@dataclass(slots=True)
class _Rule:
    faults: list[Fault | None]
    method: str
    path_contains: str


class FaultScript:
    """What goes wrong with which request of a server."""

    def __init__(self) -> None:
        self._rules: list[_Rule] = []

    def on(self, method: str, path_contains: str, *faults: Fault | None) -> None:
        """The next requests that match meet ``faults`` in turn; None lets one pass."""
        self._rules.append(_Rule(list(faults), method, path_contains))

    def clear(self) -> None:
        self._rules.clear()

    def take(self, request: web.Request) -> Fault | None:
        for rule in self._rules:
            if rule.faults and rule.method == request.method and rule.path_contains in request.path:
                return rule.faults.pop(0)
        return None

    @property
    def is_spent(self) -> bool:
        """Whether every fault was met."""
        return not any(rule.faults for rule in self._rules)


async def spoiled(request: web.Request, response: web.Response, fault: Fault) -> web.StreamResponse:
    """``response`` as the fault would have it; sent already where the connection itself is at fault."""
    body = response.body if isinstance(response.body, bytes) else b""
    match fault:
        case LongBody(extra):
            response.body = body + extra
        case CutBody():
            response.body = body[:-1]
        case WrongBytes(at):
            response.body = body[:at] + bytes([body[at] ^ 1]) + body[at + 1 :]
        case ShortBody(after) | ResetBody(after) | StallBody(after):
            return await _broken_off(request, response, body, fault, after)
        case Status() | Redirect() | IgnoreRange():
            pass  # decided before there was an answer
    return response


async def _broken_off(
    request: web.Request, response: web.Response, body: bytes, fault: Fault, after_bytes: int
) -> web.StreamResponse:
    partial = web.StreamResponse(status=response.status, headers=response.headers)
    partial.content_length = len(body)
    await partial.prepare(request)
    await partial.write(body[:after_bytes])
    transport = request.transport
    if transport is None:
        return partial
    if isinstance(fault, StallBody):
        while not transport.is_closing():  # noqa: ASYNC110 (a transport has no event to wait for)
            await asyncio.sleep(0.01)
    elif isinstance(fault, ResetBody):
        sock: socket.socket = transport.get_extra_info("socket")
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        transport.abort()
    else:
        transport.close()
    return partial


def immediate(fault: Fault | None) -> web.Response | None:
    """The whole answer, for faults that need none of the handler's."""
    match fault:
        case Status(status, headers, body):
            return web.Response(status=status, headers=headers, body=body, content_type="application/json")
        case Redirect(location):
            return web.Response(status=307, headers={"Location": location})
        case _:
            return None


Spoil = Callable[[AsyncIterator[bytes]], AsyncIterator[bytes]]


def truncated(after_bytes: int) -> Spoil:
    """Ends normally after ``after_bytes``: the liar that only a verifier finds out."""

    async def spoil(pieces: AsyncIterator[bytes]) -> AsyncIterator[bytes]:
        left = after_bytes
        async for piece in pieces:
            yield piece[:left]
            left -= len(piece)
            if left <= 0:
                return

    return spoil


def extended(extra: bytes = b"!") -> Spoil:
    async def spoil(pieces: AsyncIterator[bytes]) -> AsyncIterator[bytes]:
        async for piece in pieces:
            yield piece
        yield extra

    return spoil


def flipped(at: int = 0) -> Spoil:
    """One bit of the byte at ``at`` changed."""

    async def spoil(pieces: AsyncIterator[bytes]) -> AsyncIterator[bytes]:
        seen = 0
        async for piece in pieces:
            inside = at - seen
            seen += len(piece)
            if 0 <= inside < len(piece):
                yield piece[:inside] + bytes([piece[inside] ^ 1]) + piece[inside + 1 :]
            else:
                yield piece

    return spoil


def breaking(after_bytes: int, error: Exception) -> Spoil:
    """Raises ``error`` after ``after_bytes``."""

    async def spoil(pieces: AsyncIterator[bytes]) -> AsyncIterator[bytes]:
        async for piece in truncated(after_bytes)(pieces):
            yield piece
        raise error

    return spoil


def stalling(after_bytes: int) -> Spoil:
    """Gives nothing more after ``after_bytes``, for ever; cancel it."""

    async def spoil(pieces: AsyncIterator[bytes]) -> AsyncIterator[bytes]:
        async for piece in truncated(after_bytes)(pieces):
            yield piece
        await asyncio.Event().wait()

    return spoil


class FaultySource:
    """A BlobSource that meets one entry of ``script`` per open: None passes, an exception is raised."""

    def __init__(self, inner: BlobSource, script: Iterable[Spoil | Exception | None]) -> None:
        self.inner = inner
        self._script = list(script)
        self.opened = 0

    @property
    def name(self) -> str:
        return self.inner.name

    async def stat(self, digest: Digest) -> Descriptor:
        return await self.inner.stat(digest)

    @contextlib.asynccontextmanager
    async def open(self, digest: Digest, byte_range: ByteRange | None = None) -> AsyncIterator[BlobReader]:
        self.opened += 1
        entry = self._script.pop(0) if self._script else None
        if isinstance(entry, Exception):
            raise entry
        async with self.inner.open(digest, byte_range) as reader:
            yield reader if entry is None else _SpoiledReader(reader, entry)


class _SpoiledReader:
    def __init__(self, inner: BlobReader, spoil: Spoil) -> None:
        self._inner = inner
        self._spoil = spoil

    @property
    def content_range(self) -> ContentRange:
        return self._inner.content_range

    def __aiter__(self) -> AsyncIterator[bytes]:
        return self._spoil(aiter(self._inner))


class DownSource:
    """A BlobSource that cannot be reached."""

    name = "down"

    async def stat(self, digest: Digest) -> Descriptor:
        raise SourceUnavailable(self.name, f"nobody answers for {digest.short}")

    def open(
        self, digest: Digest, byte_range: ByteRange | None = None
    ) -> AbstractAsyncContextManager[BlobReader]:
        del byte_range
        raise SourceUnavailable(self.name, f"nobody answers for {digest.short}")


def _conforms(faulty: FaultySource, down: DownSource) -> tuple[BlobSource, BlobSource]:
    return faulty, down
