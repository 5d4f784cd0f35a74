"""Messages between the service and the process of a job: JSON objects, each after its length.

From the service: ``task`` (once), ``grant``, ``cancel``. From the process: ``progress``, ``ask`` (for bytes
of a way), ``waited`` (for the disk), ``metric``, and as the last ``done`` or ``failed``.
"""

import asyncio
import json
import socket
from collections.abc import Mapping
from typing import Any, Self

_LENGTH_BYTES = 4
_MAX_BYTES = 1 << 30


class Channel:
    """One end; `send` and `receive` belong to one event loop. `close` when done."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._reader = reader
        self._writer = writer

    @classmethod
    async def over(cls, end: socket.socket) -> Self:
        """Takes the socket over."""
        end.setblocking(False)
        return cls(*await asyncio.open_connection(sock=end))

    def send(self, kind: str, **fields: Any) -> None:
        """Queues a message; to a process that has ended it is lost."""
        data = json.dumps({"kind": kind, **fields}).encode()
        if not self._writer.is_closing():
            self._writer.write(len(data).to_bytes(_LENGTH_BYTES, "big") + data)

    async def flush(self) -> None:
        await self._writer.drain()

    async def receive(self) -> Mapping[str, Any] | None:
        """The next message; None when the other end is gone."""
        try:
            length = int.from_bytes(await self._reader.readexactly(_LENGTH_BYTES), "big")
            if length > _MAX_BYTES:
                return None
            message: Mapping[str, Any] = json.loads(await self._reader.readexactly(length))
        except (asyncio.IncompleteReadError, ConnectionError):
            return None
        return message

    async def close(self) -> None:
        self._writer.close()
        try:
            await self._writer.wait_closed()
        except ConnectionError:
            return
