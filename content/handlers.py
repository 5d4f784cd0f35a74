"""The agent's API: parse, ask, answer. What the routes mean is in `content.openapi`."""

import asyncio
import dataclasses
import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from aiohttp import web

from content import maintenance
from content.access import ANY, OWNER, require_owner
from content.backup import BackupRequest, BackupResult, back_up
from content.catalog import Catalog
from content.disk_guard import TOPIC
from content.errors import JobNotFound
from content.jobs import Job, JobRunner, Pool, Work
from content.keys import Workspace
from content.objects.base import MultipartStore
from content.openapi import document
from content.progress import Progress
from content.requests import InvalidRequest, confined, parse_backup, parse_restore, read_fields
from content.restore import RestoreRequest, RestoreResult, restore
from content.safety import safe_to_delete
from servicekit.clock import Clock, SystemClock
from servicekit.throttle import Throttle
from servicekit.web import Readiness

_EVENT_EVERY_S = 0.5


@dataclass(frozen=True, slots=True)
class Node:
    """What the handlers work with."""

    store: MultipartStore
    workspaces_root: Path
    jobs: JobRunner
    sent: Throttle
    received: Throttle
    readiness: Readiness
    clock: Clock = SystemClock()


def backup_document(result: BackupResult) -> dict[str, Any]:
    """As ``lapstrake backup --json`` has it."""
    return {
        "snapshot_id": result.snapshot.id,
        "entries": result.snapshot.entries,
        "tar_bytes": result.snapshot.tar_bytes,
        "sent_bytes": result.sent_bytes,
        "copied_bytes": result.copied_bytes,
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


class ContentHandlers:
    """One per node."""

    def __init__(self, node: Node) -> None:
        self._node = node

    def routes(self) -> list[web.RouteDef]:
        workspace = "/v1/workspaces/{owner}/{id}"
        return [
            web.get("/openapi.json", self.describe),
            web.post(f"{workspace}/backups", self.start_backup),
            web.post(f"{workspace}/restores", self.start_restore),
            web.get(f"{workspace}/snapshots", self.list_snapshots),
            web.delete(f"{workspace}/snapshots/{{snapshot_id}}", self.delete_snapshot),
            web.get(f"{workspace}/safety", self.safety),
            web.get("/v1/jobs", self.list_jobs),
            web.get("/v1/jobs/{job_id}", self.show_job),
            web.delete("/v1/jobs/{job_id}", self.cancel_job),
            web.get("/v1/jobs/{job_id}/events", self.watch_job),
            web.get("/v1/limits", self.show_limits),
            web.put("/v1/limits", self.set_limits),
        ]

    async def describe(self, _request: web.Request) -> web.Response:
        return web.json_response(document())

    def _workspace(self, request: web.Request) -> Workspace:
        workspace = Workspace.parse(f"{request.match_info['owner']}/{request.match_info['id']}")
        require_owner(request, workspace.owner)
        return workspace

    async def start_backup(self, request: web.Request) -> web.Response:
        workspace, node = self._workspace(request), self._node
        asked = parse_backup(await read_fields(request), workspace)
        tree = await asyncio.to_thread(confined, node.workspaces_root, asked.path)
        wanted = BackupRequest(tree, workspace, asked.exclude, asked.incarnation)

        async def work(progress: Progress) -> Mapping[str, Any]:
            return backup_document(await back_up(wanted, node.store, progress=progress, clock=node.clock))

        pool: Pool = "final_backup" if asked.kind == "final" else "periodic_backup"
        return self._started(request, pool, workspace, work, dataclasses.asdict(asked))

    async def start_restore(self, request: web.Request) -> web.Response:
        workspace, node = self._workspace(request), self._node
        asked = parse_restore(await read_fields(request), workspace)
        target = await asyncio.to_thread(confined, node.workspaces_root, asked.path)
        wanted = RestoreRequest(target, workspace, asked.snapshot_id, asked.only, asked.replace)

        async def work(progress: Progress) -> Mapping[str, Any]:
            return restore_document(await restore(wanted, node.store, progress=progress, clock=node.clock))

        return self._started(request, "restore", workspace, work, dataclasses.asdict(asked))

    def _started(
        self, request: web.Request, pool: Pool, workspace: Workspace, work: Work, asked: Mapping[str, Any]
    ) -> web.Response:
        if "shutdown" in self._node.readiness.reasons:
            raise web.HTTPServiceUnavailable(text="the node is shutting down")
        if pool == "periodic_backup" and TOPIC in self._node.readiness.reasons:
            short = self._node.readiness.reasons[TOPIC]
            raise web.HTTPServiceUnavailable(text=f"no periodic backups while the disk is short: {short}")
        key = request.headers.get("Idempotency-Key")
        if key is not None and not 0 < len(key) <= 200:
            raise InvalidRequest(["Idempotency-Key: must have 1 to 200 characters"])
        identity = {"pool": pool, **asked}
        job = self._node.jobs.repeated(workspace, key, identity)
        if job is None:
            job = self._node.jobs.start(pool, workspace, work, key=key, request=identity)
        return web.json_response(self._document(job), status=202, headers={"Location": f"/v1/jobs/{job.id}"})

    def _document(self, job: Job) -> dict[str, Any]:
        return job.document(self._node.clock.time())

    def _job(self, request: web.Request) -> Job:
        """A job of another owner is as absent as one that never was."""
        job = self._node.jobs.get(request.match_info["job_id"])
        if request[OWNER] not in {ANY, job.workspace.owner}:
            raise JobNotFound(job.id)
        return job

    async def list_jobs(self, request: web.Request) -> web.Response:
        owner = request[OWNER]
        jobs = [job for job in self._node.jobs.jobs() if owner in {ANY, job.workspace.owner}]
        return web.json_response({"jobs": [self._document(job) for job in jobs]})

    async def show_job(self, request: web.Request) -> web.Response:
        return web.json_response(self._document(self._job(request)))

    async def cancel_job(self, request: web.Request) -> web.Response:
        job = self._job(request)
        self._node.jobs.cancel(job.id)
        return web.json_response(self._document(job), status=202)

    async def watch_job(self, request: web.Request) -> web.StreamResponse:
        job = self._job(request)
        response = web.StreamResponse(
            headers={"Content-Type": "text/event-stream", "Cache-Control": "no-store"}
        )
        await response.prepare(request)
        last = ""
        while True:
            over = job.finished.is_set()
            text = json.dumps(self._document(job))
            if text != last or over:
                name = "end" if over else "progress"
                await response.write(f"event: {name}\ndata: {text}\n\n".encode())
                last = text
            if over:
                return response
            try:
                async with asyncio.timeout(_EVENT_EVERY_S):
                    await job.finished.wait()
            except TimeoutError:
                continue

    async def list_snapshots(self, request: web.Request) -> web.Response:
        workspace = self._workspace(request)
        pointer = (await Catalog(self._node.store, workspace).load()).pointer
        return web.json_response(
            {
                "workspace": str(workspace),
                "incarnation": pointer.incarnation,
                "snapshots": [dataclasses.asdict(snapshot) for snapshot in pointer.snapshots],
            }
        )

    async def delete_snapshot(self, request: web.Request) -> web.Response:
        workspace = self._workspace(request)
        catalog = Catalog(self._node.store, workspace)
        snapshot = await catalog.snapshot(request.match_info["snapshot_id"])
        await maintenance.delete(self._node.store, catalog, [snapshot.id])
        return web.Response(status=204)

    async def safety(self, request: web.Request) -> web.Response:
        workspace, node = self._workspace(request), self._node
        path = request.query.get("path") or workspace.id
        tree = await asyncio.to_thread(confined, node.workspaces_root, path)
        answer = await safe_to_delete(node.store, Catalog(node.store, workspace), tree)
        return web.json_response(dataclasses.asdict(answer))

    def _limits(self) -> web.Response:
        node = self._node
        return web.json_response(
            {"send_bytes_s": node.sent.rate_bytes_s, "receive_bytes_s": node.received.rate_bytes_s}
        )

    async def show_limits(self, _request: web.Request) -> web.Response:
        return self._limits()

    async def set_limits(self, request: web.Request) -> web.Response:
        require_owner(request, ANY)
        fields = await read_fields(request)
        rates = {name: fields.number(name) for name in ("send_bytes_s", "receive_bytes_s")}
        for name, rate in rates.items():
            if rate == 0:
                fields.problems.append(f"{name}: 0 would stop everything; null lifts the limit")
        fields.done()
        for name, throttle in (("send_bytes_s", self._node.sent), ("receive_bytes_s", self._node.received)):
            if name in fields.body:
                throttle.set_rate(rates[name])
        return self._limits()
