"""Deletes snapshots and sweeps what interrupted work left in the store.

The record goes first, in one conditional put; then no reader can find the snapshot, and its objects follow.
A crash between leaves orphans, which `sweep` removes when they are older than any backup can be.
"""

from collections.abc import Sequence
from dataclasses import dataclass

from content import keys
from content.catalog import Catalog
from content.errors import IntegrityError, NotFound
from content.objects.base import MultipartStore
from content.retention import KeepRules, Verdict, judge
from content.snapshot import Pointer, Snapshot
from content.verify import check_tar
from servicekit.clock import Clock, SystemClock

ORPHAN_AGE_S = 86_400.0


@dataclass(frozen=True, slots=True)
class Swept:
    """Keys of objects without a record, and uploads that nobody finished."""

    objects: Sequence[str]
    uploads: Sequence[str]


async def prune(store: MultipartStore, catalog: Catalog, rules: KeepRules, *, dry_run: bool) -> list[Verdict]:
    """Deletes what no rule keeps; the verdicts are the same with ``dry_run``."""
    snapshots = (await catalog.load()).pointer.snapshots
    verdicts = judge(snapshots, rules, await _damaged(store, snapshots))
    if not dry_run:
        await delete(store, catalog, [v.snapshot.id for v in verdicts if not v.reasons])
    return verdicts


async def _damaged(store: MultipartStore, snapshots: Sequence[Snapshot]) -> frozenset[str]:
    """Those newer than the latest of which the store has the tar; one request, when all is well."""
    damaged: set[str] = set()
    for snapshot in reversed(snapshots):
        try:
            await check_tar(store, snapshot)
        except (IntegrityError, NotFound):
            damaged.add(snapshot.id)
        else:
            break
    return frozenset(damaged)


async def delete(store: MultipartStore, catalog: Catalog, snapshot_ids: Sequence[str]) -> None:
    """Deletes these snapshots; those that are gone already are no error."""
    if not snapshot_ids:
        return
    doomed = frozenset(snapshot_ids)

    def edit(pointer: Pointer) -> Pointer:
        return pointer.without(doomed)

    await catalog.change(edit)
    for snapshot_id in sorted(doomed):
        await store.delete(keys.index_key(catalog.workspace, snapshot_id))
        await store.delete(keys.tar_key(catalog.workspace, snapshot_id))


async def sweep(
    store: MultipartStore,
    catalog: Catalog,
    *,
    older_than_s: float = ORPHAN_AGE_S,
    dry_run: bool = False,
    clock: Clock = SystemClock(),
) -> Swept:
    """Removes orphans of this workspace that are older than ``older_than_s`` by the store's clock."""
    before_s = clock.time() - older_than_s
    prefix = keys.workspace_prefix(catalog.workspace)
    found = [
        info.key
        async for info in store.list(prefix)
        if keys.snapshot_of(info.key) and info.modified_s < before_s
    ]
    uploads = [upload async for upload in store.list_uploads(prefix) if upload.started_s < before_s]
    # Read after the listing: what was committed meanwhile is then known.
    alive = {snapshot.id for snapshot in (await catalog.load()).pointer.snapshots}
    orphans = [key for key in found if keys.snapshot_of(key) not in alive]
    if not dry_run:
        for key in orphans:
            await store.delete(key)
        for upload in uploads:
            await store.abort_upload(upload)
    return Swept(orphans, [upload.key for upload in uploads])
