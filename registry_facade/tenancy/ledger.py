"""What callers were granted and when, shared by the worker processes and kept over restarts.

A grant counts for ``ttl_s``. Afterwards it is proven again; when nobody can be asked, it counts on until
``grace_s``. Of a caller only the key is kept.
"""

import sqlite3
from collections.abc import Collection
from pathlib import Path
from types import TracebackType
from typing import Self

import structlog

from ocikit.digest import Digest
from registry_facade.addressing import Target
from registry_facade.cache.memory import MemoryCache
from registry_facade.tenancy.callers import Caller
from servicekit.clock import Clock, SystemClock
from servicekit.sqlite import Database

_log = structlog.get_logger(__name__)
_SCHEMA = """
CREATE TABLE IF NOT EXISTS grants (
    caller TEXT NOT NULL, upstream TEXT NOT NULL, repository TEXT NOT NULL, digest TEXT NOT NULL,
    granted_s REAL NOT NULL, PRIMARY KEY (caller, upstream, repository, digest)) WITHOUT ROWID;
CREATE INDEX IF NOT EXISTS grants_by_age ON grants (granted_s);
"""
Key = tuple[str, str, str, str]


class Ledger:
    """Use as an async context manager. A file that cannot be used costs questions upstream, nothing else."""

    def __init__(self, path: Path, *, ttl_s: float, grace_s: float, clock: Clock = SystemClock()) -> None:
        self._database = Database(path, _SCHEMA)
        self._ttl_s = ttl_s
        self._grace_s = max(ttl_s, grace_s)
        self._clock = clock
        self._memory: MemoryCache[Key, float] = MemoryCache(100_000)

    async def __aenter__(self) -> Self:
        await self._database.__aenter__()
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self._database.__aexit__(kind, error, trace)

    async def holds(self, caller: Caller, target: Target, digests: Collection[Digest]) -> bool:
        """Whether one of ``digests`` was granted lately."""
        return await self._youngest(caller, target, digests, self._ttl_s)

    async def held(self, caller: Caller, target: Target, digests: Collection[Digest]) -> bool:
        """Whether one was granted within the time of grace: for when nobody can be asked."""
        return await self._youngest(caller, target, digests, self._grace_s)

    async def grant(self, caller: Caller, target: Target, digest: Digest) -> None:
        key, now_s = _key(caller, target, digest), self._clock.time()
        self._memory.put(key, now_s, 1)

        def work(connection: sqlite3.Connection) -> None:
            connection.execute("DELETE FROM grants WHERE granted_s < ?", (now_s - self._grace_s,))
            connection.execute("INSERT OR REPLACE INTO grants VALUES (?, ?, ?, ?, ?)", (*key, now_s))

        try:
            await self._database.do(work)
        except (sqlite3.Error, OSError) as error:
            _log.warning("grant_not_kept", reason=str(error))

    async def _youngest(
        self, caller: Caller, target: Target, digests: Collection[Digest], age_s: float
    ) -> bool:
        since_s = self._clock.time() - age_s
        keys = [_key(caller, target, digest) for digest in digests]
        if any((self._memory.get(key) or 0.0) >= since_s for key in keys):
            return True
        if not keys:
            return False

        def work(connection: sqlite3.Connection) -> list[tuple[Key, float]]:
            found = []
            for key in keys:
                row = connection.execute(
                    "SELECT granted_s FROM grants"
                    " WHERE caller = ? AND upstream = ? AND repository = ? AND digest = ?",
                    key,
                ).fetchone()
                found += [(key, row[0])] if row else []
            return found

        try:
            known = await self._database.do(work)
        except (sqlite3.Error, OSError) as error:
            _log.warning("grants_not_read", reason=str(error))
            return False
        for key, granted_s in known:
            self._memory.put(key, granted_s, 1)
        return any(granted_s >= since_s for _, granted_s in known)


def _key(caller: Caller, target: Target, digest: Digest) -> Key:
    return caller.key, target.upstream, target.repository, str(digest)
