"""A digest index in a SQLite file: for one node, or for worker processes that share a directory."""

import sqlite3
from pathlib import Path
from typing import Any

from ocikit.cid import is_cid
from ocikit.digest import Digest
from ocikit.errors import SourceUnavailable
from registry_facade.digest_index.base import DigestIndex
from servicekit.sqlite import Database

_SCHEMA = "CREATE TABLE IF NOT EXISTS cids (digest TEXT PRIMARY KEY, cid TEXT NOT NULL) WITHOUT ROWID"
_BUSY_S = 1.0


class SqliteIndex:
    """The file is made at first use."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._database = Database(path, _SCHEMA, busy_s=_BUSY_S)

    async def get(self, digest: Digest) -> str | None:
        rows = await self._run("SELECT cid FROM cids WHERE digest = ?", digest)
        cid = rows[0][0] if rows else None
        return cid if isinstance(cid, str) and is_cid(cid) else None

    async def put(self, digest: Digest, cid: str) -> None:
        await self._run("INSERT OR REPLACE INTO cids (digest, cid) VALUES (?, ?)", digest, cid)

    async def forget(self, digest: Digest, cid: str) -> None:
        await self._run("DELETE FROM cids WHERE digest = ? AND cid = ?", digest, cid)

    async def aclose(self) -> None:
        await self._database.aclose()

    async def _run(self, statement: str, *values: str) -> list[tuple[Any, ...]]:
        try:
            return await self._database.rows(statement, *map(str, values))
        except (sqlite3.Error, OSError) as error:
            raise SourceUnavailable(f"digest index {self._path}", str(error)) from error


def _conforms(index: SqliteIndex) -> DigestIndex:
    return index
