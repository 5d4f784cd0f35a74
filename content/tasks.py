"""The work of jobs as plain documents, so that a process of their own can do it."""

import asyncio
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import structlog

from content import maintenance
from content.backup import BackupRequest, BackupResult, back_up
from content.catalog import Catalog
from content.confinement import confined
from content.errors import ContentError
from content.journal import JournalDirectory
from content.keys import Workspace
from content.objects.base import MultipartStore
from content.progress import Progress
from content.rates import DiskPace
from content.restore import RestoreRequest, RestoreResult, restore
from content.retention import KeepRules
from content.safety import safe_to_delete

_log = structlog.get_logger(__name__)


@dataclass(frozen=True, slots=True)
class Tools:
    """What a task works with."""

    store: MultipartStore
    progress: Progress
    pace: DiskPace
    journals: JournalDirectory | None = None


Task = Mapping[str, Any]
"""``what``, ``workspace``, ``root`` and ``path``, and what the request of that name asks for."""


def periodic_task(keep: KeepRules) -> Task:
    """What makes a schedule's fields a task."""
    return {"what": "backup", "kind": "periodic", "keep": asdict(keep)}


async def perform(task: Task, tools: Tools) -> Mapping[str, Any]:
    """The task's result, JSON-ready. Raises ContentError of every kind.

    The path is confined when the work begins, not when it was asked for: what is below may have changed.
    """
    target = await asyncio.to_thread(confined, Path(task["root"]), task["path"])
    return await _WORK[task["what"]](task, target, tools)


async def _back_up(task: Task, tree: Path, tools: Tools) -> Mapping[str, Any]:
    workspace = Workspace.parse(task["workspace"])
    if task["kind"] == "periodic" and (found := await _unchanged(workspace, tree, tools)) is not None:
        return found
    request = BackupRequest(tree, workspace, tuple(task["exclude"]), task["incarnation"])
    result = await back_up(
        request, tools.store, progress=tools.progress, journals=tools.journals, pace=tools.pace
    )
    if task["kind"] == "periodic":
        await _prune(task, tools)
    return backup_document(result)


async def _unchanged(workspace: Workspace, tree: Path, tools: Tools) -> Mapping[str, Any] | None:
    """A result without a new snapshot, when the latest holds the tree as it is."""
    tools.progress.phase = "comparing"
    catalog = Catalog(tools.store, workspace)
    if (safety := await safe_to_delete(tools.store, catalog, tree)).safe_to_delete:
        return {"snapshot_id": safety.snapshot_id, "note": "nothing has changed since this snapshot"}
    return None


async def _prune(task: Task, tools: Tools) -> None:
    """Its failure is none of the backup, which is committed; the next one comes here again."""
    rules = KeepRules(**task["keep"])
    if rules.is_empty:
        return
    catalog = Catalog(tools.store, Workspace.parse(task["workspace"]))
    try:
        await maintenance.prune(tools.store, catalog, rules, dry_run=False)
    except ContentError as error:
        _log.warning("prune_failed", workspace=task["workspace"], error=str(error))


async def _restore(task: Task, target: Path, tools: Tools) -> Mapping[str, Any]:
    workspace = Workspace.parse(task["workspace"])
    request = RestoreRequest(target, workspace, task["snapshot_id"], tuple(task["only"]), task["replace"])
    return restore_document(
        await restore(request, tools.store, progress=tools.progress, pace=tools.pace),
    )


def backup_document(result: BackupResult) -> dict[str, Any]:
    """As ``lapstrake backup --json`` has it."""
    return {
        "snapshot_id": result.snapshot.id,
        "entries": result.snapshot.entries,
        "tar_bytes": result.snapshot.tar_bytes,
        "sent_bytes": result.sent_bytes,
        "copied_bytes": result.copied_bytes,
        "resumed_bytes": result.resumed_bytes,
        "files_read": result.files_read,
        "left_out": [{"path": item.path, "reason": item.reason} for item in result.left_out],
        "duration_s": round(result.duration_s, 3),
        "note": result.note,
    }


def restore_document(result: RestoreResult) -> dict[str, Any]:
    """As ``lapstrake restore --json`` has it."""
    return {
        "snapshot_id": result.snapshot.id,
        "entries": result.entries,
        "bytes": result.bytes,
        "duration_s": round(result.duration_s, 3),
    }


async def _initialize(task: Task, target: Path, tools: Tools) -> Mapping[str, Any]:
    from content.initializers import run  # noqa: PLC0415 (an HTTP client, which no other task needs)

    return await run.initialize(task, target, tools.store, tools.progress, tools.pace)


_WORK: Mapping[str, Callable[[Task, Path, Tools], Awaitable[Mapping[str, Any]]]] = {
    "backup": _back_up,
    "restore": _restore,
    "initialize": _initialize,
}
