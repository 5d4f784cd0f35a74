"""What a node remembers of an upload under way, in SQLite: enough to continue it after a kill.

One small file per workspace and store, held by one process at a time. Nothing in it is believed without the
store's word (`content.resume`), so a row that is missing costs bytes, never a wrong snapshot; and a journal
that cannot be written costs the ability to resume, never the backup.
"""

import asyncio
import concurrent.futures
import contextlib
import hashlib
import sqlite3
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

import structlog

from content.errors import WorkspaceBusy
from content.keys import Workspace
from content.objects.base import Upload, UploadedPart

T = TypeVar("T")
_SCHEMA_VERSION = 1
_SCHEMA = """
DROP TABLE IF EXISTS upload;
DROP TABLE IF EXISTS parts;
CREATE TABLE upload (
    snapshot_id TEXT NOT NULL, key TEXT NOT NULL, upload_id TEXT, copies INTEGER NOT NULL,
    checked INTEGER NOT NULL DEFAULT 0, parent TEXT, started_s REAL NOT NULL);
CREATE TABLE parts (
    number INTEGER PRIMARY KEY, offset INTEGER NOT NULL, size INTEGER NOT NULL, crc32 INTEGER NOT NULL,
    etag TEXT NOT NULL, source TEXT NOT NULL);
"""
_log = structlog.get_logger(__name__)


@dataclass(frozen=True, slots=True)
class OpenUpload:
    """An upload that was begun and did not end here. ``upload_id`` None: the store may not have heard of it.
    ``copies`` and ``checked`` are what it was created with.
    """

    snapshot_id: str
    key: str
    copies: bool
    parent: str | None
    started_s: float
    upload_id: str | None = None
    checked: bool = False


@dataclass(frozen=True, slots=True)
class NotedPart:
    """A part that the store took. ``source`` names the object and offset it was copied from; empty for one
    that was sent.
    """

    offset: int
    size_bytes: int
    crc32: int
    etag: str
    source: str


class UploadJournal:
    """The journal of one workspace in one store, open and locked. Safe for concurrent use on one loop.

    No method raises for the journal's own sake: the first failure is logged, and nothing is noted after it.
    """

    def __init__(self, path: Path, connection: sqlite3.Connection | None) -> None:
        self._path = path
        self._connection = connection
        self._worker = concurrent.futures.ThreadPoolExecutor(1, thread_name_prefix="journal")

    async def _do(self, work: Callable[[sqlite3.Connection], T], default: T) -> T:
        def run() -> T:
            if self._connection is None:
                return default
            try:
                with self._connection:  # a transaction
                    return work(self._connection)
            except sqlite3.Error as error:
                self._give_up(error)
                return default

        return await asyncio.get_running_loop().run_in_executor(self._worker, run)

    def _give_up(self, error: Exception) -> None:
        _log.warning("journal_unusable", path=str(self._path), error=str(error))
        if self._connection is not None:
            with contextlib.suppress(sqlite3.Error):
                self._connection.close()
        self._connection = None

    async def close(self) -> None:
        """Lets another process have it."""
        connection, self._connection = self._connection, None
        if connection is not None:
            await asyncio.get_running_loop().run_in_executor(self._worker, connection.close)
        self._worker.shutdown(wait=False)

    async def pending(self) -> OpenUpload | None:
        """The upload that did not end."""

        def work(connection: sqlite3.Connection) -> OpenUpload | None:
            row = connection.execute(
                "SELECT snapshot_id, key, copies, parent, started_s, upload_id, checked FROM upload"
            ).fetchone()
            if row is None:
                return None
            snapshot_id, key, copies, parent, started_s, upload_id, checked = row
            return OpenUpload(snapshot_id, key, bool(copies), parent, started_s, upload_id, bool(checked))

        return await self._do(work, None)

    async def parts(self) -> dict[int, NotedPart]:
        """The parts of the pending upload, by number."""

        def work(connection: sqlite3.Connection) -> dict[int, NotedPart]:
            rows = connection.execute("SELECT number, offset, size, crc32, etag, source FROM parts")
            return {number: NotedPart(*rest) for number, *rest in rows}

        return await self._do(work, {})

    async def begin(self, upload: OpenUpload) -> None:
        """Before the store is asked: what it then has can be found again, whatever happens."""

        def work(connection: sqlite3.Connection) -> None:
            connection.execute("DELETE FROM upload")
            connection.execute("DELETE FROM parts")
            connection.execute(
                "INSERT INTO upload VALUES (?, ?, NULL, ?, 0, ?, ?)",
                (
                    upload.snapshot_id,
                    upload.key,
                    upload.copies,
                    upload.parent,
                    upload.started_s,
                ),
            )

        await self._do(work, None)

    async def opened(self, upload: Upload) -> None:
        """The store has begun it."""

        def work(connection: sqlite3.Connection) -> None:
            connection.execute(
                "UPDATE upload SET upload_id = ?, checked = ?", (upload.upload_id, upload.checked)
            )

        await self._do(work, None)

    async def note(self, part: UploadedPart, source: str) -> None:
        """The store has taken ``part``; of parts sent again the last counts."""

        def work(connection: sqlite3.Connection) -> None:
            ref = part.ref
            connection.execute(
                "INSERT OR REPLACE INTO parts VALUES (?, ?, ?, ?, ?, ?)",
                (ref.number, ref.offset, ref.size_bytes, ref.crc32, part.etag, source),
            )

        await self._do(work, None)

    async def end(self) -> None:
        """The upload is over: committed, or given up."""

        def work(connection: sqlite3.Connection) -> None:
            connection.execute("DELETE FROM upload")
            connection.execute("DELETE FROM parts")

        await self._do(work, None)


class JournalDirectory:
    """Where a node keeps its journals; made when it is first used."""

    def __init__(self, directory: Path) -> None:
        self._directory = directory

    @contextlib.asynccontextmanager
    async def open(self, store: str, workspace: Workspace) -> AsyncIterator[UploadJournal]:
        """Raises WorkspaceBusy while another process backs the workspace up to the same store."""
        name = hashlib.sha256(f"{store}\0{workspace}".encode()).hexdigest()[:32]
        path = self._directory / f"{name}.sqlite"
        journal = UploadJournal(path, await asyncio.to_thread(_open, path, workspace))
        try:
            yield journal
        finally:
            await journal.close()


def _open(path: Path, workspace: Workspace) -> sqlite3.Connection | None:
    """Locked for as long as it is open, by the kernel: a killed process holds nothing."""
    connection: sqlite3.Connection | None = None
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        connection = sqlite3.connect(path, timeout=0, check_same_thread=False)
        connection.execute("PRAGMA locking_mode=EXCLUSIVE")
        connection.execute("PRAGMA journal_mode=WAL")
        connection.execute("PRAGMA synchronous=NORMAL")
        connection.execute("BEGIN EXCLUSIVE")
        connection.execute("COMMIT")
        if connection.execute("PRAGMA user_version").fetchone() != (_SCHEMA_VERSION,):
            connection.executescript(f"{_SCHEMA} PRAGMA user_version={_SCHEMA_VERSION};")
    except (sqlite3.Error, OSError) as error:
        if connection is not None:
            connection.close()
        if isinstance(error, sqlite3.OperationalError) and "locked" in str(error):
            raise WorkspaceBusy(str(workspace), "another backup of it is running on this node") from error
        _log.warning("journal_unusable", path=str(path), error=str(error))
        return None
    return connection
