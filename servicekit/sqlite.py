"""A small SQLite file behind one thread, safe to share between processes."""

import asyncio
import concurrent.futures
import contextlib
import sqlite3
from collections.abc import Callable
from pathlib import Path
from typing import Any, Self, TypeVar

from servicekit.locks import exclusive

T = TypeVar("T")
_BUSY_S = 30.0


class Database:
    """Close it with `aclose`, or use it as an async context manager; made with ``schema`` at first use.

    Methods raise sqlite3.Error or OSError, for the owner to put into its own words: also when another
    process holds the file for longer than ``busy_s``.
    """

    def __init__(self, path: Path, schema: str, *, version: int = 1, busy_s: float = _BUSY_S) -> None:
        self._path = path
        self._schema = schema
        self._version = version
        self._busy_s = busy_s
        self._worker = concurrent.futures.ThreadPoolExecutor(1, thread_name_prefix=path.stem)
        self._connection: sqlite3.Connection | None = None

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.aclose()

    async def aclose(self) -> None:
        if self._connection is not None:
            await asyncio.get_running_loop().run_in_executor(self._worker, self._connection.close)
        self._worker.shutdown(wait=False)

    async def do(self, work: Callable[[sqlite3.Connection], T]) -> T:
        """Runs ``work`` in one transaction; whatever it raises rolls back."""
        return await self._on_thread(lambda connection: _transaction(connection, work))

    async def rows(self, statement: str, *values: object) -> list[tuple[Any, ...]]:
        """What one statement answers; alone in its transaction, so a reading one waits for no writer."""
        return await self._on_thread(lambda connection: connection.execute(statement, values).fetchall())

    async def _on_thread(self, work: Callable[[sqlite3.Connection], T]) -> T:
        def run() -> T:
            if self._connection is None:
                self._connection = self._open()
            return work(self._connection)

        return await asyncio.get_running_loop().run_in_executor(self._worker, run)

    def _open(self) -> sqlite3.Connection:
        """One at a time: SQLite does not wait for its turn to make a new file a WAL one, it fails at once."""
        self._path.parent.mkdir(parents=True, exist_ok=True)
        with exclusive(self._path.with_name(f"{self._path.name}.lock")), contextlib.ExitStack() as stack:
            connection = sqlite3.connect(
                self._path, timeout=self._busy_s, isolation_level=None, check_same_thread=False
            )
            stack.callback(connection.close)
            connection.execute("PRAGMA journal_mode = WAL")
            connection.execute("PRAGMA synchronous = NORMAL")
            found = connection.execute("PRAGMA user_version").fetchone()[0]
            if found > self._version:
                raise sqlite3.DatabaseError(f"was written by a newer version (schema {found})")
            connection.executescript(self._schema)
            if found < self._version:
                connection.execute(f"PRAGMA user_version = {self._version}")
            stack.pop_all()
        return connection


def _transaction(connection: sqlite3.Connection, work: Callable[[sqlite3.Connection], T]) -> T:
    connection.execute("BEGIN IMMEDIATE")
    try:
        result = work(connection)
    except BaseException:
        connection.execute("ROLLBACK")
        raise
    connection.execute("COMMIT")
    return result
