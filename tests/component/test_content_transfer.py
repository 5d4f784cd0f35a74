"""Reads that break off go on where they broke; nothing is handed on twice; cancelled ones end."""

import asyncio
import contextlib
import threading
from collections.abc import AsyncIterator, Callable
from pathlib import Path

import pytest

from content import transfer
from content.errors import StoreUnavailable
from content.objects.base import ObjectReader, Span, StoreProperties
from content.objects.directory import DirectoryObjectStore
from content.objects.s3 import S3ObjectStore, s3_client
from content.objects.wrappers import Wrapper

_SIZE = 10 << 20


class _Breaking(Wrapper):
    """Each body breaks off after ``good_bytes``."""

    def __init__(self, inner: DirectoryObjectStore, good_bytes: int) -> None:
        super().__init__(inner)
        self.good_bytes = good_bytes
        self.asked: list[int] = []

    @contextlib.asynccontextmanager
    async def open(
        self, key: str, span: Span | None = None, *, if_match: str | None = None
    ) -> AsyncIterator[ObjectReader]:
        assert span is not None
        self.asked.append(span.start)
        async with self.inner.open(key, span, if_match=if_match) as reader:
            yield _BreakingReader(reader, self.good_bytes)


class _BreakingReader:
    def __init__(self, inner: ObjectReader, good_bytes: int) -> None:
        self._inner = inner
        self.info = inner.info
        self._left = good_bytes

    async def pour(self, sink: Callable[[bytes], object], limit_bytes: int) -> int:
        count = await self._inner.pour(sink, min(self._left, limit_bytes))
        self._left -= count
        if count < limit_bytes:
            raise StoreUnavailable("test", "read", "it broke off")
        return count


@pytest.fixture
async def store(tmp_path: Path) -> AsyncIterator[DirectoryObjectStore]:
    store = DirectoryObjectStore(tmp_path)
    yield store
    await store.close()


async def test_a_span_that_breaks_off_is_gone_on_with(store: DirectoryObjectStore) -> None:
    data = bytes(range(256)) * (_SIZE >> 8)
    await store.put("x", data)
    breaking, pieces = _Breaking(store, 5 << 20), list[bytes]()
    await transfer.pour_span(breaking, "x", Span(3, _SIZE - 3), pieces.append)
    assert b"".join(pieces) == data[3:]
    assert breaking.asked == [3, 3 + (5 << 20)]


async def test_a_span_that_never_gets_far_is_given_up(store: DirectoryObjectStore) -> None:
    await store.put("x", bytes(_SIZE))
    breaking = _Breaking(store, 1000)
    with pytest.raises(StoreUnavailable, match="broke off"):
        await transfer.pour_span(breaking, "x", Span(0, _SIZE), lambda _piece: None)
    assert breaking.asked == [0, 1000, 2000, 3000, 4000]


async def test_a_read_of_a_silent_store_ends_when_it_is_cancelled(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
        monkeypatch.setenv(name, "test")
    over = asyncio.Event()

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"\r\n\r\n")
        head = b'HTTP/1.1 200 OK\r\nETag: "1"\r\nLast-Modified: Wed, 01 Jan 2020 00:00:00 GMT\r\n'
        writer.write(head + b"Content-Length: %d\r\n\r\n" % _SIZE + bytes(1 << 20))
        await over.wait()
        writer.close()

    async with await asyncio.start_server(serve, "127.0.0.1") as server:
        host, port = server.sockets[0].getsockname()
        client = s3_client(f"http://{host}:{port}", connections=1)
        store = S3ObjectStore(client, "bucket", "", StoreProperties(False, False, False))
        begun = threading.Event()
        async with store.open("x") as reader:
            pouring = asyncio.create_task(reader.pour(lambda _piece: begun.set(), _SIZE))
            await asyncio.to_thread(begun.wait)
            pouring.cancel()
            with pytest.raises(asyncio.CancelledError):
                async with asyncio.timeout(30):  # of the 60 s after which the read would end by itself
                    await pouring
        over.set()
        await store.close()
