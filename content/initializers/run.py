"""The start of a workspace: its backup, where there is one, and else what was asked for.

A store that gives no answer is a failure, never "no backup". All happens in a directory that is marked as
unfinished and swapped in when it is whole, so that a backup cannot take half a workspace for a whole one.
"""

import asyncio
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from content.archive.extract import Limits, TreeWriter
from content.catalog import Catalog
from content.errors import WorkspaceEmpty
from content.initializers.download import download
from content.initializers.git import Git
from content.initializers.policy import Owner, Policy
from content.initializers.specs import (
    Composite,
    Download,
    Empty,
    FromBackup,
    FromGit,
    FromSnapshot,
    Initializer,
    Prebuild,
    parse_initializer,
)
from content.keys import Workspace
from content.objects.base import MultipartStore
from content.progress import Progress
from content.rates import DiskPace
from content.restore import Place, fill, select
from content.snapshot import Snapshot
from content.staging import Staging
from ocikit.distribution.transport import Deadlines, Transport
from ocikit.distribution.wall import WalledTransport


async def initialize(
    task: Mapping[str, Any], target: Path, store: MultipartStore, progress: Progress, pace: DiskPace
) -> Mapping[str, Any]:
    """What the workspace then holds, and where that came from.

    Raises WorkspaceEmpty for a backup that is not there, TargetNotEmpty, SourceRefused, SourceFailed,
    DownloadCorrupt, and what `content.restore` raises; the target is then as it was.
    """
    workspace = Workspace.parse(task["workspace"])
    policy = Policy(task["sources"]["protocols"], task["sources"]["hosts"])
    asked = parse_initializer(task["initializer"], workspace, protocols=policy.protocols)
    uid, gid = task["uid"], task["gid"]
    owner = Owner(os.geteuid() if uid is None else uid, os.getegid() if gid is None else gid)
    backup = (await Catalog(store, workspace).load()).pointer.latest
    if backup is None and isinstance(asked, FromBackup):
        raise WorkspaceEmpty(str(workspace), store.name)
    transport = WalledTransport(Deadlines(), policy.hosts)
    async with Staging(target, replace=False) as staging, transport:
        start = _Start(staging, target, store, progress, pace, transport, policy, owner)
        await asyncio.to_thread(start.own)
        if backup is not None:
            await start.restore(backup)
        else:
            await start.perform(asked)
        await staging.commit()
    return {
        "source": task["initializer"]["kind"] if backup is None else "backup",
        "snapshot_id": start.snapshot_id,
        "commits": start.commits,
        "entries": start.entries,
        "bytes": progress.bytes,
    }


class _Start:
    """One tree in the making."""

    def __init__(
        self,
        staging: Staging,
        target: Path,
        store: MultipartStore,
        progress: Progress,
        pace: DiskPace,
        transport: Transport,
        policy: Policy,
        owner: Owner,
    ) -> None:
        self._staging = staging
        self._target = target
        self._store = store
        self._progress = progress
        self._pace = pace
        self._transport = transport
        self._policy = policy
        self._owner = owner
        self.snapshot_id: str | None = None
        self.commits: dict[str, str] = {}
        self.entries = 0

    def own(self) -> None:
        """The root of the tree is its owner's, until a snapshot says otherwise."""
        os.fchown(self._staging.descriptor, self._owner.uid, self._owner.gid)
        os.fchmod(self._staging.descriptor, 0o755)

    async def perform(self, step: Initializer) -> None:
        match step:
            case Empty() | FromBackup():
                return
            case FromSnapshot():
                await self.restore(await Catalog(self._store, step.workspace).snapshot(step.snapshot_id))
            case FromGit():
                await self._check_out(step)
            case Download():
                await self._download(step)
            case Prebuild():
                await self.perform(step.snapshot)
                await self._check_out(step.git)
            case Composite():
                for part in step.steps:
                    await self.perform(part)

    async def restore(self, snapshot: Snapshot) -> None:
        selection = await select(self._store, snapshot, ())
        self._progress.phase, self._progress.total_bytes = "receiving", selection.tar_bytes
        place = Place(self._staging.descriptor, str(self._target))
        tree = await fill(place, self._store, snapshot, selection, progress=self._progress, pace=self._pace)
        self.entries += tree.entries
        self.snapshot_id = snapshot.id

    async def _check_out(self, step: FromGit) -> None:
        self._progress.phase, self._progress.total_bytes = "cloning", None
        async with Git(self._staging.path, self._owner, self._policy) as git:
            self.commits[step.target] = await git.check_out(step)

    async def _download(self, step: Download) -> None:
        self._progress.phase, self._progress.total_bytes = "downloading", None
        limits = Limits.of_free_space(self._staging.descriptor, devices=False)
        tree = TreeWriter(self._staging.descriptor, limits, where=str(self._target))
        try:
            for file in step.files:
                self._progress.bytes += await download(
                    file, self._transport, tree, self._staging.path, self._owner, self._pace.write
                )
            await asyncio.to_thread(tree.finish)
        finally:
            tree.close()
        self.entries += tree.entries
