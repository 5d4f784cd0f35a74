"""The work of jobs as plain documents, so that a process of their own can do it."""

import asyncio
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from content.backup import BackupRequest, BackupResult, back_up
from content.confinement import confined
from content.journal import JournalDirectory
from content.keys import Workspace
from content.objects.base import MultipartStore
from content.progress import Progress
from content.rates import DiskPace
from content.restore import RestoreRequest, RestoreResult, restore


@dataclass(frozen=True, slots=True)
class Tools:
    """What a task works with."""

    store: MultipartStore
    progress: Progress
    pace: DiskPace
    journals: JournalDirectory | None = None


Task = Mapping[str, Any]
"""``what``, ``workspace``, ``root`` and ``path``, and what the request of that name asks for."""


async def perform(task: Task, tools: Tools) -> Mapping[str, Any]:
    """The task's result, JSON-ready. Raises ContentError of every kind.

    The path is confined when the work begins, not when it was asked for: what is below may have changed.
    """
    target = await asyncio.to_thread(confined, Path(task["root"]), task["path"])
    return await _WORK[task["what"]](task, target, tools)


async def _back_up(task: Task, tree: Path, tools: Tools) -> Mapping[str, Any]:
    workspace = Workspace.parse(task["workspace"])
    request = BackupRequest(tree, workspace, tuple(task["exclude"]), task["incarnation"])
    return backup_document(
        await back_up(
            request, tools.store, progress=tools.progress, journals=tools.journals, pace=tools.pace
        ),
    )


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
