"""Image specs that were put by the administration API, in SQLite, shared by the workers."""

import sqlite3
import time
from collections.abc import Callable, Collection, Sequence
from pathlib import Path
from typing import Self, TypeVar

from ocikit.reference import is_repository
from registry_facade.errors import CacheUnusable, ImageSpecInvalid, ImageSpecNotFound
from registry_facade.image_spec import ImageSpec, parse_image_spec
from servicekit.sqlite import Database

T = TypeVar("T")
MAX_SPEC_BYTES = 1 << 20
_SCHEMA = """
CREATE TABLE IF NOT EXISTS specs (
    image_id TEXT PRIMARY KEY, document BLOB NOT NULL, changed_s REAL NOT NULL) WITHOUT ROWID;
"""


class StoredSpecs:
    """Use as an async context manager. Every method raises CacheUnusable for a file that cannot be used."""

    def __init__(self, path: Path, upstreams: Collection[str]) -> None:
        self._path = path
        self._upstreams = upstreams
        self._database = Database(path, _SCHEMA)

    async def __aenter__(self) -> Self:
        await self._do(lambda _: None)
        return self

    async def __aexit__(self, *error: object) -> None:
        await self._database.__aexit__(*error)

    async def spec(self, image_id: str) -> ImageSpec:
        return self._parsed(image_id, await self.document(image_id))

    async def document(self, image_id: str) -> bytes:
        """As it was put. Raises ImageSpecNotFound."""
        row = await self._do(
            lambda connection: connection.execute(
                "SELECT document FROM specs WHERE image_id = ?", (image_id,)
            ).fetchone()
        )
        if row is None:
            raise ImageSpecNotFound(image_id)
        return bytes(row[0])

    async def put(self, image_id: str, document: bytes) -> bool:
        """True when it is new. Raises ImageSpecInvalid with all that is wrong, and then keeps nothing."""
        if not is_repository(image_id):
            raise ImageSpecInvalid(image_id, ["an image id has lower-case words joined by / . _ -"])
        if len(document) > MAX_SPEC_BYTES:
            raise ImageSpecInvalid(image_id, [f"more than {MAX_SPEC_BYTES} bytes"])
        self._parsed(image_id, document)

        def work(connection: sqlite3.Connection) -> bool:
            known = connection.execute("SELECT 1 FROM specs WHERE image_id = ?", (image_id,)).fetchone()
            connection.execute(
                "INSERT OR REPLACE INTO specs VALUES (?, ?, ?)", (image_id, document, time.time())
            )
            return known is None

        return await self._do(work)

    async def delete(self, image_id: str) -> bool:
        """False when there was none."""
        gone = await self._do(
            lambda connection: (
                connection.execute("DELETE FROM specs WHERE image_id = ?", (image_id,)).rowcount
            )
        )
        return gone > 0

    async def image_ids(self) -> Sequence[str]:
        """In byte order."""
        rows = await self._do(
            lambda connection: connection.execute("SELECT image_id FROM specs ORDER BY 1").fetchall()
        )
        return [row[0] for row in rows]

    def _parsed(self, image_id: str, document: bytes) -> ImageSpec:
        return parse_image_spec(document, image_id, upstreams=self._upstreams, directory=None)

    async def _do(self, work: Callable[[sqlite3.Connection], T]) -> T:
        try:
            return await self._database.do(work)
        except (sqlite3.Error, OSError) as error:
            raise CacheUnusable(str(self._path), str(error)) from error
