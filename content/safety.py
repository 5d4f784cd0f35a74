"""Whether a tree may be deleted: only when the latest snapshot is proven to hold it as it is now."""

import asyncio
import tempfile
from dataclasses import dataclass
from pathlib import Path

from content import sidecar
from content.archive.compare import compare
from content.archive.excludes import Excludes
from content.archive.index import IndexReader
from content.archive.walk import Walk
from content.catalog import Catalog
from content.errors import ContentError
from content.objects.base import ObjectStore
from content.tree import check_complete


@dataclass(frozen=True, slots=True)
class Safety:
    """``reason`` says what stands against a deletion; empty when nothing does."""

    safe_to_delete: bool
    snapshot_id: str | None
    reason: str


async def safe_to_delete(store: ObjectStore, catalog: Catalog, tree: Path) -> Safety:
    """Compares every entry of ``tree`` with the latest snapshot, whose objects must be there in full size.

    Whatever is excluded from backups, cannot be read, or changed a moment ago makes the answer no. Raises
    StoreUnavailable rather than guess.
    """
    snapshot = (await catalog.load()).pointer.latest
    if snapshot is None:
        return Safety(safe_to_delete=False, snapshot_id=None, reason="there is no snapshot")
    try:
        await asyncio.to_thread(check_complete, tree)
        there = await store.stat(snapshot.tar_key)
        if there.size_bytes != snapshot.tar_bytes or there.crc32 not in {None, snapshot.tar_crc32}:
            return Safety(safe_to_delete=False, snapshot_id=snapshot.id, reason="its object is damaged")
        with tempfile.TemporaryFile(prefix="lapstrake-index-") as file:
            await sidecar.fetch(store, snapshot, file)
            reason = await asyncio.to_thread(_difference, IndexReader(file), tree)
    except ContentError as error:
        if error.retryable:
            raise
        reason = str(error)
    return Safety(not reason, snapshot.id, reason)


def _difference(index: IndexReader, tree: Path) -> str:
    walk = Walk(str(tree), Excludes())
    changes = compare(walk, index.lines(), index.header.trusted_before_ns, limit=0)
    if changes is None or changes.write or changes.cut:
        return "the tree has changed since"
    unread = [item for item in walk.left_out if not item.expected]
    return f"{unread[0].path} {unread[0].reason}" if unread else ""
