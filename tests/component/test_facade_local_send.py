"""Sending mapped files: the bytes asked for, and no clean end for a file that was cut."""

import asyncio
import contextlib
import os
import socket
import ssl
from collections.abc import AsyncIterator, Awaitable, Callable
from pathlib import Path

import pytest
from aiohttp import web
from aiohttp.test_utils import TestServer

from ocikit.digest import Digest
from registry_facade.local_send import MAPPED_BYTES, is_local, send_mapped
from registry_facade.metrics import FacadeMetrics
from registry_facade.open_blob import FileBlob
from registry_facade.streaming import BlobSender, plan
from servicekit.metrics import Metrics

_LITTLE = 64 << 10
"""Bytes that the buffers of a connection hold, so that most of a blob is still to be sent."""
_DIGEST = Digest("sha256:" + 64 * "0")

Session = Callable[[asyncio.Transport], Awaitable[object]]


@contextlib.asynccontextmanager
async def _client_of(
    session: Session, host: str = "127.0.0.1"
) -> AsyncIterator[tuple[asyncio.StreamReader, asyncio.Future[object]]]:
    """(a client's end, what ``session`` returned or raised for the other)."""
    ended: asyncio.Future[object] = asyncio.get_running_loop().create_future()

    async def serve(_reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            ended.set_result(await session(writer.transport))
        except Exception as error:  # noqa: BLE001 (whatever it is, the test is to see it)
            ended.set_exception(error)
        writer.close()

    async with await asyncio.start_server(serve, host) as server:
        host, port = server.sockets[0].getsockname()[:2]
        reader, writer = await asyncio.open_connection(host, port)
        yield reader, ended
        writer.close()


@pytest.fixture
def data() -> bytes:
    return os.urandom(MAPPED_BYTES)


@pytest.fixture
def descriptor(tmp_path: Path, data: bytes):
    path = tmp_path / "blob"
    path.write_bytes(data)
    opened = os.open(path, os.O_RDWR)
    yield opened
    os.close(opened)


@pytest.mark.parametrize(
    ("at", "count"), [(0, MAPPED_BYTES), (0, 1), (4095, 2), (4096, 4096), (1, MAPPED_BYTES - 1)]
)
async def test_the_bytes_asked_for_arrive(descriptor: int, data: bytes, at: int, count: int) -> None:
    async with _client_of(lambda transport: send_mapped(transport, descriptor, at, count)) as (reader, ended):
        assert await reader.read(-1) == data[at : at + count]
        assert await ended


@pytest.mark.parametrize("missing", [1, 5000, MAPPED_BYTES])
async def test_a_file_that_is_too_short_is_not_sent(descriptor: int, missing: int) -> None:
    os.ftruncate(descriptor, MAPPED_BYTES - missing)
    async with _client_of(lambda transport: send_mapped(transport, descriptor, 0, MAPPED_BYTES)) as (
        reader,
        ended,
    ):
        assert await reader.read(-1) == b""
        assert not await ended


async def test_a_file_that_is_cut_while_it_is_sent_is_an_error(descriptor: int) -> None:
    async def session(transport: asyncio.Transport) -> None:
        sending = asyncio.create_task(send_mapped(transport, descriptor, 0, MAPPED_BYTES))
        await asyncio.sleep(0)  # it has mapped the file, and sent its first block
        os.ftruncate(descriptor, 100)
        await sending

    async with _client_of(session) as (reader, ended):
        await reader.read(-1)
        with pytest.raises(EOFError, match="ended before byte"):
            await ended


@pytest.mark.parametrize("missing", [1, 4095, 1 << 20, MAPPED_BYTES])
async def test_a_blob_that_is_cut_while_it_is_sent_never_ends_cleanly(descriptor: int, missing: int) -> None:
    """Also where the mapping has zeros instead: within a page."""
    blob, metrics = FileBlob(descriptor, MAPPED_BYTES), FacadeMetrics.on(Metrics())

    async def answer(request: web.Request) -> web.StreamResponse:
        assert request.transport is not None
        request.transport.get_extra_info("socket").setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, _LITTLE)
        return await BlobSender(request, metrics).send(_DIGEST, blob, plan((), blob.size), "")

    app = web.Application()
    app.router.add_get("/", answer)
    async with TestServer(app, host="127.0.0.1") as server:
        connection = socket.socket()
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, _LITTLE)
        connection.connect((server.host, server.port))
        reader, writer = await asyncio.open_connection(sock=connection)
        writer.write(b"GET / HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n")
        await reader.readuntil(b"\r\n\r\n")
        await reader.readexactly(1)
        os.ftruncate(descriptor, MAPPED_BYTES - missing)
        received = 1
        with contextlib.suppress(ConnectionResetError):
            while data := await reader.read(1 << 20):
                received += len(data)
        writer.close()
    assert received < MAPPED_BYTES


async def test_a_client_that_goes_away_ends_the_sending(descriptor: int) -> None:
    async def session(transport: asyncio.Transport) -> None:
        while await send_mapped(transport, descriptor, 0, MAPPED_BYTES):
            pass

    async with _client_of(session) as (reader, ended):
        await reader.readexactly(1)
        reader._transport.abort()
        with pytest.raises(ConnectionError):
            await ended


@pytest.mark.parametrize("host", ["127.0.0.1", "::1"])
async def test_a_client_on_this_machine_is_local(host: str) -> None:
    async def session(transport: asyncio.Transport) -> bool:
        return is_local(transport)

    async with _client_of(session, host) as (_, ended):
        assert await ended


class _Transport(asyncio.Transport):
    """Only what it is asked about itself."""


@pytest.mark.parametrize(
    "about",
    [
        {"sockname": ("10.0.0.1", 5000), "peername": ("10.0.0.2", 40000)},
        {
            "sockname": ("127.0.0.1", 5000),
            "peername": ("127.0.0.1", 4),
            "sslcontext": ssl.create_default_context(),
        },
        {"sockname": "/run/socket", "peername": ""},
        {},
    ],
    ids=["another machine", "TLS", "a Unix socket", "a closed connection"],
)
def test_others_are_not(about: dict[str, object]) -> None:
    assert not is_local(_Transport(about))
