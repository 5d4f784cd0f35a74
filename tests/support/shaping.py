"""A TCP proxy that is as slow as it is told, counts what passes, and can be cut off."""

import asyncio
import contextlib
import socket
from collections.abc import AsyncIterator
from dataclasses import dataclass, field

_PIECE_BYTES = 64 << 10


@dataclass
class ShapedLink:
    """``port`` leads to one server; ``rate_bytes_s`` is shared by all connections, None is no limit."""

    to_port: int
    rate_bytes_s: float | None = None
    port: int = 0
    received_bytes: int = 0
    """What the server sent."""
    is_cut: bool = False
    _free_s: float = 0.0
    _open: set[asyncio.StreamWriter] = field(default_factory=set)

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    def cut(self) -> None:
        """Breaks every connection; new ones are closed at once."""
        self.is_cut = True
        for writer in list(self._open):
            writer.transport.abort()

    async def handle(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        if self.is_cut:
            writer.transport.abort()
            return
        self._open.add(writer)
        with contextlib.suppress(OSError):
            far_reader, far_writer = await self._connected()
            try:
                there = asyncio.create_task(self._copy(reader, far_writer, shaped=False))
                back = asyncio.create_task(self._copy(far_reader, writer, shaped=True))
                await asyncio.wait({there, back}, return_when=asyncio.FIRST_COMPLETED)
                for task in (there, back):
                    task.cancel()
                await asyncio.gather(there, back, return_exceptions=True)
            finally:
                far_writer.close()
        writer.close()
        self._open.discard(writer)

    async def _connected(self) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
        """With small buffers: what the server has sent is not far ahead of what has passed."""
        connection = socket.socket()
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 2 * _PIECE_BYTES)
        connection.setblocking(False)
        try:
            await asyncio.get_running_loop().sock_connect(connection, ("127.0.0.1", self.to_port))
        except OSError:
            connection.close()
            raise
        return await asyncio.open_connection(sock=connection, limit=_PIECE_BYTES)

    async def _copy(
        self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, *, shaped: bool
    ) -> None:
        while data := await reader.read(_PIECE_BYTES):
            if shaped:
                self.received_bytes += len(data)
                await self._wait(len(data))
            writer.write(data)
            await writer.drain()

    async def _wait(self, size_bytes: int) -> None:
        if self.rate_bytes_s is None:
            return
        now_s = asyncio.get_running_loop().time()
        self._free_s = max(self._free_s, now_s) + size_bytes / self.rate_bytes_s
        await asyncio.sleep(self._free_s - now_s)


@contextlib.asynccontextmanager
async def shaped_link(to_port: int, rate_bytes_s: float | None = None) -> AsyncIterator[ShapedLink]:
    """A running one on loopback."""
    link = ShapedLink(to_port, rate_bytes_s)
    server = await asyncio.start_server(link.handle, "127.0.0.1", 0, limit=_PIECE_BYTES)
    link.port = server.sockets[0].getsockname()[1]
    try:
        yield link
    finally:
        server.close()
        link.cut()
