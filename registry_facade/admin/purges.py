"""What was purged, told to the other workers of this node by way of the catalog they share."""

import asyncio
import time
from collections.abc import Collection
from dataclasses import dataclass

import structlog

from ocikit.digest import Digest
from registry_facade.addressing import Target
from registry_facade.cache.catalog import Catalog
from registry_facade.cache.storage import Storage
from registry_facade.errors import CacheUnusable
from registry_facade.manifests import Manifests

_log = structlog.get_logger(__name__)
_LOOK_EVERY_S = 1.0
_KEPT_S = 3600.0


@dataclass(frozen=True, slots=True)
class Purges:
    """``target`` None and ``tag`` "" stand for none."""

    catalog: Catalog
    storage: Storage
    manifests: Manifests

    async def note(self, target: Target | None, tag: str, digests: Collection[Digest]) -> None:
        """For what has been purged here. Raises CacheUnusable."""
        place = (target.upstream, target.repository) if target is not None else ("", "")
        rows = [(*place, tag, digest) for digest in [*map(str, digests)] or [""]]
        self._forget(rows)
        await self.catalog.note_purges(rows, time.time(), _KEPT_S)

    async def follow(self) -> None:
        """Forgets what other workers purge, within a second or two, until it is cancelled."""
        since_s = time.time()
        while True:
            await asyncio.sleep(_LOOK_EVERY_S)
            looked_s = time.time()
            try:
                rows = await self.catalog.purged_since(since_s - _LOOK_EVERY_S)
            except CacheUnusable as error:
                _log.warning("purges_not_followed", reason=str(error))
                continue
            since_s = looked_s
            self._forget(rows)

    def _forget(self, rows: Collection[tuple[str, str, str, str]]) -> None:
        for upstream, repository, tag, digest in rows:
            target = Target(upstream, repository)
            if tag:
                self.manifests.forget_tag(target, tag)
            if digest:
                self.manifests.forget(target, [Digest(digest)])
                self.storage.forget(Digest(digest))
