"""A digest index in a SQLite file: for one node, or for worker processes that share a directory."""

import asyncio
import contextlib
import sqlite3
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from ocikit.cid import is_cid
from ocikit.digest import Digest
from ocikit.errors import SourceUnavailable
from registry_facade.digest_index.base import DigestIndex

_SCHEMA = "CREATE TABLE IF NOT EXISTS cids (digest TEXT PRIMARY KEY, cid TEXT NOT NULL) WITHOUT ROWID"
_BUSY_S = 1.0


class SqliteIndex:
    """The file is made at first use. Statements run one at a time in worker threads."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._connection: sqlite3.Connection | None = None
        self._turn = threading.Lock()

    async def get(self, digest: Digest) -> str | None:
        rows = await self._run("SELECT cid FROM cids WHERE digest = ?", digest)
        cid = rows[0][0] if rows else None
        return cid if isinstance(cid, str) and is_cid(cid) else None

    async def put(self, digest: Digest, cid: str) -> None:
        await self._run("INSERT OR REPLACE INTO cids (digest, cid) VALUES (?, ?)", digest, cid)

    async def forget(self, digest: Digest, cid: str) -> None:
        await self._run("DELETE FROM cids WHERE digest = ? AND cid = ?", digest, cid)

    async def aclose(self) -> None:
        await asyncio.to_thread(self._close)

    async def _run(self, statement: str, *values: str) -> list[tuple[Any, ...]]:
        return await asyncio.to_thread(self._execute, statement, tuple(map(str, values)))

    def _execute(self, statement: str, values: tuple[str, ...]) -> list[tuple[Any, ...]]:
        with self._turn, self._unavailable():
            connection = self._connection or self._connect()
            with connection:
                return connection.execute(statement, values).fetchall()

    def _connect(self) -> sqlite3.Connection:
        self._path.parent.mkdir(parents=True, exist_ok=True)
        connection = sqlite3.connect(self._path, timeout=_BUSY_S, check_same_thread=False)
        try:
            connection.execute("PRAGMA journal_mode = WAL")
            connection.execute("PRAGMA synchronous = NORMAL")  # a lost hint is put again
            connection.execute(_SCHEMA)
        except sqlite3.Error:
            connection.close()
            raise
        self._connection = connection
        return connection

    @contextlib.contextmanager
    def _unavailable(self) -> Iterator[None]:
        try:
            yield
        except (sqlite3.Error, OSError) as error:
            raise SourceUnavailable(f"digest index {self._path}", str(error)) from error

    def _close(self) -> None:
        with self._turn:
            if self._connection is not None:
                self._connection.close()
                self._connection = None


def _conforms(index: SqliteIndex) -> DigestIndex:
    return index
