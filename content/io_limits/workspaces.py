"""Limits on the workspaces' own cgroups, held against whoever rewrites them.

A kubelet or systemd may write its own values over ours, and a group may be made anew under the same name, so
what was asked for is compared with what is there every half minute. What the kernel does not take is counted
and named, and stops nothing; a group that is gone is forgotten.
"""

import asyncio
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import structlog

from content.confinement import confined
from content.errors import ContentError, NotFound
from content.io_limits.devices import device_of
from content.io_limits.limiter import UNLIMITED, CgroupLimiter, IoLimits
from content.keys import Workspace
from content.metrics import IoMetrics
from servicekit.clock import Clock, SystemClock

_EVERY_S = 30.0
_log = structlog.get_logger(__name__)


class LimitsNotFound(NotFound):
    def __init__(self, workspace: str) -> None:
        super().__init__(f"workspace {workspace} has no limits on its cgroup")


@dataclass(frozen=True, slots=True)
class Held:
    """``cgroup`` is relative to the directory of all workspaces' groups."""

    cgroup: str
    limits: IoLimits


class WorkspaceLimits:
    """For the disk that ``disk`` is on. ``root`` None refuses everything; one event loop."""

    def __init__(
        self, root: Path | None, disk: Path, metrics: IoMetrics, *, clock: Clock = SystemClock()
    ) -> None:
        self._root = root
        self._disk = disk
        self._metrics = metrics
        self._clock = clock
        self._held: dict[Workspace, Held] = {}

    def get(self, workspace: Workspace) -> Held:
        """Raises LimitsNotFound."""
        try:
            return self._held[workspace]
        except KeyError:
            raise LimitsNotFound(str(workspace)) from None

    async def apply(self, workspace: Workspace, held: Held) -> None:
        """In force when this returns. Raises LimitNotInForce, PathOutsideRoot, LocalDiskError."""
        await asyncio.to_thread(self._write, held)
        self._held[workspace] = held

    async def clear(self, workspace: Workspace) -> None:
        """To be done before the workspace is killed, or it may hang in its I/O. Raises LimitsNotFound."""
        held = self.get(workspace)
        if await asyncio.to_thread(self._group(held).is_dir):
            await asyncio.to_thread(self._write, Held(held.cgroup, UNLIMITED))
        self._held.pop(workspace, None)

    def _group(self, held: Held) -> Path:
        if self._root is None:
            raise NotFound("no limits on workspaces' cgroups: content.workspace_cgroups is not set")
        return confined(self._root, held.cgroup)

    def _write(self, held: Held) -> None:
        limiter, device = CgroupLimiter(self._group(held)), device_of(self._disk)
        if limiter.show().get(device, UNLIMITED) != held.limits:
            limiter.apply(device, held.limits)

    async def run(self) -> None:
        """Until cancelled."""
        while True:
            await self._clock.sleep(_EVERY_S)
            await self.reconcile()

    async def reconcile(self) -> None:
        """Looks once at all groups."""
        known: Mapping[Workspace, Held] = dict(self._held)
        for workspace, held in known.items():
            try:
                if await asyncio.to_thread(self._group(held).is_dir):
                    await asyncio.to_thread(self._write, held)
                elif self._held.get(workspace) == held:
                    del self._held[workspace]
            except ContentError as error:
                self._metrics.failures.labels("workspace").inc()
                _log.warning("workspace_limit_failed", workspace=str(workspace), error=str(error))
