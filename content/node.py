"""A node's parts, and how a job is started on it, by a client or by the schedule."""

import asyncio
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from content.disk_guard import TOPIC, DiskGuard
from content.errors import ContentError
from content.initializers.policy import Policy
from content.io_limits.workspaces import WorkspaceLimits
from content.jobs import Job, JobRunner
from content.keys import Workspace
from content.objects.base import MultipartStore
from content.periodic import PeriodicBackups, Schedule
from content.presigning import LinkSigner
from content.processes.parent import JobProcessDied, JobProcesses
from content.rates import Buckets, Rates
from content.retention import KeepRules
from content.staging import sweep_target
from content.tasks import Task, periodic_task
from content.turns import Pool
from servicekit.clock import Clock, SystemClock
from servicekit.web import Readiness

_SWEEP_TRIES, _SWEEP_EVERY_S = 20, 0.1


class NodeUnready(ContentError):
    """No such work just now."""

    retryable = True


@dataclass(slots=True)
class Node:
    """``job_rates`` are those that new jobs begin with; ``keep`` is what periodic backups leave."""

    store: MultipartStore
    workspaces_root: Path
    jobs: JobRunner
    processes: JobProcesses
    periodic: PeriodicBackups
    disk: DiskGuard
    limits: WorkspaceLimits
    buckets: Buckets
    job_rates: Rates
    readiness: Readiness
    sources: Policy
    keep: KeepRules
    periodic_every_s: float
    links: LinkSigner = field(default_factory=LinkSigner)
    clock: Clock = SystemClock()

    def start_periodic(self, schedule: Schedule) -> Job:
        """As `start`."""
        task = {**asdict(schedule), **periodic_task(self.keep)}
        return self.start("periodic_backup", Workspace.parse(schedule.workspace), task)

    def start(self, pool: Pool, workspace: Workspace, task: Task, *, key: str | None = None) -> Job:
        """Queues a job, or finds the one that ``key`` started. Raises NodeUnready, WorkspaceBusy,
        IdempotencyMismatch.
        """
        if "shutdown" in self.readiness.reasons:
            raise NodeUnready("the node is shutting down")
        if pool == "periodic_backup" and TOPIC in self.readiness.reasons:
            short = self.readiness.reasons[TOPIC]
            raise NodeUnready(f"no periodic backups while the disk is short: {short}")
        identity = {"pool": pool, **task}
        known = self.jobs.repeated(workspace, key, identity)
        if known is not None:
            return known

        async def work(job: Job) -> Mapping[str, Any]:
            try:
                result = await self.processes.run(job, task)
            except JobProcessDied:
                await self._sweep(Path(task["path"]))
                raise
            if pool == "final_backup":  # the workspace is gone now; what comes there later is another one
                await self.periodic.remove(workspace)
            return result

        buckets = Buckets(self.job_rates, node=self.buckets)
        return self.jobs.start(pool, workspace, work, key=key, request=identity, buckets=buckets)

    async def _sweep(self, target: Path) -> None:
        for _ in range(_SWEEP_TRIES):
            if await asyncio.to_thread(sweep_target, target):
                return
            await self.clock.sleep(_SWEEP_EVERY_S)
