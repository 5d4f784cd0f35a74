"""The zTOCs of layers: made once a layer is in the cache, remembered, and made again when they are wanted.

A layer is indexed from its finished file, by a process of its own (`registry_facade.soci.builder`), one at a
time; no pull waits for that. What cannot be indexed is remembered too, so that the rest of an image can be.
"""

import asyncio
import contextlib
import sqlite3
import time
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

import structlog

from ocikit.descriptor import Descriptor
from ocikit.digest import Digest
from ocikit.errors import OciError
from ocikit.manifest import RawManifest
from registry_facade.cache.claims import Claims
from registry_facade.cache.memory import MemoryCache
from registry_facade.errors import CacheUnusable
from registry_facade.soci.builder import run_build
from registry_facade.soci.index import (
    BUILD_TOOL,
    EMPTY_CONFIG,
    MIN_LAYER_BYTES,
    LayerZtoc,
    can_have_ztoc,
    soci_index,
)
from registry_facade.soci.metrics import SociMetrics
from registry_facade.sources.read_through import ReadThrough
from servicekit.sqlite import Database
from servicekit.tasks import BackgroundTasks

_log = structlog.get_logger(__name__)
_SCHEMA = """
CREATE TABLE IF NOT EXISTS ztocs (
    layer TEXT NOT NULL, build_tool TEXT NOT NULL, digest TEXT NOT NULL, size INTEGER NOT NULL,
    refused TEXT NOT NULL, PRIMARY KEY (layer, build_tool)) WITHOUT ROWID;
CREATE INDEX IF NOT EXISTS ztocs_by_digest ON ztocs (digest);
"""
_GZIP_MAGIC = b"\x1f\x8b\x08"
_MAX_WAITING = 256
"""Beyond it layers are not indexed until an image that has them is composed."""
_AGAIN_S = 600.0
"""A layer whose process failed, for want of memory or room or by a signal, is left alone for so long."""
_ASK_AGAIN_S = 0.2

Fetch = Callable[[Digest], Awaitable[None]]
"""Gets a layer into the cache. Raises what the sources said."""


@dataclass(frozen=True, slots=True)
class Verdict:
    """What is known of a layer; ``refused`` says why it has no zTOC."""

    digest: str
    size: int
    refused: str = ""


def ztoc_memory(path: Path) -> Database:
    return Database(path, _SCHEMA)


class SociIndexes:
    """Use as an async context manager: it ends what it began. One event loop; ``memory`` is its owner's.

    Fellow workers share ``memory`` and, by ``claims``, never index the same layer at once.
    """

    def __init__(self, cache: ReadThrough, memory: Database, claims: Claims, metrics: SociMetrics) -> None:
        self._cache = cache
        self._storage = cache.storage
        self._memory = memory
        self._claims = claims
        self._metrics = metrics
        self._background = BackgroundTasks(drain_s=0.0)
        self._turn = asyncio.Semaphore(1)
        self._waiting: set[Digest] = set()
        self._failed_s: MemoryCache[Digest, float] = MemoryCache(10_000)

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_: object) -> None:
        await self._background.close()

    def stored(self, layer: Digest, size: int) -> None:
        """A verified blob lies in the cache; returns at once. Never raises."""
        failed_s = self._failed_s.get(layer)
        if size < MIN_LAYER_BYTES or layer in self._waiting:
            return
        if failed_s is not None and time.monotonic() - failed_s < _AGAIN_S:
            return
        if len(self._waiting) >= _MAX_WAITING:
            self._metrics.layers.labels("dropped").inc()
            return
        self._waiting.add(layer)
        self._metrics.waiting.set(len(self._waiting))
        _ = self._background.start(self._index(layer), name=f"index {layer.short}")

    async def index_of(self, layers: Sequence[Descriptor]) -> RawManifest | None:
        """The SOCI index of an image, once each of its layers was indexed or refused; stored with it."""
        worthy = [layer for layer in layers if can_have_ztoc(layer)]
        if not worthy:
            return None
        known = await self._known([layer.digest for layer in worthy])
        for layer in worthy:
            if layer.digest not in known and await asyncio.to_thread(self._has, layer.digest):
                self.stored(layer.digest, layer.size)
        if any(layer.digest not in known for layer in worthy):
            return None
        ztocs = [
            LayerZtoc(layer, Digest(verdict.digest), verdict.size)
            for layer in worthy
            if not (verdict := known[layer.digest]).refused
        ]
        if not ztocs:
            return None
        try:
            await self._storage.put(Digest.of(EMPTY_CONFIG), EMPTY_CONFIG, "composed")
        except CacheUnusable as error:  # no snapshotter asks for it
            _log.warning("config_not_kept", reason=str(error))
        return soci_index(ztocs)

    async def remake(self, ztoc: Digest, fetch: Fetch) -> bool:
        """Makes a zTOC be here that was evicted; False when ``ztoc`` is none.

        Raises BuildFailed, CacheUnusable, or what ``fetch`` did.
        """
        layer = await self._layer_of(ztoc)
        if layer is None:
            return False
        while not await asyncio.to_thread(self._has, ztoc):
            await fetch(layer)
            verdict = await self._build(layer, is_awaited=True)
            if verdict is not None:
                return verdict.digest == ztoc
            await asyncio.sleep(_ASK_AGAIN_S)
        return True

    def _has(self, digest: Digest) -> bool:
        return self._storage.path(digest).exists()

    # ----- one layer -----

    async def _index(self, layer: Digest) -> None:
        outcome = "failed"
        try:
            async with self._turn:
                if not await self._is_new_gzip(layer):
                    return
                verdict = await self._build(layer)
            if verdict is None:
                return
            outcome = "refused" if verdict.refused else "indexed"
            _log.info(
                "layer_indexed",
                layer=layer,
                ztoc=verdict.digest,
                size_bytes=verdict.size,
                refused=verdict.refused,
            )
        except OciError as error:
            self._failed_s.put(layer, time.monotonic(), 1)
            _log.warning("layer_not_indexed", layer=layer, reason=str(error))
        finally:
            self._waiting.discard(layer)
            self._metrics.waiting.set(len(self._waiting))
        self._metrics.layers.labels(outcome).inc()

    async def _is_new_gzip(self, layer: Digest) -> bool:
        if await self._known([layer]):
            return False

        def magic() -> bytes:
            with contextlib.suppress(OSError), self._storage.path(layer).open("rb") as file:
                return file.read(len(_GZIP_MAGIC))
            return b""

        return await asyncio.to_thread(magic) == _GZIP_MAGIC

    async def _build(self, layer: Digest, *, is_awaited: bool = False) -> Verdict | None:
        """None when a fellow worker is at it. Raises BuildFailed or CacheUnusable."""
        claim = await self._claims.take(layer)
        if isinstance(claim, str):
            return None
        out = self._storage.scratch / f"ztoc-{layer.encoded}"
        try:
            answer = await run_build(
                layer, self._storage.path(layer), out, None if is_awaited else lambda: self._cache.is_read
            )
            verdict = Verdict(answer.get("digest", ""), answer.get("size", 0), answer.get("refused", ""))
            if not verdict.refused:
                await self._storage.adopt(out, Digest(verdict.digest), verdict.size, "composed")
            await self._remember(layer, verdict)
            return verdict
        finally:
            claim.release()
            await asyncio.to_thread(out.unlink, missing_ok=True)

    # ----- what is known -----

    async def _known(self, layers: Sequence[Digest]) -> dict[Digest, Verdict]:
        marks = ", ".join("?" * len(layers))
        statement = (
            f"SELECT layer, digest, size, refused FROM ztocs WHERE build_tool = ? AND layer IN ({marks})"  # noqa: S608 (only marks)
        )
        rows = await self._rows(statement, BUILD_TOOL, *layers)
        return {Digest(row[0]): Verdict(*row[1:]) for row in rows}

    async def _layer_of(self, ztoc: Digest) -> Digest | None:
        rows = await self._rows(
            "SELECT layer FROM ztocs WHERE digest = ? AND build_tool = ? ORDER BY 1 LIMIT 1", ztoc, BUILD_TOOL
        )
        return Digest(rows[0][0]) if rows else None

    async def _rows(self, statement: str, *values: object) -> list[tuple[Any, ...]]:
        try:
            return await self._memory.rows(statement, *values)
        except (sqlite3.Error, OSError) as error:
            _log.warning("ztocs_not_remembered", reason=str(error))
            return []

    async def _remember(self, layer: Digest, verdict: Verdict) -> None:
        row = (layer, BUILD_TOOL, verdict.digest, verdict.size, verdict.refused)
        try:
            await self._memory.do(
                lambda connection: connection.execute(
                    "INSERT OR REPLACE INTO ztocs VALUES (?, ?, ?, ?, ?)", row
                )
            )
        except (sqlite3.Error, OSError) as error:
            raise CacheUnusable("soci.sqlite", str(error)) from error
