"""A small SQLite file behind one thread, safe to share between processes."""

import asyncio
import concurrent.futures
import contextlib
import sqlite3
from collections.abc import Callable
from pathlib import Path
from typing import Self, TypeVar

T = TypeVar("T")
_BUSY_S = 30.0


class Database:
    """Use as an async context manager; made with ``schema`` when it is first used.

    Every method raises sqlite3.Error or OSError, for the owner to put into its own words.
    """

    def __init__(self, path: Path, schema: str, *, version: int = 1) -> None:
        self._path = path
        self._schema = schema
        self._version = version
        self._worker = concurrent.futures.ThreadPoolExecutor(1, thread_name_prefix=path.stem)
        self._connection: sqlite3.Connection | None = None

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_: object) -> None:
        if self._connection is not None:
            await asyncio.get_running_loop().run_in_executor(self._worker, self._connection.close)
        self._worker.shutdown(wait=False)

    async def do(self, work: Callable[[sqlite3.Connection], T]) -> T:
        """Runs ``work`` in one transaction; whatever it raises rolls back."""
        return await asyncio.get_running_loop().run_in_executor(self._worker, self._run, work)

    def _run(self, work: Callable[[sqlite3.Connection], T]) -> T:
        if self._connection is None:
            self._connection = self._open()
        connection = self._connection
        connection.execute("BEGIN IMMEDIATE")
        try:
            result = work(connection)
        except BaseException:
            connection.execute("ROLLBACK")
            raise
        connection.execute("COMMIT")
        return result

    def _open(self) -> sqlite3.Connection:
        self._path.parent.mkdir(parents=True, exist_ok=True)
        connection = sqlite3.connect(
            self._path, timeout=_BUSY_S, isolation_level=None, check_same_thread=False
        )
        with contextlib.ExitStack() as stack:
            stack.callback(connection.close)
            connection.execute("PRAGMA journal_mode = WAL")
            connection.execute("PRAGMA synchronous = NORMAL")
            found = connection.execute("PRAGMA user_version").fetchone()[0]
            if found > self._version:
                raise sqlite3.DatabaseError(f"was written by a newer version (schema {found})")
            connection.executescript(self._schema)
            connection.execute(f"PRAGMA user_version = {self._version}")
            stack.pop_all()
        return connection
