"""Moves the pointer of a workspace; the only writer of the one object that is ever overwritten."""

from collections.abc import Callable
from dataclasses import dataclass

from content import keys, transfer
from content.errors import ObjectNotFound, PointerMoved, PreconditionFailed, StoreUnavailable, WorkspaceEmpty
from content.keys import Workspace
from content.objects.base import ObjectStore, read_all
from content.snapshot import Pointer, Snapshot, dump_pointer, parse_pointer

_TRIES = 5


@dataclass(frozen=True, slots=True)
class Held:
    """A pointer as it was read; ``etag`` None when there is none yet."""

    pointer: Pointer
    etag: str | None


class Catalog:
    """The pointer of ``workspace`` in ``store``."""

    def __init__(self, store: ObjectStore, workspace: Workspace) -> None:
        self.store = store
        self.workspace = workspace
        self._key = keys.pointer_key(workspace)

    async def load(self) -> Held:
        """An empty pointer when the workspace has none. Raises ObjectCorrupt, FormatUnsupported."""
        try:
            data, info = await transfer.get_whole(self.store, self._key)
        except ObjectNotFound:
            return Held(Pointer(self.workspace), None)
        return Held(parse_pointer(data, self._key, self.workspace), info.etag)

    async def snapshot(self, snapshot_id: str | None) -> Snapshot:
        """That snapshot, or the latest. Raises SnapshotNotFound, WorkspaceEmpty."""
        pointer = (await self.load()).pointer
        if snapshot_id is not None:
            return pointer.find(snapshot_id)
        if pointer.latest is None:
            raise WorkspaceEmpty(str(self.workspace), self.store.name)
        return pointer.latest

    async def commit(self, held: Held, snapshot: Snapshot) -> None:
        """Adds ``snapshot`` if the latest one is still that of ``held``. Raises PointerMoved, Fenced.

        Deletions and claims of older snapshots meanwhile do not matter, another commit does.
        """
        before = held.pointer.latest

        def add(now: Pointer) -> Pointer:
            if any(known.id == snapshot.id for known in now.snapshots):
                return now
            if (now.latest and now.latest.id) != (before and before.id):
                raise PointerMoved(str(self.workspace))
            return now.with_snapshot(snapshot)

        await self.change(add, held)

    async def change(self, edit: Callable[[Pointer], Pointer], held: Held | None = None) -> Pointer:
        """Applies ``edit`` to the newest pointer until nobody came between; ``edit`` may raise to give up.

        An answer that got lost is found out by reading again: ``edit`` must leave alone what it did already.
        """
        now = held or await self.load()
        for _ in range(_TRIES):
            wanted = edit(now.pointer)
            if wanted == now.pointer:
                return wanted
            try:
                await self._put(wanted, now)
            except (PreconditionFailed, StoreUnavailable):
                now = await self.load()
            else:
                return wanted
        raise PointerMoved(str(self.workspace))

    async def _put(self, wanted: Pointer, now: Held) -> None:
        data = dump_pointer(wanted)
        if self.store.properties.conditional_put:
            await self.store.put(self._key, data, if_match=now.etag, if_absent=now.etag is None)
            return
        # Such a store leaves a gap between the look and the put, in which another node could come between.
        if (await self.load()).etag != now.etag:
            raise PreconditionFailed(self._key)
        await self.store.put(self._key, data)
        if await read_all(self.store, self._key) != data:
            raise PointerMoved(str(self.workspace))
