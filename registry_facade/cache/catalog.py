"""What is remembered about blobs, manifests and tags, in SQLite, shared by the worker processes.

The files are the truth about bytes; the catalog is the truth about everything else: sizes and use (for
eviction), which repository a blob was seen in (to fetch it again), and which digest a tag had (to serve it
while the upstream is away). Start-up reads nothing but the schema.
"""

import dataclasses
import sqlite3
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Self, TypeVar

from ocikit.digest import Digest
from ocikit.manifest import RawManifest
from registry_facade.errors import CacheUnusable
from servicekit.sqlite import Database

T = TypeVar("T")
_SCHEMA = """
CREATE TABLE IF NOT EXISTS blobs (
    digest TEXT PRIMARY KEY, size INTEGER NOT NULL, state TEXT NOT NULL, source TEXT NOT NULL DEFAULT '',
    used_s REAL NOT NULL, uses INTEGER NOT NULL DEFAULT 0, pinned INTEGER NOT NULL DEFAULT 0,
    verified_s REAL NOT NULL DEFAULT 0, stamp TEXT NOT NULL DEFAULT '') WITHOUT ROWID;
CREATE INDEX IF NOT EXISTS blobs_by_use ON blobs (state, pinned, used_s, size);
CREATE TABLE IF NOT EXISTS manifests (
    digest TEXT NOT NULL, upstream TEXT NOT NULL, repository TEXT NOT NULL, media_type TEXT NOT NULL,
    seen_s REAL NOT NULL, PRIMARY KEY (digest, upstream, repository)) WITHOUT ROWID;
CREATE TABLE IF NOT EXISTS links (
    child TEXT NOT NULL, parent TEXT NOT NULL, size INTEGER NOT NULL,
    PRIMARY KEY (child, parent)) WITHOUT ROWID;
CREATE INDEX IF NOT EXISTS links_by_parent ON links (parent);
CREATE TABLE IF NOT EXISTS tags (
    upstream TEXT NOT NULL, repository TEXT NOT NULL, tag TEXT NOT NULL, digest TEXT NOT NULL,
    checked_s REAL NOT NULL, PRIMARY KEY (upstream, repository, tag)) WITHOUT ROWID;
CREATE TABLE IF NOT EXISTS unshared (digest TEXT PRIMARY KEY) WITHOUT ROWID;
CREATE TABLE IF NOT EXISTS purges (
    upstream TEXT NOT NULL, repository TEXT NOT NULL, tag TEXT NOT NULL, digest TEXT NOT NULL,
    purged_s REAL NOT NULL, PRIMARY KEY (upstream, repository, tag, digest)) WITHOUT ROWID;
CREATE TABLE IF NOT EXISTS evictions (
    digest TEXT PRIMARY KEY, evicted_s REAL NOT NULL, reason TEXT NOT NULL) WITHOUT ROWID;
"""


@dataclasses.dataclass(frozen=True, slots=True)
class Known:
    """What is known about a blob; ``state`` is ``stored`` or ``growing``."""

    digest: Digest
    size: int
    state: str
    source: str
    used_s: float
    uses: int
    pinned: bool
    verified_s: float
    stamp: str
    """What the file looked like when it was verified; another look means: verify again."""


@dataclasses.dataclass(frozen=True, slots=True)
class TagRecord:
    digest: Digest
    checked_s: float


class Catalog:
    """Use as an async context manager. Safe for concurrent use; several processes may share the file.

    Every method raises CacheUnusable when the file cannot be used.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        self._database = Database(path, _SCHEMA)

    async def __aenter__(self) -> Self:
        await self._do(lambda _: None)
        return self

    async def __aexit__(self, *exc_info: object) -> None:
        await self._database.__aexit__(*exc_info)

    async def _do(self, work: Callable[[sqlite3.Connection], T]) -> T:
        """Runs ``work`` in one transaction on the catalog's thread."""
        try:
            return await self._database.do(work)
        except (sqlite3.Error, OSError) as error:
            raise CacheUnusable(str(self._path), str(error)) from error

    # ----- blobs -----

    async def known(self, digest: Digest) -> Known | None:
        def work(connection: sqlite3.Connection) -> Known | None:
            row = connection.execute(
                "SELECT size, state, source, used_s, uses, pinned, verified_s, stamp"
                " FROM blobs WHERE digest = ?",
                (digest,),
            ).fetchone()
            return Known(digest, *row) if row else None

        return await self._do(work)

    async def reserve(
        self, digest: Digest, size: int, max_bytes: int, now_s: float
    ) -> Sequence[Digest] | None:
        """Books room for a blob; the digests that have to go for it, or None when there is no room."""

        def work(connection: sqlite3.Connection) -> Sequence[Digest] | None:
            connection.execute("DELETE FROM blobs WHERE digest = ?", (digest,))
            victims = _victims(connection, size, max_bytes)
            if victims is None:
                return None
            _evict(connection, victims, now_s)
            connection.execute(
                "INSERT INTO blobs (digest, size, state, used_s, uses) VALUES (?, ?, 'growing', ?, 1)",
                (digest, size, now_s),
            )
            return victims

        return await self._do(work)

    async def stored(self, digest: Digest, size: int, source: str, stamp: str, now_s: float) -> None:
        """The blob lies verified under its final name."""
        await self._do(
            lambda connection: connection.execute(
                "INSERT INTO blobs (digest, size, state, source, used_s, uses, verified_s, stamp)"
                " VALUES (?, ?, 'stored', ?, ?, 1, ?, ?) ON CONFLICT (digest) DO UPDATE SET"
                " state = 'stored', size = excluded.size, source = excluded.source,"
                " verified_s = excluded.verified_s, stamp = excluded.stamp",
                (digest, size, source, now_s, now_s, stamp),
            )
        )

    async def verified(self, digest: Digest, size: int, stamp: str, now_s: float) -> None:
        """The file was read through and is right; a blob that was not known is adopted."""
        await self._do(
            lambda connection: connection.execute(
                "INSERT INTO blobs (digest, size, state, source, used_s, uses, verified_s, stamp)"
                " VALUES (?, ?, 'stored', 'disk', ?, 1, ?, ?) ON CONFLICT (digest) DO UPDATE SET"
                " state = 'stored', size = excluded.size, verified_s = excluded.verified_s,"
                " stamp = excluded.stamp",
                (digest, size, now_s, now_s, stamp),
            )
        )

    async def forget(self, digest: Digest, reason: str, now_s: float) -> None:
        """The blob is gone, or was never finished."""
        await self._do(lambda connection: _evict(connection, [digest], now_s, reason))

    async def touch(self, uses: Iterable[tuple[Digest, int, float]]) -> None:
        """Notes (digest, times used, when last)."""
        rows = [(times, when_s, digest) for digest, times, when_s in uses]
        await self._do(
            lambda connection: connection.executemany(
                "UPDATE blobs SET uses = uses + ?, used_s = max(used_s, ?) WHERE digest = ?", rows
            )
        )

    async def pin(self, digest: Digest, *, pinned: bool) -> bool:
        """Keeps a blob from being evicted, or no longer; False when it is not here."""
        changed = await self._do(
            lambda connection: (
                connection.execute("UPDATE blobs SET pinned = ? WHERE digest = ?", (pinned, digest)).rowcount
            )
        )
        return changed > 0

    async def verified_before(self, before_s: float) -> Digest | None:
        """The stored blob whose last verification lies longest back, if that was before ``before_s``."""
        row = await self._do(
            lambda connection: connection.execute(
                "SELECT digest FROM blobs WHERE state = 'stored' AND verified_s < ?"
                " ORDER BY verified_s LIMIT 1",
                (before_s,),
            ).fetchone()
        )
        return Digest(row[0]) if row else None

    async def uses(self) -> dict[Digest, tuple[float, bool]]:
        """Of each stored blob: its last use, and whether it is pinned."""
        rows = await self._do(
            lambda connection: connection.execute(
                "SELECT digest, used_s, pinned FROM blobs WHERE state = 'stored'"
            ).fetchall()
        )
        return {Digest(row[0]): (row[1], bool(row[2])) for row in rows}

    async def occupied_bytes(self) -> int:
        found = await self._do(
            lambda connection: connection.execute("SELECT coalesce(sum(size), 0) FROM blobs").fetchone()
        )
        return int(found[0])

    # ----- manifests and tags -----

    async def saw_manifest(
        self,
        upstream: str,
        repository: str,
        raw: RawManifest,
        children: Iterable[tuple[Digest, int]],
        now_s: float,
    ) -> None:
        """Remembers where a manifest comes from, and what it refers to."""
        links = [(child, raw.digest, size) for child, size in children]

        def work(connection: sqlite3.Connection) -> None:
            connection.execute(
                "INSERT OR REPLACE INTO manifests VALUES (?, ?, ?, ?, ?)",
                (raw.digest, upstream, repository, raw.media_type, now_s),
            )
            connection.executemany("INSERT OR IGNORE INTO links VALUES (?, ?, ?)", links)

        await self._do(work)

    async def media_type(self, digest: Digest) -> str | None:
        """The media type a manifest was announced with; None for what was never seen as a manifest."""
        row = await self._do(
            lambda connection: connection.execute(
                "SELECT media_type FROM manifests WHERE digest = ? LIMIT 1", (digest,)
            ).fetchone()
        )
        return str(row[0]) if row else None

    async def has_manifest(self, upstream: str, repository: str, digest: Digest) -> bool:
        row = await self._do(
            lambda connection: connection.execute(
                "SELECT 1 FROM manifests WHERE digest = ? AND upstream = ? AND repository = ?",
                (digest, upstream, repository),
            ).fetchone()
        )
        return row is not None

    async def places(self, digest: Digest) -> tuple[int | None, Sequence[tuple[str, str]]]:
        """The size manifests state for a blob, and the (upstream, repository) pairs it was seen in."""

        def work(connection: sqlite3.Connection) -> tuple[int | None, Sequence[tuple[str, str]]]:
            rows = connection.execute(
                "SELECT DISTINCT links.size, manifests.upstream, manifests.repository FROM links"
                " JOIN manifests ON manifests.digest = links.parent WHERE links.child = ?"
                " ORDER BY manifests.seen_s DESC LIMIT 32",
                (digest,),
            ).fetchall()
            sizes = {row[0] for row in rows}
            size = sizes.pop() if len(sizes) == 1 else None
            return size, list(dict.fromkeys((row[1], row[2]) for row in rows))

        return await self._do(work)

    async def mark_unshared(self, digest: Digest) -> None:
        """The manifest or index says that its image is not to be shared."""
        await self._do(
            lambda connection: connection.execute("INSERT OR IGNORE INTO unshared VALUES (?)", (digest,))
        )

    async def seen_in(self, digest: Digest) -> Sequence[tuple[str, str, bool]]:
        """(upstream, repository, whether it is marked unshared) of each manifest that refers to a blob."""
        rows = await self._do(
            lambda connection: connection.execute(
                "SELECT DISTINCT manifests.upstream, manifests.repository, EXISTS (SELECT 1 FROM unshared"
                " WHERE unshared.digest = links.parent OR unshared.digest IN"
                " (SELECT above.parent FROM links AS above WHERE above.child = links.parent))"
                " FROM links JOIN manifests ON manifests.digest = links.parent WHERE links.child = ?",
                (digest,),
            ).fetchall()
        )
        return [(row[0], row[1], bool(row[2])) for row in rows]

    async def parents(self, digest: Digest) -> Sequence[tuple[Digest, str, str]]:
        """The manifests that refer to a blob, as (digest, upstream, repository)."""
        rows = await self._do(
            lambda connection: connection.execute(
                "SELECT links.parent, manifests.upstream, manifests.repository FROM links"
                " JOIN manifests ON manifests.digest = links.parent WHERE links.child = ? ORDER BY 2, 3, 1",
                (digest,),
            ).fetchall()
        )
        return [(Digest(row[0]), row[1], row[2]) for row in rows]

    async def tags_of(self, digest: Digest) -> Sequence[str]:
        """The tags that lead to a blob: to itself, to a manifest that names it, or to an index of that."""
        rows = await self._do(
            lambda connection: connection.execute(
                "WITH RECURSIVE above (digest) AS (SELECT ? UNION"
                " SELECT links.parent FROM links JOIN above ON links.child = above.digest LIMIT 1000)"
                " SELECT upstream || '/' || repository || ':' || tag FROM tags"
                " WHERE digest IN (SELECT digest FROM above) ORDER BY 1",
                (digest,),
            ).fetchall()
        )
        return [row[0] for row in rows]

    async def children(self, digest: Digest) -> Sequence[tuple[Digest, int]]:
        """What a manifest refers to, as (digest, size)."""
        rows = await self._do(
            lambda connection: connection.execute(
                "SELECT child, size FROM links WHERE parent = ? ORDER BY 1", (digest,)
            ).fetchall()
        )
        return [(Digest(row[0]), row[1]) for row in rows]

    async def evicted(self, digest: Digest) -> tuple[float, str] | None:
        """When and why a blob went."""
        row = await self._do(
            lambda connection: connection.execute(
                "SELECT evicted_s, reason FROM evictions WHERE digest = ?", (digest,)
            ).fetchone()
        )
        return (row[0], row[1]) if row else None

    async def tag(self, upstream: str, repository: str, tag: str) -> TagRecord | None:
        row = await self._do(
            lambda connection: connection.execute(
                "SELECT digest, checked_s FROM tags WHERE upstream = ? AND repository = ? AND tag = ?",
                (upstream, repository, tag),
            ).fetchone()
        )
        return TagRecord(Digest(row[0]), row[1]) if row else None

    async def tagged(self, upstream: str, repository: str, tag: str, record: TagRecord) -> None:
        await self._do(
            lambda connection: connection.execute(
                "INSERT OR REPLACE INTO tags VALUES (?, ?, ?, ?, ?)",
                (upstream, repository, tag, record.digest, record.checked_s),
            )
        )

    async def untag(self, upstream: str, repository: str, tag: str) -> bool:
        """Forgets what a tag stood for; False when it was not known."""
        gone = await self._do(
            lambda connection: (
                connection.execute(
                    "DELETE FROM tags WHERE upstream = ? AND repository = ? AND tag = ?",
                    (upstream, repository, tag),
                ).rowcount
            )
        )
        return gone > 0

    async def note_purges(
        self, rows: Iterable[tuple[str, str, str, str]], now_s: float, kept_s: float
    ) -> None:
        """Notes (upstream, repository, tag, digest) for the other workers; older notes go."""
        noted = [(*row, now_s) for row in rows]

        def work(connection: sqlite3.Connection) -> None:
            connection.execute("DELETE FROM purges WHERE purged_s < ?", (now_s - kept_s,))
            connection.executemany("INSERT OR REPLACE INTO purges VALUES (?, ?, ?, ?, ?)", noted)

        await self._do(work)

    async def purged_since(self, since_s: float) -> Sequence[tuple[str, str, str, str]]:
        """(upstream, repository, tag, digest) of what was purged; empty where that does not apply."""
        return await self._do(
            lambda connection: connection.execute(
                "SELECT upstream, repository, tag, digest FROM purges WHERE purged_s >= ?", (since_s,)
            ).fetchall()
        )

    async def known_tags(self, upstream: str, repository: str) -> Sequence[str]:
        rows = await self._do(
            lambda connection: connection.execute(
                "SELECT tag FROM tags WHERE upstream = ? AND repository = ? ORDER BY tag",
                (upstream, repository),
            ).fetchall()
        )
        return [row[0] for row in rows]


_PROTECTED_SHARE = 0.8
"""Blobs used more than once may hold this much of the budget against those used once: a single pass over
many images does not push out what is in daily use."""


def _victims(connection: sqlite3.Connection, size: int, max_bytes: int) -> Sequence[Digest] | None:
    occupied, protected = connection.execute(
        "SELECT coalesce(sum(size), 0), coalesce(sum(CASE WHEN uses > 1 THEN size ELSE 0 END), 0) FROM blobs"
    ).fetchone()
    excess = occupied + size - max_bytes
    if excess <= 0:
        return []
    once_first = protected <= max_bytes * _PROTECTED_SHARE
    order = "uses > 1, used_s" if once_first else "used_s"
    victims: list[Digest] = []
    for digest, victim_bytes in connection.execute(
        f"SELECT digest, size FROM blobs WHERE state = 'stored' AND pinned = 0 ORDER BY {order}"  # noqa: S608 (both orders are constants)
    ):
        if excess <= 0:
            break
        victims.append(Digest(digest))
        excess -= victim_bytes
    return victims if excess <= 0 else None


def _evict(
    connection: sqlite3.Connection, victims: Iterable[Digest], now_s: float, reason: str = "made room"
) -> None:
    for digest in victims:
        connection.execute("DELETE FROM blobs WHERE digest = ?", (digest,))
        connection.execute("INSERT OR REPLACE INTO evictions VALUES (?, ?, ?)", (digest, now_s, reason))
