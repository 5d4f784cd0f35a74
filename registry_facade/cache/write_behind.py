"""Between a source and a growing file: gathers pieces while the previous ones are being written."""

import asyncio
from typing import Self

from ocikit.errors import OciError
from registry_facade.cache.growing import GrowingBlob
from registry_facade.cache.planning import Fetch


class WriteBehind:
    """Makes a hop to a thread worth it; ``fetch.at`` advances by what is on disk.

    A context manager: leaving it waits until all is written, also when the source failed, for what came
    before is good; a cancelled one only waits for the write under way.
    """

    LIMIT_BYTES = 4 << 20
    """What one request may hold in memory."""

    def __init__(self, blob: GrowingBlob, fetch: Fetch, source: str, *, trusted: bool) -> None:
        self._blob = blob
        self._fetch = fetch
        self._source = source
        self._trusted = trusted
        self._pieces: list[bytes] = []
        self._held_bytes = 0
        self._writing: asyncio.Task[None] | None = None

    async def put(self, data: bytes) -> None:
        """Takes ``data``; waits only while too much is held. Raises CacheUnusable of an earlier write."""
        self._pieces.append(data)
        self._held_bytes += len(data)
        if self._writing is None or self._writing.done() or self._held_bytes >= self.LIMIT_BYTES:
            await self._settle()
            self._writing = asyncio.create_task(self._drain())

    async def _drain(self) -> None:
        while self._pieces:
            pieces, self._pieces, self._held_bytes = self._pieces, [], 0
            self._fetch.at += await self._blob.write(
                self._fetch.at, pieces, self._source, trusted=self._trusted
            )

    async def _settle(self) -> None:
        if self._writing is not None:
            writing, self._writing = self._writing, None
            await asyncio.shield(writing)

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, kind: type[BaseException] | None, *_: object) -> None:
        if kind is None or issubclass(kind, OciError):
            await self._settle()
            await self._drain()
        elif self._writing is not None:
            self._pieces.clear()
            await asyncio.gather(self._writing, return_exceptions=True)
