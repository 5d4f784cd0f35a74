"""Sending mapped files: the bytes asked for, and no clean end for a file that was cut."""

import asyncio
import contextlib
import os
import ssl
from collections.abc import AsyncIterator, Awaitable, Callable
from pathlib import Path

import pytest

from registry_facade.local_send import MAPPED_BYTES, is_local, send_mapped

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


@pytest.mark.parametrize(
    "left", [0, 100, MAPPED_BYTES - 100], ids=["to nothing", "to a page", "within a page"]
)
async def test_a_file_that_is_cut_while_it_is_sent_is_told_from_a_whole_one(
    descriptor: int, left: int
) -> None:
    async def session(transport: asyncio.Transport) -> bool:
        sending = asyncio.create_task(send_mapped(transport, descriptor, 0, MAPPED_BYTES))
        await asyncio.sleep(0)  # it has mapped the file, and sent its first block
        os.ftruncate(descriptor, left)
        return await sending

    async with _client_of(session) as (reader, ended):
        await reader.read(-1)
        assert not await ended


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
