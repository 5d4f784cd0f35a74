"""Watches the free space under the workspaces; a node that runs short says so and stops periodic work."""

import asyncio
import os
from pathlib import Path

import structlog
from prometheus_client import Gauge

from servicekit.clock import Clock, SystemClock
from servicekit.metrics import Metrics
from servicekit.units import format_size
from servicekit.web import Readiness

TOPIC = "disk"
_EVERY_S = 5.0
_MIN_FREE_INODES = 1000
_log = structlog.get_logger(__name__)


class DiskGuard:
    """`check` looks once, `watch` until cancelled. ``readiness`` is refused under `TOPIC` below the mark."""

    def __init__(
        self,
        root: Path,
        min_free_bytes: int,
        readiness: Readiness,
        metrics: Metrics,
        *,
        clock: Clock = SystemClock(),
    ) -> None:
        self._root = root
        self._min_free_bytes = min_free_bytes
        self._readiness = readiness
        self._clock = clock
        self._free_bytes: int | None = None
        self._free: Gauge = metrics.gauge("content_free_bytes", "Free space under the workspaces.")
        self._short: Gauge = metrics.gauge("content_disk_short", "1 while there is too little of it.")

    @property
    def free_bytes(self) -> int | None:
        """At the last look; None when the file system could not be asked."""
        return self._free_bytes

    async def check(self) -> None:
        """A file system that cannot be asked counts as full."""
        was_short = TOPIC in self._readiness.reasons
        try:
            problem = self._problem(await asyncio.to_thread(os.statvfs, self._root))
        except OSError as error:
            self._free_bytes, problem = None, f"{self._root}: {error.strerror}"
        if problem:
            self._readiness.refuse(TOPIC, problem)
        else:
            self._readiness.accept(TOPIC)
        self._short.set(bool(problem))
        if was_short != bool(problem):
            _log.warning("disk_space_changed", free_bytes=self._free_bytes, reason=problem or "enough again")

    def _problem(self, status: os.statvfs_result) -> str:
        self._free_bytes = status.f_bavail * status.f_frsize
        self._free.set(self._free_bytes)
        if self._free_bytes < self._min_free_bytes:
            return f"{format_size(self._free_bytes)} free, {format_size(self._min_free_bytes)} wanted"
        if status.f_files and status.f_favail < _MIN_FREE_INODES:  # some file systems do not count them
            return f"{status.f_favail} inodes free, {_MIN_FREE_INODES} wanted"
        return ""

    async def watch(self) -> None:
        while True:
            await self.check()
            await self._clock.sleep(_EVERY_S)
